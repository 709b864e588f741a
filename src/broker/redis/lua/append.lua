-- Drafts are added to a history. KEYS: history, record. ARGV 6: the fence that must hold the record, or nothing; 7 the
-- last entry that is known to stand, or nothing; then the drafts.
-- Replies: 0 no record, or one that is older than the fence; 1 another fence; the head in an array, if the history has
-- lost that entry; or, in an array too, the last one's position and how many subscribers it has reached.
if ARGV[6] ~= '' then
  local was = record(KEYS[2])
  if not was or (epoch(was.fence) < epoch(ARGV[6]) and was.is ~= 'e') then
    return 0
  end
  if was.fence ~= ARGV[6] or was.is ~= 'h' then
    return 1
  end
  if ARGV[7] ~= '' then
    local last = head(KEYS[1])
    if last ~= ARGV[7] and offset(last) <= offset(ARGV[7]) then
      return { last }
    end
  end
  if ARGV[8] and not was.heard then
    was.heard = true
    write(KEYS[2], was)
  end
end
return { append(KEYS[1], KEYS[2], 8) }
