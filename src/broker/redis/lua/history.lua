-- Shared by the scripts that append. ARGV 1 to 5 of each: channel, keep.events, keep.age (ms), keep.most, how long a
-- history without a record lives at least (ms). A draft is three arguments: its nonce, the nonce's low 16 bits, payload.

-- Fields of an entry: p the previous position, t the server's time in ms, r the marks of the last 31 nonces before
-- it, d the payload. By r the newest entry alone tells whether a nonce was appended lately: looking at 32 entries
-- each time would cost more than all the rest.
local function newest(history)
  return redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
end

local function offset(id)
  return tonumber(string.match(id, '^%d+'))
end

-- The entry of a draft that was appended before, or nothing.
local function appended(history, nonce, mark, recent)
  if string.find(recent, mark, 1, true) then
    for _, entry in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', 32)) do
      if string.match(entry[1], '%d+$') == nonce then
        return entry
      end
    end
  end
end

-- Whether the draft that begins at ARGV[first] was appended before.
local function has(history, first)
  local last = newest(history)
  return last and ARGV[first] and appended(history, ARGV[first], ARGV[first + 1], last[2][6])
end

-- Trims at most 64 entries, never the newest. The oldest are looked at by twos as long as that is enough, since a
-- look copies their payloads.
local function trim(history, now)
  local events, age, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
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
end

-- Adds the drafts that begin at ARGV[first] to a history, and delivers them live. Returns the last one's id (without
-- drafts, the newest), and how many subscribers it has reached.
local function append(history, record, first)
  if not ARGV[first] then
    local last = newest(history)
    return last and last[1] or '0-0', 0
  end
  local function deliver(id, previous, payload)
    return redis.call('SPUBLISH', ARGV[1], 'e' .. id .. ' ' .. previous .. ' ' .. payload)
  end
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local previous, recent = '0-0', ''
  local last = newest(history)
  if last then
    previous, recent = last[1], last[2][6]
  end
  local id, reached
  for i = first, #ARGV, 3 do
    local nonce, mark, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local before = appended(history, nonce, mark, recent)
    if before then
      id = before[1]
      reached = deliver(id, before[2][2], before[2][8])
    else
      id = string.format('%.0f', offset(previous) + 1) .. '-' .. nonce
      recent = string.sub(mark .. recent, 1, 64)
      redis.call('XADD', history, id, 'p', previous, 't', string.format('%.0f', now), 'r', recent, 'd', payload)
      reached = deliver(id, previous, payload)
      previous = id
    end
  end
  trim(history, now)
  -- A history lives as long as its record, and a while longer; without one it lives for a while from each append.
  local ttl = redis.call('PTTL', record)
  if ttl == -2 then
    redis.call('PEXPIRE', history, ARGV[5])
  elseif ttl >= 0 and redis.call('PTTL', history) == -1 then
    redis.call('PEXPIRE', history, ttl + ARGV[5])
  end
  return id, reached
end

