-- SEAL(n, hash, most entries to drop, run tops: n and hash…): everything at or below n is final.
local p = truth()
if not p then return { 'VANISHED' } end
if p.frozen then return { 'REFUSED' } end
local sealed, hash, most = num(1), arg(2), num(3)
if sealed < p.sealed then return { 'OK', '0' } end
if sealed == p.sealed and hash ~= p.sealed_hash then return { 'REFUSED' } end

-- The top of every run: entries whose numbers follow one another and whose parents link.
local function run_tops(entries)
  local tops, count = {}, 0
  for i, e in ipairs(entries) do
    local linked = false
    for j = i + 1, #entries do
      local other = entries[j]
      if other.n > e.n + 1 then break end
      -- The same block under another epoch, or the next block of the same chain.
      linked = linked or other.n == e.n and other.hash == e.hash or other.n == e.n + 1 and other.parent == e.hash
    end
    if not linked then tops[str(e.n) .. ' ' .. e.hash], count = true, count + 1 end
  end
  return tops, count
end

local entries = live_entries(0, sealed)
if sealed > p.sealed then
  local tops, count = run_tops(entries)
  if count ~= (#ARGV - FIXED - 3) / 2 then return { 'REFUSED' } end
  for i = 4, #ARGV - FIXED, 2 do
    local top = arg(i) .. ' ' .. arg(i + 1)
    if not tops[top] then return { 'REFUSED' } end
    -- One that is said twice would stand for another that is not said.
    tops[top] = nil
  end
  for _, e in ipairs(entries) do
    if e.n == sealed and e.hash ~= hash then return { 'REFUSED' } end
  end
  p.sealed, p.sealed_hash = sealed, hash
end

-- What is being sent stays for its COMMIT, unless its block was delivered through another entry.
local dropped, more = 0, '0'
for _, e in ipairs(entries) do
  if e.state == 'done' or touches_done(p, e.n, e.n) then
    if dropped == most then more = '1' break end
    drop_entry(p, e)
    dropped = dropped + 1
  end
end
save(p)
return { 'OK', more }
