-- HEARTBEAT(owner, milliseconds): the owner lives.
if not truth() then return { 'VANISHED' } end
call('SET', PREFIX .. 'owner:' .. arg(1), '1', 'PX', arg(2))
return { 'OK' }
