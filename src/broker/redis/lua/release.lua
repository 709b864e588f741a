-- A pair is given up, if the fence holds it. KEYS: record, history.
-- ARGV: epoch, nonce, the record's ttl (ms), the history's (ms). Replies: who held it, or nothing.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder')
if was[1] ~= ARGV[1] or was[2] ~= ARGV[2] or not was[3] then
  return false
end
redis.call('HDEL', KEYS[1], 'holder')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return was[3]
