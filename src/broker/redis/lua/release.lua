-- A pair is given up, if the fence holds it, and that is told. KEYS: record, history. ARGV 6 to 9: fence, keeper, the
-- record's ttl (ms), the history's (ms); then the drafts.
-- Replies: 0 no record, 1 not held under this fence, 2 given up and who held it.
local was = record(KEYS[1])
if not was then
  return { 0 }
end
if was.fence ~= ARGV[6] then
  return { 1 }
end
if was.is ~= 'h' then
  -- Given up already, by this very call, whose answer was lost?
  return { was.is == 'k' and was.node == ARGV[7] and 2 or 1 }
end
local holder = was.node
was.is, was.node = 'k', ARGV[7]
write(KEYS[1], was)
if was.heard then
  append(KEYS[2], KEYS[1], 10)
end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[9])
return { 2, holder }
