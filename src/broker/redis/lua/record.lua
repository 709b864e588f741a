-- Shared by the scripts about pairs. A record is a STRING, since a HASH of its fields would take three times the memory:
-- its fence (epoch and nonce, 8 bytes each), how it is with the pair (h: a node holds it; k: a node keeps it, to end it
-- when it waits for too long; e: it has ended), whether anything was appended under the fence (1 or 0), which node
-- (16 bytes), and the facts.

local function record(key)
  local text = redis.call('GET', key)
  if text then
    local fence, is, heard, node, facts = struct.unpack('c16c1c1c16', text)
    return { fence = fence, is = is, heard = heard == '1', node = node, facts = string.sub(text, facts), text = text }
  end
end

local function write(key, record)
  local text = record.fence .. record.is .. (record.heard and '1' or '0') .. record.node .. record.facts
  redis.call('SET', key, text, 'KEEPTTL')
end

local function epoch(fence)
  return (struct.unpack('>I8', fence))
end

