-- SNAPSHOT(): progress and the done intervals, at one moment.
local p = truth()
if not p then return { 'VANISHED' } end
local reply = progress_reply('OK', p)
for _, member in ipairs(call('ZRANGE', DONE, '0', '-1')) do table.insert(reply, member) end
return reply
