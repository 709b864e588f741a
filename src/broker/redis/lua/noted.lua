-- Shared by the scripts about a node's list: a HASH of pairs (16 bytes each), each with all that the node has of it,
-- notes one behind the other. Before each stands how long it is (1 byte).

-- Where in what is noted a note begins, and where the next one does; or nothing.
local function find(noted, note)
  local from = 1
  while from <= #noted do
    local behind = from + 1 + string.byte(noted, from)
    if string.sub(noted, from, behind - 1) == note then
      return from, behind
    end
    from = behind
  end
end

