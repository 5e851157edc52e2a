-- PUBLISHED(): the filter's version, then its members.
local p = truth()
if not p then return { 'VANISHED' } end
local reply = { 'OK', str(p.filter_version) }
for _, member in ipairs(call('SMEMBERS', FILTER)) do table.insert(reply, member) end
return reply
