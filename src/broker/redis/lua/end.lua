-- A pair ends. KEYS: record, history. ARGV: how long both are kept (ms), and if only an idle pair is to end: epoch,
-- nonce of its last fence. Replies: 1 and the record as it was before, or 0.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'ended', 'facts')
if not was[1] or was[4] then
  return { 0 }
end
if ARGV[2] and (was[3] or was[1] ~= ARGV[2] or was[2] ~= ARGV[3]) then
  return { 0 }
end
redis.call('HSET', KEYS[1], 'ended', '1')
redis.call('HDEL', KEYS[1], 'holder')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return { 1, unpack(was, 1, 5) }
