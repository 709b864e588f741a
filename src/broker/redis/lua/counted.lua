-- Shared by the scripts about groups. KEYS of each: members, who, charter, rule, talk, untold. Behind the arguments of a
-- history (ARGV 1 to 5) and before what is told: nothing, or its nonce, the nonce's low 16 bits, what is kept before and
-- behind the number of members, and how many members are a crowd.

-- Tells how many members there are, in their talk; the arguments become those of a draft. In a crowd, what has changed
-- waits to be told together with what follows, and whatever follows waits behind it.
local function tell_count(first, change)
  if not ARGV[first] then
    return
  end
  local count = redis.call('ZCARD', KEYS[1])
  if count >= tonumber(ARGV[first + 4]) or redis.call('EXISTS', KEYS[6]) == 1 then
    redis.call('RPUSH', KEYS[6], change)
    redis.call('PEXPIRE', KEYS[6], ARGV[5])
    return
  end
  ARGV[first + 2] = ARGV[first + 2] .. string.format('%.0f', count) .. ARGV[first + 3]
  ARGV[first + 4] = nil
  ARGV[first + 3] = nil
  append(KEYS[5], KEYS[1], first)
end

-- How many members there are, the charter in force, version and value of the rule, the newest place in the talk, and
-- whether changes wait to be told.
local function census()
  local rule = redis.call('HMGET', KEYS[4], 'version', 'value')
  return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[3]), rule, head(KEYS[5]), redis.call('EXISTS', KEYS[6]) }
end

