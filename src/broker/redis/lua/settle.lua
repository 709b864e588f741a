-- A command with a key is done, or forgotten. KEYS: command. ARGV: token, for how long it is kept (ms), the reply (or
-- nothing to forget it). What another noted stays.
local noted = redis.call('GET', KEYS[1])
if noted and noted ~= 'r' .. ARGV[1] then
  return 0
end
if ARGV[3] then
  redis.call('SET', KEYS[1], 's' .. ARGV[3], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
