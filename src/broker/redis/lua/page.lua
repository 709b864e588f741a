-- A page of a ZSET whose scores are all 0. KEYS: the ZSET. ARGV: from, to (as ZRANGEBYLEX has them), how many.
-- Replies: 0, then the entries.
local reply = { 0 }
for _, entry in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])) do
  reply[#reply + 1] = entry
end
return reply
