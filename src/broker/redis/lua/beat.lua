-- A node lives, by the server's clock, so that no node's clock matters. KEYS: alive, value.
-- ARGV: node, value, lease (ms). Replies whether it was known.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local new = redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1 - new
