-- A member is added, unless the group is full, or replaced. ARGV 6 to 9: id, node + mark + value, charter, how many
-- members there may be (or nothing); then what is told of one that is added.
-- An empty charter is not kept: where there are members, it is what is not there.
-- Replies: what the group is then, and what the member was before (or nothing); nothing at all when the group is full.
local before = redis.call('HGET', KEYS[2], ARGV[6])
local count = redis.call('ZCARD', KEYS[1])
if ARGV[9] ~= '' and not before and count >= tonumber(ARGV[9]) then
  return false
end
if count == 0 and ARGV[8] ~= '' then
  redis.call('SET', KEYS[3], ARGV[8])
end
redis.call('ZADD', KEYS[1], 0, ARGV[6])
redis.call('HSET', KEYS[2], ARGV[6], ARGV[7])
-- While there are members, the talk does not expire.
redis.call('PERSIST', KEYS[5])
if not before then
  tell_count(10, '+' .. ARGV[6])
end
return { census(), before }
