-- A history gives up what it has before an entry, but never any of the newest. KEYS: history. ARGV: the entry's id, how
-- many stay.
local stay = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])
local last = stay[tonumber(ARGV[2])]
if not last then
  return 0
end
local before = ARGV[1]
if tonumber(string.match(last[1], '^%d+')) <= tonumber(string.match(before, '^%d+')) then
  before = last[1]
end
return redis.call('XTRIM', KEYS[1], 'MINID', before)
