-- A member is removed, if it is still this one. KEYS: members, who, charter. ARGV: id, node, value.
-- Replies: what the member was (node, 16 digits of its mark, value), or nothing.
local was = redis.call('HGET', KEYS[2], ARGV[1])
if not was or string.sub(was, 1, #ARGV[2]) ~= ARGV[2] or string.sub(was, #ARGV[2] + 17) ~= ARGV[3] then
  return false
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[3])
end
return was
