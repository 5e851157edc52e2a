-- RESUME(n, hash, epoch): compare-and-set; someone accepts that what was sealed above n left the chain.
local p = truth()
if not p then return { 'VANISHED' } end
if p.epoch ~= num(3) then return { 'STALE' } end
if num(1) > p.sealed then return { 'ABOVE', str(p.sealed) } end
p.sealed, p.sealed_hash, p.frozen = num(1), arg(2), false
call('HDEL', PROGRESS, 'frozen')
raise_epoch(p)
-- What was claimed as sealed and sent before is no longer certain, so it does not commit.
p.replayed = p.epoch
save(p)
return progress_reply('OK', p)
