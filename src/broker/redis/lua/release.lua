-- A pair is given up, if the fence holds it, and that is told. KEYS: record, history. ARGV 6 to 10: epoch, nonce,
-- keeper, the record's ttl (ms), the history's (ms); then the drafts.
-- Replies: 0 no record, 1 not held under this fence, 2 given up and who held it.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'keeper', 'heard')
if not was[1] then
  return { 0 }
end
if was[1] ~= ARGV[6] or was[2] ~= ARGV[7] then
  return { 1 }
end
if not was[3] then
  -- Given up already, by this very call, whose answer was lost?
  return { was[4] == ARGV[8] and 2 or 1 }
end
redis.call('HDEL', KEYS[1], 'holder')
redis.call('HSET', KEYS[1], 'keeper', ARGV[8])
if was[5] then
  append(KEYS[2], KEYS[1], 11)
end
redis.call('PEXPIRE', KEYS[1], ARGV[9])
redis.call('PEXPIRE', KEYS[2], ARGV[10])
return { 2, was[3] }
