-- The newest entries of a history, or those before an entry. KEYS: history. ARGV: how many, that entry's position (or
-- nothing). Replies: the entries, oldest first.
local to = -1
if ARGV[2] then
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  to = oldest and math.min(offset(ARGV[2]) - offset(place(oldest)), redis.call('LLEN', KEYS[1])) - 1 or -1
  if to < 0 then
    return {}
  end
end
local from = to - ARGV[1] + 1
if to >= 0 then
  from = math.max(from, 0)
end
return redis.call('LRANGE', KEYS[1], from, to)
