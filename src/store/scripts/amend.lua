-- AMEND(n, hash, filter version, digest of all, digest of these events, events): found by a re-scan or an audit.
local p = truth()
if not p then return { 'VANISHED' } end
local n, hash = num(1), arg(2)
count_barrier()
if p.frozen then return { 'FROZEN' } end
if num(3) < p.filter_version then return { 'OLDLIST' } end
local e, other
for _, live in ipairs(live_entries(n, n)) do
  if live.hash ~= hash then other = live
  elseif not e or tonumber(live.epoch) > tonumber(e.epoch) then e = live end
end
if e then return { append(p, e, arg(4), arg(5), arg(6)) and 'OK' or 'MORE', e.epoch } end
if other then return { 'GONE' } end
for _, orphan in ipairs(entries_of(RETRACTING, str(n), str(n))) do
  if orphan.hash == hash then return { 'GONE' } end
end
if touches_done(p, n, n) then return { 'FINAL', str(p.epoch) } end
return { 'MISSING' }
