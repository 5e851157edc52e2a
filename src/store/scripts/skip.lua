-- SKIP(to, epoch): blocks up to `to` count as delivered; the operator knows that they were not, or not by this store.
local p = truth()
if not p then return { 'VANISHED' } end
if p.epoch ~= num(2) then return { 'STALE' } end
if p.frozen then return { 'FROZEN', p.frozen } end
insert(p, p.watermark + 1, math.max(num(1), p.watermark))
write_views(p, true)
save(p)
return progress_reply('OK', p)
