-- RETRACTED(n, hash, epoch, retract epoch): every sink acknowledged every retraction; the entry is forgotten.
local p = truth()
if not p then return { 'VANISHED' } end
local e = entry(field_of(num(1), arg(2), num(3)))
if e and e.retract_epoch == arg(4) then
  drop_entry(p, e)
  save(p)
end
return { 'OK' }
