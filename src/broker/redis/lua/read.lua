-- One look at a history. KEYS: history. ARGV: the position asked after, the first id above it, how many.
-- Replies: whether the position is an entry, head, oldest, its previous, then id, previous and payload of each entry.
-- (A reply never begins with text from outside: fred takes arrays that begin with "message" for published ones.)
local history, after, above, limit = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local oldest = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
if not oldest then
  return { after == '0-0' and 1 or 0, '0-0', '0-0', '0-0' }
end
local head = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1][1]
local known = 0
if after == '0-0' then
  known = oldest[2][2] == '0-0' and 1 or 0
else
  known = #redis.call('XRANGE', history, after, after)
end
local reply = { known, head, oldest[1], oldest[2][2] }
if limit > 0 then
  for _, entry in ipairs(redis.call('XRANGE', history, above, '+', 'COUNT', limit)) do
    reply[#reply + 1] = entry[1]
    reply[#reply + 1] = entry[2][2]
    reply[#reply + 1] = entry[2][8]
  end
end
return reply
