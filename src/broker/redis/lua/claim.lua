-- A node takes a pair. KEYS: record, history. ARGV: node, nonce.
-- Replies: 0 no such pair, 1 it has ended, 2 won; then the record as it was before.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'ended', 'facts')
if not was[1] then
  return { 0 }
end
if was[4] then
  return { 1 }
end
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', was[1] + 1), 'nonce', ARGV[2], 'holder', ARGV[1])
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
return { 2, unpack(was, 1, 5) }
