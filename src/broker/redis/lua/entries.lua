-- Shared by the scripts about histories. A history is a LIST, oldest first. Offsets have no holes, so the place of an
-- entry in the list is counted from the oldest one's.
-- A position: its offset (8 bytes), its nonce (8 bytes). An entry: the server's time in ms (8 bytes), how long the marks
-- are (1 byte), the marks of the last nonces up to its own, and what is delivered live as well: position, how long the
-- nonce of the entry before it is (1 byte; 0: there was none), that nonce, payload.

-- Before the first entry.
local START = string.rep('\0', 16)

local function newest(history)
  return redis.call('LINDEX', history, -1)
end

local function offset(position)
  return (struct.unpack('>I8', position))
end

local function position(offset, nonce)
  return struct.pack('>I8', offset) .. nonce
end

-- What is delivered live.
local function told(entry)
  return string.sub(entry, 10 + string.byte(entry, 9))
end

-- Position, and where in the entry what stands behind it begins.
local function place(entry)
  local from = 10 + string.byte(entry, 9)
  return string.sub(entry, from, from + 15), from + 16
end

-- The newest position of a history.
local function head(history)
  local last = newest(history)
  return last and place(last) or START
end

-- Adds an entry behind all others, and delivers it live. Returns how many subscribers it has reached.
local function add(history, channel, now, marks, position, previous, payload)
  local before = previous == START and '' or string.sub(previous, 9)
  local live = position .. struct.pack('Bc0', #before, before) .. payload
  redis.call('RPUSH', history, struct.pack('>I8Bc0', now, #marks, marks) .. live)
  return redis.call('SPUBLISH', channel, 'e' .. live)
end

