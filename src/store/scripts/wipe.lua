-- WIPE(): the truth, what belongs to it and the chain's views, at one blow; the rest goes afterwards, in steps.
local keys = {}
for _, key in ipairs(KEYS) do
  local is_view = key == REALTIME or key == HISTORICAL or key == RANGE
  local chain = is_view and call('HGET', key, 'chain')
  if not chain or chain == CHAIN then table.insert(keys, key) end
end
call('UNLINK', unpack(keys))
return { 'OK' }
