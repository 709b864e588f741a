-- Tells those together who have come to a crowd, or left it, one after the other. ARGV 6: how many at most; 7, 8: a nonce
-- and its low 16 bits; then what is kept before, between and behind the number of members and the list of those who have
-- come (9 to 11), and of those who have left (12 to 14).
-- Replies: how many still wait.
local changes = redis.call('LRANGE', KEYS[6], 0, ARGV[6] - 1)
if not changes[1] then
  return 0
end
local sign, who = string.sub(changes[1], 1, 1), {}
for _, change in ipairs(changes) do
  if string.sub(change, 1, 1) ~= sign then
    break
  end
  who[#who + 1] = string.sub(change, 2)
end
local part = sign == '+' and 9 or 12
local count = string.format('%.0f', redis.call('ZCARD', KEYS[1]))
local told = ARGV[part] .. count .. ARGV[part + 1] .. cjson.encode(who) .. ARGV[part + 2]
for i = #ARGV, 10, -1 do
  ARGV[i] = nil
end
ARGV[9] = told
append(KEYS[5], KEYS[1], 7)
redis.call('LTRIM', KEYS[6], #who, -1)
return redis.call('LLEN', KEYS[6])
