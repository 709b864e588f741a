-- A record is made. KEYS: record. ARGV: the record, ttl (ms).
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') and 1 or 0
