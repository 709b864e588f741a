-- Drafts are added to the history of a pair that has not ended. KEYS: record, history. ARGV from 6: the drafts.
-- Replies: 0 no record; 1 it has ended; or the last one's position, and how many subscribers it has reached.
local was = record(KEYS[1])
if not was then
  return 0
end
if was.is == 'e' then
  return 1
end
return { append(KEYS[2], KEYS[1], 6) }
