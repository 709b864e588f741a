-- A history gives up what it has before an entry, but never any of the newest. KEYS: history. ARGV: its position, how
-- many stay.
local oldest = redis.call('LINDEX', KEYS[1], 0)
if not oldest then
  return 0
end
local gone = math.min(offset(ARGV[1]) - offset(place(oldest)), redis.call('LLEN', KEYS[1]) - ARGV[2])
if gone > 0 then
  redis.call('LTRIM', KEYS[1], gone, -1)
end
return gone
