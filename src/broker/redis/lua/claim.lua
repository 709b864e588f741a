-- A node takes a pair, if nobody holds it. KEYS: record, history. ARGV: node, nonce.
-- Replies: 0 no such pair, 1 it has ended, 2 it is held (and the record), 3 won (and the record as it was before), 4 won
-- before by this very call (and the record).
local was = record(KEYS[1])
if not was then
  return { 0 }
end
if was.is == 'e' then
  return { 1 }
end
if was.is == 'h' then
  local again = was.node == ARGV[1] and string.sub(was.fence, 9) == ARGV[2]
  return { again and 4 or 2, was.text }
end
local fence = struct.pack('>I8', epoch(was.fence) + 1) .. ARGV[2]
write(KEYS[1], { fence = fence, is = 'h', heard = false, node = ARGV[1], facts = was.facts })
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
return { 3, was.text }
