-- BARRIER(most): the entries that are being taken back, ascending; four fields each. None while the chain is frozen:
-- what it has is in doubt then, and so is what has left it.
local p = truth()
if not p then return { 'VANISHED' } end
count_barrier()
local reply = { 'OK' }
if p.frozen then return reply end
for _, e in ipairs(entries_of(RETRACTING, '-inf', '+inf', arg(1))) do
  for _, value in ipairs({ str(e.n), e.hash, e.epoch, e.retract_epoch }) do table.insert(reply, value) end
end
return reply
