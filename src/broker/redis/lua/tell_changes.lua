-- Tells those together who have come to a crowd, or left it, one after the other. ARGV 6: how many at most; 7: a nonce;
-- then what is kept before, between and behind the number of members and the list of those who have come (8 to 10), and
-- of those who have left (11 to 13).
-- Replies: how many still wait.
local changes = redis.call('LRANGE', KEYS[5], 0, ARGV[6] - 1)
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
local before, between, behind = unpack(ARGV, sign == '+' and 8 or 11)
local count = string.format('%.0f', redis.call('ZCARD', KEYS[1]))
ARGV[8] = before .. count .. between .. cjson.encode(who) .. behind
for i = #ARGV, 9, -1 do
  ARGV[i] = nil
end
append(KEYS[4], KEYS[1], 7)
redis.call('LTRIM', KEYS[5], #who, -1)
return redis.call('LLEN', KEYS[5])
