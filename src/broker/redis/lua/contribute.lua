-- Shares of one writer are added to a history that many write, and delivered live. KEYS: history, writer (or nothing).
-- ARGV: channel, the most weight, age (ms), how long history and writer live (ms), the era of a history that begins,
-- the writer's batch and total; then nonce (8 bytes), weight and payload of each share.
-- Replies: the last one's position.
-- Before each payload stands the tally: total, era, the server's time. A history that begins counts from the time in
-- microseconds on: so its places come after those of one that was there before, in which somebody may still stand.
if KEYS[2] then
  local was = redis.call('HMGET', KEYS[2], 'batch', 'last')
  if was[1] == ARGV[6] then
    return was[2]
  end
end
local history, most, age, ttl = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function tally(entry)
  local _, at = place(entry)
  return struct.unpack('>I8I4', entry, at + 1 + string.byte(entry, at))
end
local last = newest(history)
local previous, at, total, era = START, clock[1] * 1000000 + clock[2], 0, tonumber(ARGV[5])
if last then
  previous = place(last)
  at = offset(previous)
  total, era = tally(last)
end
for i = 8, #ARGV, 3 do
  at = at + 1
  total = total + tonumber(ARGV[i + 1])
  local id = position(at, ARGV[i])
  add(history, ARGV[1], now, '', id, previous, struct.pack('>I8I4I8', total, era, now) .. ARGV[i + 2])
  previous = id
end
-- Those go that are too old, or behind which enough weighs; some at a time, never the newest.
local gone, count = 0, redis.call('LLEN', history)
while gone < 64 and gone < count - 1 do
  local oldest = redis.call('LINDEX', history, gone)
  local behind = total - tally(oldest)
  if behind < most and now - struct.unpack('>I8', oldest) < age then
    break
  end
  gone = gone + 1
end
if gone > 0 then
  redis.call('LTRIM', history, gone, -1)
end
redis.call('PEXPIRE', history, ttl)
if KEYS[2] then
  redis.call('HSET', KEYS[2], 'batch', ARGV[6], 'last', previous, 'total', ARGV[7])
  redis.call('PEXPIRE', KEYS[2], ttl)
end
return previous
