-- Size, charter, rule (version and value) and newest place in the talk of a group in one look. KEYS: members, charter,
-- rule, talk.
local rule = redis.call('HMGET', KEYS[3], 'version', 'value')
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]), rule, last and last[1] or '0-0' }
