-- REPLAY(to, until or nothing, epoch): compare-and-set; deliver to + 1 up to `until` again, with higher versions.
local p = truth()
if not p then return { 'VANISHED' } end
if p.epoch ~= num(3) then return { 'STALE' } end
if p.frozen then return { 'FROZEN', p.frozen } end
replay(p, num(1), num(2))
return progress_reply('OK', p)
