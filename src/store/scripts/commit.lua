-- COMMIT(n, hash, epoch, filter version, digest, track): every sink acknowledged every event of the entry.
-- Holding the claim is not required: an acknowledged fact is true whoever states it.
local p = truth()
if not p then return { 'VANISHED' } end
local n, hash, epoch, filter_version, digest, track = num(1), arg(2), num(3), num(4), arg(5), arg(6)
-- What was sent before a replay does not count as delivered again.
if epoch < p.replayed or p.frozen then return { 'STALE' } end
local e = entry(field_of(n, hash, epoch))
if not e and n <= p.sealed and touches_done(p, n, n) then
  -- Said before, and sealed away since.
  return committed(p, n, n, track)
end
if not e or e.retract_epoch then return { 'FENCED' } end
if filter_version < p.filter_version then return { 'OLDLIST' } end
if digest ~= e.digests[#e.digests] then return { 'MORE' } end
if n <= p.sealed then drop_entry(p, e) else
  e.state = 'done'
  put_entry(e)
end
mark(math.max(p.tip, n), n, hash, epoch)
return committed(p, n, n, track)
