-- A member is removed, if it is still this one, and that is told. ARGV 6, 7: its id and node, its value; then what is
-- told. Replies: what the group is then, and the member as it was; or nothing.
local was = member(string.sub(ARGV[6], 1, 16))
if not was or string.sub(was, 1, 32) ~= ARGV[6] or string.sub(was, 41) ~= ARGV[7] then
  return false
end
redis.call('ZREM', KEYS[1], was)
if redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
end
tell_count(8, '-')
return { census(), was }
