-- The prelude of every script: one reading of the truth, one way to change it, one way to show it.
--
-- KEYS and ARGV[1..FIXED] are the same for every script (redis/mod.rs); keys that hold a block number are formed from
-- PREFIX. Nothing is written before the types of all keys are known to be right, so a script never fails half-way.
-- Numbers are doubles here: exact below 2^53, and printed with %.0f only.
local PROGRESS, DONE, JOURNAL, INDEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local REALTIME, HISTORICAL, RANGE = KEYS[5], KEYS[6], KEYS[7]
local DEAD, DEAD_KEYS, DEAD_AGE = KEYS[8], KEYS[9], KEYS[10]
local RETRACTING, FILTER, RESCAN, RESCAN_OWNERS = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local FIXED = 5
local PREFIX, CHAIN, SERVICE, MARKERS = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local SCHEMA = '1'
-- Holes that begin within this many blocks below the tip belong to the realtime track.
local REALTIME_GAP = tonumber(ARGV[5])
local MARKER_SECONDS = '86400'
local call = redis.call

local function arg(i) return ARGV[i + FIXED] end
local function num(i) return tonumber(ARGV[i + FIXED]) end
local function str(n) return string.format('%.0f', n) end

-- Redis's clock: seconds for epochs, milliseconds for `updated`.
local function clock()
  local time = call('TIME')
  return tonumber(time[1]), str(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end

-- The truth, or nil where it is gone.
local function truth()
  local f = call('HMGET', PROGRESS, 'schema', 'chain', 'watermark', 'tip', 'sealed', 'sealed_hash', 'epoch',
    'filter_version', 'frozen', 'view_w', 'view_tip', 'done_blocks', 'journal_bytes', 'replayed',
    'filter_checked')
  if f[1] ~= SCHEMA or f[2] ~= CHAIN then return nil end
  return {
    watermark = tonumber(f[3]), tip = tonumber(f[4]), sealed = tonumber(f[5]), sealed_hash = f[6] or '',
    epoch = tonumber(f[7]), filter_version = tonumber(f[8]), frozen = f[9], view_w = f[10], view_tip = f[11],
    done_blocks = tonumber(f[12]), journal_bytes = tonumber(f[13]), replayed = tonumber(f[14]),
    filter_checked = tonumber(f[15]) or -1,
  }
end

local function save(p)
  call('HSET', PROGRESS, 'watermark', str(p.watermark), 'tip', str(p.tip), 'sealed', str(p.sealed),
    'sealed_hash', p.sealed_hash, 'epoch', str(p.epoch), 'done_blocks', str(p.done_blocks),
    'journal_bytes', str(p.journal_bytes), 'replayed', str(p.replayed), 'filter_version', str(p.filter_version),
    'filter_checked', str(p.filter_checked))
end

-- The reply that every caller of the truth gets: status, then eight fields.
local function progress_reply(status, p)
  return { status, str(p.watermark), str(p.tip), str(p.sealed), p.sealed_hash, str(p.epoch), str(p.filter_version),
    p.frozen or '', str(call('ZCARD', RETRACTING)) }
end

-- Always a write, also where nothing changes: WAIT vouches only for a write of its own connection.
local function count_barrier() call('HINCRBY', PROGRESS, 'barrier', 1) end

-- Versions sent from now on are higher than all before.
local function raise_epoch(p) p.epoch = math.max(p.epoch + 1, (clock())) end

-- Done intervals ---------------------------------------------------------------------------------------------------

local function interval(member)
  local from, to = string.match(member, '^(%d+)-(%d+)$')
  return tonumber(from), tonumber(to)
end

-- The interval that begins at or before n and is the last of these, or nil.
local function interval_before(n)
  local member = call('ZREVRANGEBYSCORE', DONE, str(n), '-inf', 'LIMIT', '0', '1')[1]
  if member then return interval(member) end
end

-- Whether any block of from..to is delivered.
local function touches_done(p, from, to)
  if from <= p.watermark then return true end
  local _, last = interval_before(to)
  return last ~= nil and last >= from
end

local function remove_interval(p, from, to)
  call('ZREM', DONE, str(from) .. '-' .. str(to))
  p.done_blocks = p.done_blocks - (to - from + 1)
end

local function add_interval(p, from, to)
  call('ZADD', DONE, str(from), str(from) .. '-' .. str(to))
  p.done_blocks = p.done_blocks + (to - from + 1)
end

-- Adds from..to to what is done, merged with its neighbours, and moves watermark and tip: O(log n).
local function insert(p, from, to)
  p.tip = math.max(p.tip, to)
  if to <= p.watermark then return end
  from = math.max(from, p.watermark + 1)
  while true do
    local first, last = interval_before(to + 1)
    if not first or last + 1 < from then break end
    from, to = math.min(from, first), math.max(to, last)
    remove_interval(p, first, last)
  end
  -- Intervals are merged, so only the one that begins right above the watermark can move it.
  if from == p.watermark + 1 then p.watermark = to else add_interval(p, from, to) end
end

-- Takes from..to out of what is done: the watermark sinks below it, and what it had passed above it stays done.
local function remove(p, from, to)
  if from <= p.watermark then
    local passed = p.watermark
    p.watermark = from - 1
    add_interval(p, from, passed)
  end
  while true do
    local first, last = interval_before(to)
    if not first or last < from then break end
    remove_interval(p, first, last)
    if first < from then add_interval(p, first, from - 1) end
    if last > to then add_interval(p, to + 1, last) end
  end
end

-- Journal ----------------------------------------------------------------------------------------------------------

local function field_of(n, hash, epoch) return str(n) .. ':' .. hash .. ':' .. str(epoch) end

local function part_key(field, part) return PREFIX .. 'journal:' .. field .. ':' .. str(part) end

local function entry(field)
  local value = call('HGET', JOURNAL, field)
  if not value then return nil end
  local parent, state, bytes, digests = string.match(value, '^(%S+) (%S+) (%d+) (%S+)$')
  local n, hash, epoch = string.match(field, '^(%d+):(0x%x+):(%d+)$')
  local retract_epoch = string.match(state, '^retracting:(%d+)$')
  local e = { field = field, n = tonumber(n), hash = hash, epoch = epoch, parent = parent, state = state,
    retract_epoch = retract_epoch, bytes = tonumber(bytes), digests = {} }
  -- Digests are cumulative: the i-th one covers the parts up to and including i.
  for digest in string.gmatch(digests, '[^,]+') do table.insert(e.digests, digest) end
  return e
end

-- Live entries (sending, done) are in one index and those that are being taken back in another, so no rule that looks
-- for the former ever sees the latter.
local function put_entry(e)
  call('HSET', JOURNAL, e.field, table.concat({ e.parent, e.state, str(e.bytes), table.concat(e.digests, ',') }, ' '))
  if e.retract_epoch then
    call('ZREM', INDEX, e.field)
    call('ZADD', RETRACTING, str(e.n), e.field)
  else
    call('ZADD', INDEX, str(e.n), e.field)
  end
end

local function drop_entry(p, e)
  for part = 0, #e.digests - 1 do call('UNLINK', part_key(e.field, part)) end
  call('HDEL', JOURNAL, e.field)
  call('ZREM', INDEX, e.field)
  call('ZREM', RETRACTING, e.field)
  p.journal_bytes = math.max(0, p.journal_bytes - e.bytes)
end

-- Entries of an index in low..high, ascending; at most `limit` of them where it is given.
local function entries_of(index, low, high, limit)
  local entries = {}
  for _, field in ipairs(call('ZRANGEBYSCORE', index, low, high, 'LIMIT', '0', limit or '-1')) do
    local e = entry(field)
    if e then table.insert(entries, e) end
  end
  return entries
end

-- The entries of low..high that are being sent or done.
local function live_entries(low, high) return entries_of(INDEX, str(low), str(high)) end

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

-- Whether the entry holds these events now: it did already, or they were all that it lacked of `digest`.
local function append(p, e, digest, part_digest, events)
  for _, known in ipairs(e.digests) do
    if known == digest then return true end
  end
  local last = e.digests[#e.digests]
  if digest ~= (last and sum(last, part_digest) or part_digest) then return false end
  call('SET', part_key(e.field, #e.digests), events)
  table.insert(e.digests, digest)
  e.bytes, p.journal_bytes = e.bytes + #events, p.journal_bytes + #events
  put_entry(e)
  save(p)
  return true
end

-- Views ------------------------------------------------------------------------------------------------------------

-- Whether an operator changed a view since it was last written. A missing view was not changed: it is written again.
local function edited(key, copy)
  local shown = call('HGET', key, 'block')
  return shown and shown ~= copy
end

-- The lowest gap, never by a scan: intervals and their blocks are counted as they change, so only the few holes near the
-- tip are looked at. These are the realtime track's and are left out.
local function write_range(p, updated)
  local recent = p.tip - REALTIME_GAP
  if p.watermark + 1 >= recent then return call('DEL', RANGE) end
  -- One hole lies below every interval, and one above the last where that does not reach the tip.
  local gaps, missing, above = call('ZCARD', DONE), p.tip - p.watermark - p.done_blocks, p.tip + 1
  if gaps == 0 then gaps = 1 end
  for i, member in ipairs(call('ZREVRANGE', DONE, '0', str(REALTIME_GAP + 2))) do
    local first, last = interval(member)
    if i == 1 and last < p.tip then gaps = gaps + 1 end
    if last + 1 < recent then break end
    if last + 1 < above then gaps, missing = gaps - 1, missing - (above - last - 1) end
    above = first
  end
  local lowest = call('ZRANGE', DONE, '0', '0')[1]
  local to = lowest and interval(lowest) - 1 or p.tip
  call('HSET', RANGE, 'from', str(p.watermark + 1), 'to', str(to), 'chain', CHAIN, 'updated', updated,
    'service', SERVICE, 'gaps', str(gaps), 'missing', str(missing))
end

-- Writes the views from the truth; `force` also overwrites what an operator edited. Returns '1' where an edit was left.
local function write_views(p, force)
  local _, updated = clock()
  local left = '0'
  if not force and edited(REALTIME, p.view_tip) then left = '1' else
    call('HSET', REALTIME, 'block', str(p.tip), 'chain', CHAIN, 'updated', updated, 'service', SERVICE,
      'type', 'realtime')
    p.view_tip = str(p.tip)
  end
  if not force and edited(PROGRESS, p.view_w) then left = '1' else
    call('HSET', PROGRESS, 'block', str(p.watermark), 'updated', updated, 'service', SERVICE)
    p.view_w = str(p.watermark)
  end
  call('HSET', PROGRESS, 'view_tip', p.view_tip, 'view_w', p.view_w)
  write_range(p, updated)
  return left
end

-- Markers, claims and the common ends of operations ---------------------------------------------------------------

-- Says for operators that n is delivered, where n is among the newest blocks; never read by the program.
local function mark(tip, n, hash, epoch)
  if n > tip - MARKERS then
    call('SET', PREFIX .. 'block:' .. str(n), hash .. ':' .. str(epoch), 'EX', MARKER_SECONDS)
  end
  if n >= MARKERS then call('UNLINK', PREFIX .. 'block:' .. str(n - MARKERS)) end
end

local function claim_keys(from, to)
  local keys = {}
  for n = from, to do table.insert(keys, PREFIX .. 'claim:' .. str(n)) end
  return keys
end

-- The end of both commits: done, watermark, tip, claims, views. No claim outlasts the delivery of its block, whoever holds
-- it: that of a CLAIM which came late is known to nobody, and that of a dead owner would stand for its five minutes.
local function committed(p, from, to, track)
  insert(p, from, to)
  call('DEL', unpack(claim_keys(from, to)))
  if track == 'historical' then
    local _, updated = clock()
    call('HSET', HISTORICAL, 'block', str(to), 'chain', CHAIN, 'updated', updated, 'service', SERVICE,
      'type', 'historical')
  end
  local left = write_views(p, false)
  save(p)
  return { 'COMMITTED', str(p.watermark), str(p.tip), left }
end

-- Sets the truth back: everything above `to`, up to `up_to`, is missing again and will be sent with higher versions.
-- Sealed height and journal stay. Claims stay too: their holders get STALE and give them back.
local function replay(p, to, up_to)
  local tip = p.tip
  local last = math.min(up_to or tip, tip)
  if last > to then remove(p, to + 1, last) end
  if last == tip then p.tip = math.min(tip, to) end
  raise_epoch(p)
  p.replayed = p.epoch
  for n = math.max(to + 1, tip - MARKERS, 0), last do call('UNLINK', PREFIX .. 'block:' .. str(n)) end
  write_views(p, true)
  save(p)
end

for i, kind in ipairs({ 'hash', 'zset', 'hash', 'zset', 'hash', 'hash', 'hash', 'hash', 'zset', 'zset',
  'zset', 'set', 'zset', 'hash' }) do
  local found = call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= kind then
    return { 'WRONGTYPE', KEYS[i], found, kind }
  end
end
