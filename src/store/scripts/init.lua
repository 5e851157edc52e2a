-- INIT(first block to deliver on an empty truth, or nothing where there must be one): opens the state or begins it; applies an operator's edits.
local first = num(1)

local function refused(...) return { 'REFUSED', string.format(...) } end

-- A number that a person may have typed, or an error text.
local function typed(key, field)
  local value = call('HGET', key, field)
  if not value then return nil end
  local n = string.match(value, '^%-?%d+$') and tonumber(value)
  if not n or n < -1 or n >= 9007199254740991 then
    return nil, string.format("%s.%s holds '%s', which is not a block number: HSET it to one, or HDEL it", key, field,
      value)
  end
  return n
end

for _, key in ipairs({ PROGRESS, REALTIME, HISTORICAL, RANGE }) do
  local chain = call('HGET', key, 'chain')
  if chain and chain ~= CHAIN then
    return refused('%s belongs to chain %s, not to chain %s: give each chain a Redis database of its own', key, chain,
      CHAIN)
  end
end

local shown_tip, wrong_tip = typed(REALTIME, 'block')
local shown_w, wrong_w = typed(PROGRESS, 'block')
local range_from, wrong_range = typed(RANGE, 'from')
local shown_historical, wrong_historical = typed(HISTORICAL, 'block')
local wrong = wrong_tip or wrong_w or wrong_range or wrong_historical
if wrong then return refused('%s', wrong) end

local function answer(p, fresh, edits)
  local reply = progress_reply('OK', p)
  table.insert(reply, fresh)
  for _, edit in ipairs(edits) do table.insert(reply, edit) end
  return reply
end

local schema = call('HGET', PROGRESS, 'schema')
if not schema then
  if not first then
    return refused('EXPECT_STATE is set, but Redis holds no state of chain %s (no %s): see that REDIS_URL names the right '
      .. 'server, or restore its data; to begin anew, unset EXPECT_STATE', CHAIN, PROGRESS)
  end
  local last, edits = first - 1, {}
  -- Views without truth were set by hand or by an older system. The lowest wins: a block too many is a duplicate, a
  -- block too few is a loss.
  local candidates = { shown_tip or false, shown_w or false, range_from and range_from - 1 or false,
    range_from and shown_historical or false }
  local lowest
  for i = 1, 4 do
    if candidates[i] and (not lowest or candidates[i] < lowest) then lowest = candidates[i] end
  end
  if lowest then
    last = lowest
    table.insert(edits, string.format('the views say %s: block %s is the first to deliver', str(last), str(last + 1)))
  end
  local epoch = clock()
  local p = { watermark = last, tip = last, sealed = -1, sealed_hash = '', epoch = epoch, filter_version = 0,
    filter_checked = last, done_blocks = 0, journal_bytes = 0, replayed = 0 }
  -- What a lost progress left behind speaks of another life of this store.
  call('UNLINK', DONE)
  call('HSET', PROGRESS, 'schema', SCHEMA, 'chain', CHAIN, 'start', str(last + 1), 'fence', '0', 'barrier',
    '0')
  save(p)
  write_views(p, true)
  return answer(p, '1', edits)
end
if schema ~= SCHEMA then
  return refused('%s was written by another version of this program (schema %s, not %s): run that version', PROGRESS,
    schema, SCHEMA)
end

local p = truth()
local edits, lowest = {}, nil
for _, view in ipairs({
  { key = REALTIME, shown = shown_tip, copy = p.view_tip, is = p.tip, name = 'tip' },
  { key = PROGRESS, shown = shown_w, copy = p.view_w, is = p.watermark, name = 'watermark' },
}) do
  if view.shown and str(view.shown) ~= view.copy then
    if view.shown > view.is then
      return refused('%s.block was raised to %s, above the %s %s: to skip blocks knowingly, run `chaintap skip --to %s`; '
        .. 'otherwise set it back to %s', view.key, str(view.shown), view.name, str(view.is), str(view.shown),
        str(view.is))
    end
    if view.shown < view.is then
      table.insert(edits, string.format('%s.block was lowered from %s to %s: delivering again from %s', view.key,
        str(view.is), str(view.shown), str(view.shown + 1)))
      lowest = math.min(lowest or view.shown, view.shown)
    end
  end
end
if lowest then replay(p, lowest) else write_views(p, true) end
return answer(p, '0', edits)
