-- The newest position of a history, without carrying its payload over the wire. KEYS: history.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return last and last[1] or '0-0'
