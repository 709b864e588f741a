-- One look at a history. KEYS: history. ARGV: the position asked after, how many.
-- Replies: whether that position is an entry, head, oldest, its previous, and the entries behind it.
local history, after, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local oldest = redis.call('LINDEX', history, 0)
if not oldest then
  return { after == START and 1 or 0, START, START, START, {} }
end
local first, behind = place(oldest)
local before = struct.unpack('Bc0', oldest, behind)
local previous = before == '' and START or position(offset(first) - 1, before)
-- Where it stands, or would; of what is asked after, anything may be said.
local at = math.min(offset(after) - offset(first), redis.call('LLEN', history))
local known = previous == after
if at >= 0 then
  local entry = redis.call('LINDEX', history, at)
  known = entry and place(entry) == after
elseif after ~= START then
  known = false
end
local from = math.max(at + 1, 0)
local page = limit > 0 and redis.call('LRANGE', history, from, from + limit - 1) or {}
return { known and 1 or 0, head(history), first, previous, page }
