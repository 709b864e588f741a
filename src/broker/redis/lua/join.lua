-- A member is added, unless the group is full, or replaced. KEYS: members, who, charter, rule. ARGV: id, node + mark +
-- value, charter, how many members there may be (or nothing).
-- Replies: how many there are, the charter in force, version and value of the rule, what the member was before (or
-- nothing); nothing at all when the group is full.
local before = redis.call('HGET', KEYS[2], ARGV[1])
local count = redis.call('ZCARD', KEYS[1])
if ARGV[4] and not before and count >= tonumber(ARGV[4]) then
  return false
end
local charter = redis.call('GET', KEYS[3])
if count == 0 or not charter then
  charter = ARGV[3]
  redis.call('SET', KEYS[3], charter)
end
count = count + redis.call('ZADD', KEYS[1], 0, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return { count, charter, redis.call('HMGET', KEYS[4], 'version', 'value'), before }
