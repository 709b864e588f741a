-- A page of a group. KEYS: members, who. ARGV: where to begin (as ZRANGEBYLEX has it), how many.
-- Replies: 0, then id and node + mark + value of each.
local reply = { 0 }
for _, id in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], '+', 'LIMIT', 0, ARGV[2])) do
  reply[#reply + 1] = id
  reply[#reply + 1] = redis.call('HGET', KEYS[2], id)
end
return reply
