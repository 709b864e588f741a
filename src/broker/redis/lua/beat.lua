-- A node lives, by the server's clock, so that no node's clock matters. KEYS: alive, value.
-- ARGV: node, value, lease (ms). Replies: 0 its lease had run out, 1 it had not, 2 it was declared dead (and is not
-- renewed).
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local before = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if before < 0 then
  return 2
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return before > now and 1 or 0
