-- SCANNED(duty, up to): its blocks up to that one were looked at, and what was found is delivered.
if not truth() then return { 'VANISHED' } end
local id, up_to = arg(1), num(2)
local duty = call('ZRANGEBYSCORE', RESCAN, id, id)[1]
if not duty then return { 'OK' } end
local from, to = string.match(duty, '^%d+:(%d+)-(%d+)$')
if up_to >= tonumber(to) then
  call('ZREM', RESCAN, duty)
  call('UNLINK', PREFIX .. 'rescan:' .. id)
  local owners = call('HGETALL', RESCAN_OWNERS)
  for i = 1, #owners, 2 do
    if owners[i + 1] == id then call('HDEL', RESCAN_OWNERS, owners[i]) end
  end
elseif up_to >= tonumber(from) then
  call('ZREM', RESCAN, duty)
  call('ZADD', RESCAN, id, id .. ':' .. str(up_to + 1) .. '-' .. to)
end
return { 'OK' }
