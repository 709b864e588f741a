-- A member is added or replaced. KEYS: members, who, charter. ARGV: id, node + mark + value, charter.
-- Replies: 0, the charter in force, what the member was before (or nothing).
local charter = redis.call('GET', KEYS[3])
if redis.call('ZCARD', KEYS[1]) == 0 or not charter then
  charter = ARGV[3]
  redis.call('SET', KEYS[3], charter)
end
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], 0, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return { 0, charter, before }
