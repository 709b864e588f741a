-- A pair ends, if it is under the fence and in these hands, and that is told. KEYS: record, history.
-- ARGV 6 to 8: fence, holder (or nothing), how long both are kept (ms); then the drafts.
-- Replies: 0 no record, 1 not so, 2 ended and who held or kept it.
local was = record(KEYS[1])
if not was then
  return { 0 }
end
if was.is == 'e' then
  -- Ended already: by this very call, whose answer was lost?
  return { has(KEYS[2], 9) and 2 or 1 }
end
if was.fence ~= ARGV[6] or (was.is == 'h' and was.node or '') ~= ARGV[7] then
  return { 1 }
end
was.is = 'e'
write(KEYS[1], was)
append(KEYS[2], KEYS[1], 9)
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
return { 2, was.node }
