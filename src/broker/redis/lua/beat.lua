-- A node lives, by the server's clock, so that no node's clock matters. KEYS: alive, value.
-- ARGV: node, value, lease (ms). Replies whether its lease had not run out.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
if before and tonumber(before) > now then
  return 1
end
return 0
