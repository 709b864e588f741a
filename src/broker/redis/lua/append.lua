-- Drafts are added to a history. KEYS: history, record. ARGV 6, 7: epoch and nonce of the fence that must hold the
-- record, or nothing; then the drafts. Replies: 0 no record, 1 another fence, or the last one's id.
if ARGV[6] ~= '' then
  local was = redis.call('HMGET', KEYS[2], 'epoch', 'nonce', 'holder', 'heard')
  if not was[1] then
    return 0
  end
  if was[1] ~= ARGV[6] or was[2] ~= ARGV[7] or not was[3] then
    return 1
  end
  if not was[4] then
    redis.call('HSET', KEYS[2], 'heard', '1')
  end
end
return append(KEYS[1], KEYS[2], 8)
