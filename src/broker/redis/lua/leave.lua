-- A member is removed, if it is still this one, and that is told. ARGV 6 to 8: id, node, value; then what is told.
-- Replies: what the group is then, and what the member was (node, 16 digits of its mark, value); or nothing.
local was = redis.call('HGET', KEYS[2], ARGV[6])
if not was or string.sub(was, 1, #ARGV[7]) ~= ARGV[7] or string.sub(was, #ARGV[7] + 17) ~= ARGV[8] then
  return false
end
redis.call('ZREM', KEYS[1], ARGV[6])
redis.call('HDEL', KEYS[2], ARGV[6])
if redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[3])
end
tell_count(9, '-' .. ARGV[6])
return { census(), was }
