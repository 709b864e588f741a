-- Drafts are added to a history. KEYS: history, record. ARGV 6, 7: epoch and nonce of the fence that must hold the
-- record, or nothing; 8 the last entry that is known to stand, or nothing; then the drafts.
-- Replies: 0 no record, or one that is older than the fence; 1 another fence; the head in an array, if the history has
-- lost that entry; or, in an array too, the last one's id and how many subscribers it has reached.
if ARGV[6] ~= '' then
  local was = redis.call('HMGET', KEYS[2], 'epoch', 'nonce', 'holder', 'heard', 'ended')
  if not was[1] or (tonumber(was[1]) < tonumber(ARGV[6]) and not was[5]) then
    return 0
  end
  if was[1] ~= ARGV[6] or was[2] ~= ARGV[7] or not was[3] then
    return 1
  end
  if ARGV[8] ~= '' then
    local last = head(KEYS[1])
    if last ~= ARGV[8] and offset(last) <= offset(ARGV[8]) then
      return { last }
    end
  end
  if ARGV[9] and not was[4] then
    redis.call('HSET', KEYS[2], 'heard', '1')
  end
end
return { append(KEYS[1], KEYS[2], 9) }
