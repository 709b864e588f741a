-- New facts, if the fence is still the record's. KEYS: record. ARGV: fence, facts.
local was = record(KEYS[1])
if not was or was.fence ~= ARGV[1] or was.is == 'e' then
  return 0
end
was.facts = ARGV[2]
write(KEYS[1], was)
return 1
