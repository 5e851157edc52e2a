-- DEAD_LETTERS(after, limit): the number of dead letters, then up to `limit` of them after the key `after`.
if not truth() then return { 'VANISHED' } end
local after = arg(1) == '' and '-' or '(' .. arg(1)
local reply = { 'OK', str(call('HLEN', DEAD)) }
for _, key in ipairs(call('ZRANGEBYLEX', DEAD_KEYS, after, '+', 'LIMIT', '0', arg(2))) do
  -- An operator may have deleted one by hand.
  local letter = call('HGET', DEAD, key)
  if letter then table.insert(reply, letter) end
end
return reply
