-- Shared by the scripts that append. ARGV 1 to 5 of each: channel, keep.events, keep.age (ms), keep.most, how long a
-- history without a record lives at least (ms). A draft is two arguments: its nonce (8 bytes), payload.

-- The marks of the last 32 nonces, which are their low 16 bits: by them the newest entry alone tells whether a nonce was
-- appended lately. Looking at 32 entries each time would cost more than all the rest.
local function marks(entry)
  return string.sub(entry, 10, 9 + string.byte(entry, 9))
end

-- The entry of a draft that was appended before, or nothing.
local function appended(history, nonce, recent)
  if string.find(recent, string.sub(nonce, 7), 1, true) then
    for _, entry in ipairs(redis.call('LRANGE', history, -32, -1)) do
      if string.sub(place(entry), 9) == nonce then
        return entry
      end
    end
  end
end

-- Whether the draft that begins at ARGV[first] was appended before.
local function has(history, first)
  local last = newest(history)
  return last and ARGV[first] and appended(history, ARGV[first], marks(last))
end

-- Trims at most 64 entries, never the newest.
local function trim(history, now)
  local events, age, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
  local count = redis.call('LLEN', history)
  local gone = math.max(math.min(count - most, 64), 0)
  while gone < 64 and count - gone > events do
    if now - struct.unpack('>I8', redis.call('LINDEX', history, gone)) < age then
      break
    end
    gone = gone + 1
  end
  gone = math.min(gone, count - 1)
  if gone > 0 then
    redis.call('LTRIM', history, gone, -1)
  end
end

-- Adds the drafts that begin at ARGV[first] to a history, and delivers them live. Returns the last one's position
-- (without drafts, the newest), and how many subscribers it has reached.
local function append(history, record, first)
  if not ARGV[first] then
    return head(history), 0
  end
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local previous, recent = START, ''
  local last = newest(history)
  if last then
    previous, recent = place(last), marks(last)
  end
  local at, reached
  for i = first, #ARGV, 2 do
    local nonce, payload = ARGV[i], ARGV[i + 1]
    local before = appended(history, nonce, recent)
    if before then
      at = place(before)
      reached = redis.call('SPUBLISH', ARGV[1], 'e' .. told(before))
    else
      at = position(offset(previous) + 1, nonce)
      recent = string.sub(string.sub(nonce, 7) .. recent, 1, 64)
      reached = add(history, ARGV[1], now, recent, at, previous, payload)
      previous = at
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
  return at, reached
end

