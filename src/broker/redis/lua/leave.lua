-- A member is removed, if it is still on the node. KEYS: members, who, charter. ARGV: id, node.
-- Replies: what the member was, or nothing.
local was = redis.call('HGET', KEYS[2], ARGV[1])
if not was or string.sub(was, 1, #ARGV[2]) ~= ARGV[2] then
  return false
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[3])
end
return was
