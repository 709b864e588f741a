-- Size and charter of a group in one look. KEYS: members, charter.
return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]) }
