-- Notes are struck from a node's list. KEYS: list. ARGV: pair and note of each.
for i = 1, #ARGV, 2 do
  local noted = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  local from, behind = find(noted, ARGV[i + 1])
  if from then
    local rest = string.sub(noted, 1, from - 1) .. string.sub(noted, behind)
    if rest == '' then
      redis.call('HDEL', KEYS[1], ARGV[i])
    else
      redis.call('HSET', KEYS[1], ARGV[i], rest)
    end
  end
end
return 1
