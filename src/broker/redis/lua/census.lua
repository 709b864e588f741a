-- Size, charter and rule (version and value) of a group in one look. KEYS: members, charter, rule.
local rule = redis.call('HMGET', KEYS[3], 'version', 'value')
return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]), rule }
