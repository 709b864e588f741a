-- A node is declared dead, if its lease has run out, or anyhow. KEYS: alive. ARGV: node, anyhow (or nothing).
-- Replies whether it is declared dead.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or (tonumber(lease) > now and not ARGV[2]) then
  return 0
end
redis.call('ZADD', KEYS[1], -1, ARGV[1])
return 1
