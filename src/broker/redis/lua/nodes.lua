-- All nodes. KEYS: alive, value. Replies: 0, then name, whether expired, and value of each.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local alive = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local reply = { 0 }
for i = 1, #alive, 2 do
  reply[#reply + 1] = alive[i]
  reply[#reply + 1] = tonumber(alive[i + 1]) <= now and 1 or 0
  reply[#reply + 1] = redis.call('HGET', KEYS[2], alive[i]) or ''
end
return reply
