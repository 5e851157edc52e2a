-- COMMIT_FINAL(from, to, epoch, sealed at the claim, parent of from, hash of to, filter version, track,
-- confirmed n and hash…): a range at or below the final height, without a journal.
local p = truth()
if not p then return { 'VANISHED' } end
local from, to, epoch, sealed, parent, hash = num(1), num(2), num(3), num(4), arg(5), arg(6)
local filter_version, track = num(7), arg(8)
if p.frozen or epoch < p.replayed or (epoch ~= p.epoch and to > sealed) then return { 'STALE' } end
if filter_version < p.filter_version then return { 'OLDLIST' } end

local confirmed = {}
for i = 9, #ARGV - FIXED, 2 do confirmed[num(i)] = arg(i + 1) end
confirmed[from - 1], confirmed[to] = parent, hash
local function conflict(what, n, other)
  return { 'CONFLICT', string.format('range %s-%s: %s block %s (%s) is not the chain of its end (%s)', str(from),
    str(to), what, str(n), other, hash) }
end
if p.sealed_hash ~= '' and confirmed[p.sealed] and confirmed[p.sealed] ~= p.sealed_hash then
  return conflict('the sealed', p.sealed, p.sealed_hash)
end
local entries = live_entries(from - 1, to + 1)
for _, e in ipairs(entries) do
  local fits = e.n == to + 1 and e.parent == hash or e.n <= to and e.hash == confirmed[e.n]
  if not fits then return conflict('the journaled', e.n, e.hash) end
end
for _, e in ipairs(entries) do
  if e.n >= from and e.n <= math.min(to, p.sealed) then drop_entry(p, e) end
end
-- Of a range only some hashes are known; the marker of another block says `final`.
for n = from, to do mark(math.max(p.tip, to), n, confirmed[n] or 'final', epoch) end
return committed(p, from, to, track)
