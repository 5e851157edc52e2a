-- JOURNAL(up to): the live entries, ascending; five fields each.
if not truth() then return { 'VANISHED' } end
local reply = { 'OK' }
for _, e in ipairs(live_entries(0, num(1))) do
  for _, value in ipairs({ str(e.n), e.hash, e.parent, e.epoch, e.state }) do table.insert(reply, value) end
end
return reply
