-- A version of a room's rule is listed, by the server's clock. KEYS: list. ARGV: room, version.
return redis.call('ZADD', KEYS[1], 0, ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. redis.call('TIME')[1])
