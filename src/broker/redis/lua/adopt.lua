-- A pair that waits for a client socket gets another keeper. KEYS: record. ARGV: epoch, nonce, from, to.
-- Replies how long the record is kept (ms), or nothing.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'keeper')
if was[1] ~= ARGV[1] or was[2] ~= ARGV[2] or was[3] ~= ARGV[3] then
  return false
end
redis.call('HSET', KEYS[1], 'keeper', ARGV[4])
return redis.call('PTTL', KEYS[1])
