-- A pair ends, if it is under the fence and in these hands, and that is told. KEYS: record, history.
-- ARGV 6 to 9: epoch, nonce, holder (or nothing), how long both are kept (ms); then the drafts.
-- Replies: 0 no record, 1 not so, 2 ended and who held or kept it.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'keeper', 'ended')
if not was[1] then
  return { 0 }
end
if was[5] then
  -- Ended already: by this very call, whose answer was lost?
  return { has(KEYS[2], 10) and 2 or 1 }
end
if was[1] ~= ARGV[6] or was[2] ~= ARGV[7] or (was[3] or '') ~= ARGV[8] then
  return { 1 }
end
redis.call('HSET', KEYS[1], 'ended', '1')
redis.call('HDEL', KEYS[1], 'holder', 'keeper')
append(KEYS[2], KEYS[1], 10)
redis.call('PEXPIRE', KEYS[1], ARGV[9])
redis.call('PEXPIRE', KEYS[2], ARGV[9])
return { 2, was[3] or was[4] }
