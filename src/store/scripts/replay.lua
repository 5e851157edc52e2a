-- REPLAY(to, epoch): compare-and-set; deliver again from to + 1, with the same ids and higher versions.
local p = truth()
if not p then return { 'VANISHED' } end
if p.epoch ~= num(2) then return { 'STALE' } end
replay(p, num(1))
return progress_reply('OK', p)
