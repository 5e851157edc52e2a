-- PUBLISH_FILTER(version, checked tip and epoch or nothing, number of what joins, key and own start or nothing…, keys of what leaves…): compare-and-set.
local p = truth()
if not p then return { 'VANISHED' } end
count_barrier()
if p.filter_version ~= num(1) then return { 'STALE' } end
local checked, leaves = num(2), 5 + 2 * num(4)
-- Nothing was filtered without the first publication, so it makes no duties, and it counts although it may be empty.
local is_first = p.filter_version == 0
local is_changed, starts, joined = is_first, {}, {}
for i = leaves, #ARGV - FIXED do
  if call('SREM', FILTER, arg(i)) == 1 then is_changed = true end
end
for i = 5, leaves - 1, 2 do
  if call('SADD', FILTER, arg(i)) == 1 then
    is_changed = true
    local from = num(i + 1) or p.filter_checked + 1
    if not joined[from] then
      joined[from] = {}
      table.insert(starts, from)
    end
    table.insert(joined[from], arg(i))
  end
end
table.sort(starts)
for _, from in ipairs(starts) do
  if from <= p.tip and not is_first then
    local id = str(call('HINCRBY', PROGRESS, 'duties', 1))
    call('ZADD', RESCAN, id, id .. ':' .. str(from) .. '-' .. str(p.tip))
    for _, key in ipairs(joined[from]) do call('SADD', PREFIX .. 'rescan:' .. id, key) end
  end
end
if is_changed then p.filter_version = p.filter_version + 1 end
if is_first then p.filter_checked = p.tip end
-- Not the tip of now: what was delivered since the list was read may lack what joined it since.
if checked and num(3) == p.epoch then
  p.filter_checked = math.max(p.filter_checked, math.min(checked, p.tip))
end
save(p)
return { 'OK', str(p.filter_version) }
