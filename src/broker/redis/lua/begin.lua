-- A command with a key begins, unless it has begun. KEYS: command. ARGV: token, for how long it is kept (ms).
-- Replies what is noted: r and the token of whoever carries it out, or s and the reply.
local noted = redis.call('GET', KEYS[1])
if not noted then
  noted = 'r' .. ARGV[1]
  redis.call('SET', KEYS[1], noted, 'PX', ARGV[2])
end
return noted
