-- JOURNALED(n, hash, epoch): the parts of an entry, in order; none where there is no entry.
if not truth() then return { 'VANISHED' } end
local e = entry(field_of(num(1), arg(2), num(3)))
local reply = { 'OK' }
for part = 0, e and #e.digests - 1 or -1 do
  local events = call('GET', part_key(e.field, part))
  if not events then return { 'LOST', part_key(e.field, part) } end
  table.insert(reply, events)
end
return reply
