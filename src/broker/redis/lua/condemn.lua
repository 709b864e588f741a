-- A node is declared dead, if its lease has run out, or anyhow. KEYS: alive. ARGV: node, anyhow (or nothing).
-- Replies the sentence under which it is declared dead: the time of it, which the node's score says as a negative
-- number; or nothing.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then
  return false
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease = tonumber(score)
if lease > now and not ARGV[2] then
  return false
end
if lease >= 0 then
  lease = -now
  redis.call('ZADD', KEYS[1], string.format('%.0f', lease), ARGV[1])
end
return -lease
