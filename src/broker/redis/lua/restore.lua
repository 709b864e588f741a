-- A record that was lost, or is an older one than was, is written again by its holder, and that is told.
-- KEYS: record, history.
-- ARGV 6 to 9: node, epoch, nonce, facts; then the drafts. Replies whether the record is the holder's now.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder', 'ended')
if was[1] and (was[4] or tonumber(was[1]) >= tonumber(ARGV[7])) then
  if was[1] == ARGV[7] and was[2] == ARGV[8] and was[3] == ARGV[6] then
    return 1
  end
  return 0
end
redis.call('HSET', KEYS[1], 'facts', ARGV[9], 'epoch', ARGV[7], 'nonce', ARGV[8], 'holder', ARGV[6], 'heard', '1')
redis.call('HDEL', KEYS[1], 'keeper')
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
append(KEYS[2], KEYS[1], 10)
return 1
