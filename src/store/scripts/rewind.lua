-- REWIND(epoch, number and canonical hash of what the caller saw sealed or nothing twice, entries: n, hash and epoch…):
-- these blocks left the chain. Compare-and-set, so that of several who noticed one takes them back, and a lost reply
-- raises no epoch twice.
local p = truth()
if not p then return { 'VANISHED' } end
local seen, canonical = num(2), arg(3)
if p.epoch ~= num(1) then return { 'STALE' } end
if p.frozen then return { 'DEEP', p.frozen } end

-- What is final left the chain: nothing is done any more until someone has looked.
local function freeze(what)
  p.frozen = string.format('the sealed block is %s (%s), but %s', str(p.sealed), p.sealed_hash, what)
  call('HSET', PROGRESS, 'frozen', p.frozen)
  return { 'DEEP', p.frozen }
end
if seen and p.sealed_hash ~= '' then
  -- Another block was sealed since: the hash is not that of its height, and what was seen may be of a stale branch.
  if seen ~= p.sealed then return { 'STALE' } end
  if canonical ~= p.sealed_hash then
    return freeze(string.format('the chain has %s at its height', canonical))
  end
end
local orphans, is_orphan = {}, {}
for i = 4, #ARGV - FIXED, 3 do
  local e = entry(field_of(num(i), arg(i + 1), num(i + 2)))
  -- One that is being taken back already was named before.
  if e and not e.retract_epoch then
    if e.n <= p.sealed then
      return freeze(string.format('the delivered block %s (%s) below it is no longer in the chain', str(e.n), e.hash))
    end
    table.insert(orphans, e)
    is_orphan[e.hash] = true
  end
end
if #orphans == 0 then return progress_reply('OK', p) end

raise_epoch(p)
for _, e in ipairs(orphans) do
  e.retract_epoch = str(p.epoch)
  e.state = 'retracting:' .. e.retract_epoch
  put_entry(e)
end

-- Whether another block at this height was delivered and stays.
local function is_replaced(n)
  for _, other in ipairs(live_entries(n, n)) do
    if other.state == 'done' and not is_orphan[other.hash] then return true end
  end
  return false
end
for _, e in ipairs(orphans) do
  if not is_replaced(e.n) then
    if touches_done(p, e.n, e.n) then remove(p, e.n, e.n) end
    call('UNLINK', PREFIX .. 'block:' .. str(e.n), PREFIX .. 'claim:' .. str(e.n))
  end
  -- The blocks that come in their place may be filtered with a list that was fetched after the last check.
  p.filter_checked = math.min(p.filter_checked, e.n - 1)
end
-- The chain may have become shorter: a tip above it would let every lower head be ignored.
local highest = call('ZREVRANGE', DONE, '0', '0')[1]
p.tip = p.watermark
if highest then p.tip = select(2, interval(highest)) end
write_views(p, false)
save(p)
return progress_reply('OK', p)
