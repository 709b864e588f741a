-- A member is added, unless the group is full, or replaced. KEYS: members, who, charter, rule, talk. ARGV 6 to 9: id,
-- node + mark + value, charter, how many members there may be (or nothing); then what is told of one that is added.
-- Replies: how many there are, the charter in force, version and value of the rule, the newest place in the talk, what
-- the member was before (or nothing); nothing at all when the group is full.
local before = redis.call('HGET', KEYS[2], ARGV[6])
local count = redis.call('ZCARD', KEYS[1])
if ARGV[9] ~= '' and not before and count >= tonumber(ARGV[9]) then
  return false
end
local charter = redis.call('GET', KEYS[3])
if count == 0 or not charter then
  charter = ARGV[8]
  redis.call('SET', KEYS[3], charter)
end
count = count + redis.call('ZADD', KEYS[1], 0, ARGV[6])
redis.call('HSET', KEYS[2], ARGV[6], ARGV[7])
-- While there are members, the talk does not expire.
redis.call('PERSIST', KEYS[5])
if not before then
  tell_count(KEYS[1], KEYS[5], 10)
end
return { count, charter, redis.call('HMGET', KEYS[4], 'version', 'value'), place(KEYS[5]), before }
