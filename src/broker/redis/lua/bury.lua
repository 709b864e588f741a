-- A node that is declared dead under a sentence is forgotten. KEYS: alive, value. ARGV: node, sentence.
-- Replies 1 to the one that did it.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= -tonumber(ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
