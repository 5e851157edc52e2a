-- DUTY(owner, heartbeat's milliseconds): the owner's re-scan duty, or the first one that no living owner has.
if not truth() then return { 'VANISHED' } end
local owner, heartbeat_ms = arg(1), arg(2)

local mine = call('HGET', RESCAN_OWNERS, owner)
local duty = mine and call('ZRANGEBYSCORE', RESCAN, mine, mine)[1]
if not duty then
  -- Every owner has one duty at most, so among one more than there are owners one is free, or none is.
  local is_taken, owners = {}, call('HGETALL', RESCAN_OWNERS)
  for i = 1, #owners, 2 do
    if call('EXISTS', PREFIX .. 'owner:' .. owners[i]) == 0 then
      call('HDEL', RESCAN_OWNERS, owners[i])
    else
      is_taken[owners[i + 1]] = true
    end
  end
  for _, member in ipairs(call('ZRANGE', RESCAN, '0', str(#owners / 2))) do
    if not duty and not is_taken[string.match(member, '^%d+')] then duty = member end
  end
end
if not duty then return { 'NONE' } end

local id, from, to = string.match(duty, '^(%d+):(%d+)-(%d+)$')
call('HSET', RESCAN_OWNERS, owner, id)
call('SET', PREFIX .. 'owner:' .. owner, '1', 'PX', heartbeat_ms)
local reply = { 'OK', id, from, to }
for _, key in ipairs(call('SMEMBERS', PREFIX .. 'rescan:' .. id)) do table.insert(reply, key) end
return reply
