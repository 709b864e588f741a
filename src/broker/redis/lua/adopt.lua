-- A pair that waits for a client socket gets another keeper. KEYS: record. ARGV: fence, from, to.
-- Replies how long the record is kept (ms), or nothing.
local was = record(KEYS[1])
if not was or was.fence ~= ARGV[1] or was.is ~= 'k' or was.node ~= ARGV[2] then
  return false
end
was.node = ARGV[3]
write(KEYS[1], was)
return redis.call('PTTL', KEYS[1])
