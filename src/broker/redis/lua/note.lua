-- Something is noted in a node's list, once. KEYS: list. ARGV: pair, note.
local noted = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if not find(noted, ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], noted .. ARGV[2])
end
return 1
