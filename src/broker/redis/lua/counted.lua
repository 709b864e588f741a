-- Shared by the scripts by which members come and go. Behind the arguments of a history (ARGV 1 to 5), and before what
-- is told: nothing, or its nonce, the nonce's low 16 bits, and what is kept before and behind the number of members.

-- Tells how many members there are, in their talk. The arguments become those of a draft.
local function tell_count(members, talk, first)
  if ARGV[first] then
    local count = redis.call('ZCARD', members)
    ARGV[first + 2] = ARGV[first + 2] .. cmsgpack.pack(count) .. ARGV[first + 3]
    ARGV[first + 3] = nil
    append(talk, members, first)
  end
end

-- The newest place in the talk.
local function place(talk)
  local last = newest(talk)
  return last and last[1] or '0-0'
end

