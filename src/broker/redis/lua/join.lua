-- A member is added, unless the group is full, or replaced. ARGV 6 to 8: the member, charter, how many members there may
-- be (or nothing); then what is told of one that is added.
-- An empty charter is not kept: where there are members, it is what is not there.
-- Replies: what the group is then, and the member as it was before (or nothing); nothing at all when the group is full.
local before = member(string.sub(ARGV[6], 1, 16))
local count = redis.call('ZCARD', KEYS[1])
if ARGV[8] ~= '' and not before and count >= tonumber(ARGV[8]) then
  return false
end
if count == 0 and ARGV[7] ~= '' then
  redis.call('SET', KEYS[2], ARGV[7])
end
if before then
  redis.call('ZREM', KEYS[1], before)
end
redis.call('ZADD', KEYS[1], 0, ARGV[6])
-- While there are members, the talk does not expire.
redis.call('PERSIST', KEYS[4])
if not before then
  tell_count(9, '+')
end
return { census(), before }
