-- Entries that stand for nothing are removed, unless they are so young that what they are to stand for may be on its
-- way. KEYS: list. ARGV: how old they must be (s), entries.
local now = redis.call('TIME')[1]
for i = 2, #ARGV do
  if now - string.match(ARGV[i], '%d+$') >= tonumber(ARGV[1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return 0
