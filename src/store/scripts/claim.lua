-- CLAIM(from, to, owner, claim's and heartbeat's milliseconds, most intervals): all of the range, or nothing.
local p = truth()
if not p then return { 'VANISHED' } end
local from, to, owner, claim_ms, heartbeat_ms, most = num(1), num(2), arg(3), arg(4), arg(5), num(6)
if p.frozen then return { 'FROZEN', p.frozen } end
if touches_done(p, from, to) then return { 'DONE' } end

-- Beyond the cap nothing may open one more hole: only what borders on the watermark or on an interval.
if call('ZCARD', DONE) >= most and from > p.watermark + 1 then
  local _, below = interval_before(from)
  if below ~= from - 1 and not call('ZRANGEBYSCORE', DONE, str(to + 1), str(to + 1))[1] then return { 'FULL' } end
end

local keys = claim_keys(from, to)
local beats, first, last, wait = {}, nil, nil, nil
for i, value in ipairs(call('MGET', unpack(keys))) do
  local holder = value and string.match(value, '^(.*):%d+$')
  if holder and holder ~= owner then
    beats[holder] = beats[holder] or call('PTTL', PREFIX .. 'owner:' .. holder)
    -- A holder without a heartbeat is dead: its claim is taken over.
    if beats[holder] ~= -2 then
      local n = from + i - 1
      first, last = first or n, n
      wait = math.min(wait or beats[holder], beats[holder], call('PTTL', keys[i]))
    end
  end
end
if first then return { 'HELD', str(first), str(last), str(math.max(0, wait)) } end

-- Own claims are granted again under a new fence: that covers a lost reply.
local token = owner .. ':' .. str(call('HINCRBY', PROGRESS, 'fence', 1))
for _, key in ipairs(keys) do call('SET', key, token, 'PX', claim_ms) end
-- Claiming is a sign of life; without it a first claim before the first heartbeat could be taken over at once.
call('SET', PREFIX .. 'owner:' .. owner, '1', 'PX', heartbeat_ms)

local reply = { 'OK', token, str(p.epoch), str(p.sealed), str(p.filter_version), str(call('ZCARD', RETRACTING)) }
for _, e in ipairs(live_entries(from - 1, to + 1)) do
  table.insert(reply, str(e.n))
  table.insert(reply, e.hash)
end
return reply
