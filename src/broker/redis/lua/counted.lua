-- Shared by the scripts about groups. KEYS of each: members, charter, rule, talk, untold. The members are a ZSET whose
-- scores are all 0. Each: its id (16 bytes), its node (16), the mark of its joining (8), its value.
-- Behind the arguments of a history (ARGV 1 to 5) and before what is told: nothing, or its nonce, what is kept before and
-- behind the number of members, how many members are a crowd, and the member's name.

-- A member, or nothing.
local function member(id)
  local at = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. id, '+', 'LIMIT', 0, 1)[1]
  return at and string.sub(at, 1, 16) == id and at or false
end

-- Tells how many members there are, in their talk; the arguments become those of a draft. In a crowd, what has changed
-- waits to be told together with what follows, and whatever follows waits behind it.
local function tell_count(first, sign)
  if not ARGV[first] then
    return
  end
  local before, behind, crowd, name = unpack(ARGV, first + 1)
  local count = redis.call('ZCARD', KEYS[1])
  if count >= tonumber(crowd) or redis.call('EXISTS', KEYS[5]) == 1 then
    redis.call('RPUSH', KEYS[5], sign .. name)
    redis.call('PEXPIRE', KEYS[5], ARGV[5])
    return
  end
  ARGV[first + 1] = before .. string.format('%.0f', count) .. behind
  for i = #ARGV, first + 2, -1 do
    ARGV[i] = nil
  end
  append(KEYS[4], KEYS[1], first)
end

-- How many members there are, the charter in force, version and value of the rule, the newest place in the talk, and
-- whether changes wait to be told.
local function census()
  local rule = redis.call('HMGET', KEYS[3], 'version', 'value')
  return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]), rule, head(KEYS[4]), redis.call('EXISTS', KEYS[5]) }
end

