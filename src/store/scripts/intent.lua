-- INTENT(n, hash, parent, epoch, filter version, digest of all, digest of these events, events, journal's byte cap).
local p = truth()
if not p then return { 'VANISHED' } end
local n, hash, parent, epoch, filter_version = num(1), arg(2), arg(3), num(4), num(5)
local digest, part_digest, events, cap = arg(6), arg(7), arg(8), num(9)

-- Digest of two disjoint sets: counts add, mixes XOR.
local function sum(a, b)
  local a_count, a_mix = string.match(a, '^(%d+)%-(%x+)$')
  local b_count, b_mix = string.match(b, '^(%d+)%-(%x+)$')
  local mix = {}
  for i = 1, 32, 8 do
    local word = bit.bxor(tonumber(string.sub(a_mix, i, i + 7), 16), tonumber(string.sub(b_mix, i, i + 7), 16))
    table.insert(mix, bit.tohex(word))
  end
  return str(tonumber(a_count) + tonumber(b_count)) .. '-' .. table.concat(mix)
end

-- Always a write, also where nothing changes: WAIT vouches only for a write of its own connection.
call('HINCRBY', PROGRESS, 'barrier', 1)
if p.epoch ~= epoch or p.frozen then return { 'STALE' } end
if filter_version < p.filter_version then return { 'OLDLIST' } end
if touches_done(p, n, n) then return { 'DONE' } end
local field = field_of(n, hash, epoch)
local e = entry(field)
if n <= p.sealed and not e then return { 'SEALED' } end
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

if e then
  for _, known in ipairs(e.digests) do
    if known == digest then return { 'OK' } end
  end
  if digest ~= sum(e.digests[#e.digests], part_digest) then return { 'MORE' } end
else
  -- A later part whose earlier ones are gone: begin again.
  if digest ~= part_digest then return { 'STALE' } end
  if p.journal_bytes >= cap then return { 'FULL', str(p.journal_bytes) } end
  e = { field = field, n = n, parent = parent, state = 'sending', bytes = #field * 2 + #parent, digests = {} }
  p.journal_bytes = p.journal_bytes + e.bytes
end
call('SET', part_key(field, #e.digests), events)
table.insert(e.digests, digest)
e.bytes, p.journal_bytes = e.bytes + #events, p.journal_bytes + #events
put_entry(e)
save(p)
return { 'OK' }
