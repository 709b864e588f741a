-- A record that was lost, or is an older one than was, is written again by its holder, and that is told.
-- KEYS: record, history.
-- ARGV 6 to 8: node, fence, facts; then the drafts. Replies whether the record is the holder's now.
local was = record(KEYS[1])
if was and (was.is == 'e' or epoch(was.fence) >= epoch(ARGV[7])) then
  return was.is == 'h' and was.fence == ARGV[7] and was.node == ARGV[6] and 1 or 0
end
write(KEYS[1], { fence = ARGV[7], is = 'h', heard = true, node = ARGV[6], facts = ARGV[8] })
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
append(KEYS[2], KEYS[1], 9)
return 1
