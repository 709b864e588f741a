-- A record without a holder. KEYS: record. ARGV: facts, keeper, ttl (ms).
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], 'facts', ARGV[1], 'epoch', '0', 'nonce', '0', 'keeper', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
