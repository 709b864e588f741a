-- One entry is added to a history and delivered live. KEYS: history, record.
-- ARGV: channel, nonce, the nonce's low 16 bits, payload, keep.events, keep.age (ms), keep.most, how long a history
-- without a record lives at least (ms).
local history, record = KEYS[1], KEYS[2]
local channel, nonce, mark, payload = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local events, age, most, orphan = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local function deliver(id, previous)
  redis.call('SPUBLISH', channel, 'e' .. id .. ' ' .. previous .. ' ' .. payload)
  return id
end

-- Fields of an entry: p the previous position, t the server's time in ms, r the marks of the last 31 nonces before
-- it, d the payload. By r the newest entry alone tells whether the nonce was appended lately: looking at 32 entries
-- each time would cost more than all the rest.
local previous, recent, offset = '0-0', '', 0
local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
if last then
  previous = last[1]
  offset = tonumber(string.match(previous, '^%d+'))
  recent = last[2][6]
  if string.find(recent, mark, 1, true) then
    for _, entry in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', 32)) do
      if string.match(entry[1], '%d+$') == nonce then
        payload = entry[2][8]
        return deliver(entry[1], entry[2][2])
      end
    end
  end
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local id = string.format('%.0f', offset + 1) .. '-' .. nonce
recent = string.sub(mark .. recent, 1, 64)
redis.call('XADD', history, id, 'p', previous, 't', string.format('%.0f', now), 'r', recent, 'd', payload)

-- Trimming: at most 64 entries each time, never the newest. The oldest are looked at by twos as long as that is
-- enough, since a look copies their payloads.
local count = redis.call('XLEN', history)
local left = count
if count > most then
  left = math.max(most, count - 64)
end
if left > events and left == math.min(count, most) then
  local function old(look)
    local first = count - left
    local seen = 0
    for i, entry in ipairs(redis.call('XRANGE', history, '-', '+', 'COUNT', first + look)) do
      if i > first then
        if left - seen <= events or count - left + seen >= 64 or now - tonumber(entry[2][4]) < age then
          return seen, true
        end
        seen = seen + 1
      end
    end
    return seen, false
  end
  local seen, settled = old(2)
  if not settled then
    seen = old(64)
  end
  left = left - seen
end
left = math.max(left, 1)
if left < count then
  redis.call('XTRIM', history, 'MAXLEN', left)
end

-- A history lives as long as its record, and a while longer; without one it lives for a while from each append.
local ttl = redis.call('PTTL', record)
if ttl == -2 then
  redis.call('PEXPIRE', history, orphan)
elseif ttl >= 0 and redis.call('PTTL', history) == -1 then
  redis.call('PEXPIRE', history, ttl + orphan)
end
return deliver(id, previous)
