-- The newest entries of a history, newest first. KEYS: history. ARGV: from which id on backwards, how many.
-- Replies: a number, then id, previous and payload of each entry. (A reply never begins with text from outside: fred
-- takes arrays that begin with "message" for published ones.)
local reply = { 0 }
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2])) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][2]
  reply[#reply + 1] = entry[2][8]
end
return reply
