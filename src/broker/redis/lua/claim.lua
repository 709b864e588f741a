-- A node takes a pair, if nobody holds it. KEYS: record, history. ARGV: node, nonce.
-- Replies: 0 no such pair, 1 it has ended, 2 it is held (and the record), 3 won (and the record as it was before), 4 won
-- before by this very call (and the record).
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'keeper', 'heard', 'ended', 'facts')
if not was[1] then
  return { 0 }
end
if was[6] then
  return { 1 }
end
if was[3] then
  local again = was[3] == ARGV[1] and was[2] == ARGV[2]
  return { again and 4 or 2, unpack(was, 1, 7) }
end
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', was[1] + 1), 'nonce', ARGV[2], 'holder', ARGV[1])
redis.call('HDEL', KEYS[1], 'keeper', 'heard')
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
return { 3, unpack(was, 1, 7) }
