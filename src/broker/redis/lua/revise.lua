-- New facts, if the fence is still the record's. KEYS: record. ARGV: epoch, nonce, facts.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'ended')
if was[1] ~= ARGV[1] or was[2] ~= ARGV[2] or was[3] then
  return 0
end
redis.call('HSET', KEYS[1], 'facts', ARGV[3])
return 1
