-- INTENT(n, hash, parent, epoch, filter version, digest of all, digest of these events, events, journal's byte cap).
local p = truth()
if not p then return { 'VANISHED' } end
local n, hash, parent, epoch, filter_version = num(1), arg(2), arg(3), num(4), num(5)
local digest, part_digest, events, cap = arg(6), arg(7), arg(8), num(9)

count_barrier()
if p.epoch ~= epoch or p.frozen then return { 'STALE' } end
if filter_version < p.filter_version then return { 'OLDLIST' } end
if touches_done(p, n, n) then return { 'DONE' } end
local field = field_of(n, hash, epoch)
local e = entry(field)
if n <= p.sealed and not e then return { 'SEALED' } end
-- It was taken back, so its epoch has passed.
if e and e.retract_epoch then return { 'STALE' } end
for _, other in ipairs(live_entries(n - 1, n + 1)) do
  local fits = other.n == n and other.hash == hash
    or other.n == n - 1 and other.hash == parent
    or other.n == n + 1 and other.parent == hash
  if not fits then
    return { 'CONFLICT', string.format('block %s (%s) with parent %s does not fit the journaled block %s (%s) with parent %s',
      str(n), hash, parent, str(other.n), other.hash, other.parent) }
  end
end
if n - 1 == p.sealed and p.sealed_hash ~= '' and parent ~= p.sealed_hash then
  return { 'DEEP', string.format('block %s (%s) has parent %s, but the sealed block is %s', str(n), hash, parent,
    p.sealed_hash) }
end

if not e then
  -- A later part whose earlier ones are gone: begin again.
  if digest ~= part_digest then return { 'STALE' } end
  if p.journal_bytes >= cap then return { 'FULL', str(p.journal_bytes) } end
  e = { field = field, n = n, parent = parent, state = 'sending', bytes = #field * 2 + #parent, digests = {} }
  p.journal_bytes = p.journal_bytes + e.bytes
end
return { append(p, e, digest, part_digest, events) and 'OK' or 'MORE' }
