-- A room's rule is replaced, if the one in force is the one that is named. KEYS: members, charter, rule.
-- ARGV: its version, the new one's (0 where there is none, in both), the new value, the new charter (or nothing).
-- Replies the version in force then.
local is = redis.call('HGET', KEYS[3], 'version') or '0'
if is ~= ARGV[1] or is == ARGV[2] then
  return is
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[3])
else
  redis.call('HSET', KEYS[3], 'version', ARGV[2], 'value', ARGV[3])
end
if ARGV[4] and redis.call('ZCARD', KEYS[1]) > 0 then
  redis.call('SET', KEYS[2], ARGV[4])
end
return ARGV[2]
