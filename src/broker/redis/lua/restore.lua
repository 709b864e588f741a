-- A record that was lost is written again by its holder. KEYS: record, history. ARGV: node, epoch, nonce, facts.
-- Replies whether the record is the holder's now.
local was = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'holder')
if was[1] then
  if was[1] == ARGV[2] and was[2] == ARGV[3] and was[3] == ARGV[1] then
    return 1
  end
  return 0
end
redis.call('HSET', KEYS[1], 'facts', ARGV[4], 'epoch', ARGV[2], 'nonce', ARGV[3], 'holder', ARGV[1])
redis.call('PERSIST', KEYS[2])
return 1
