-- BURY(most refused, most undecodable, key, kind, buried at, letter…): all of them, or none where there is no room.
if not truth() then return { 'VANISHED' } end
count_barrier()
local most_refused, most_undecodable = num(1), num(2)
local refused = call('HLEN', DEAD) - call('ZCARD', DEAD_AGE)
for i = 3, #ARGV - FIXED, 4 do
  if arg(i + 1) == 'refused' and call('HEXISTS', DEAD, arg(i)) == 0 then refused = refused + 1 end
end
if refused > most_refused then return { 'NO' } end
for i = 3, #ARGV - FIXED, 4 do
  local key, kind = arg(i), arg(i + 1)
  call('HSET', DEAD, key, arg(i + 3))
  call('ZADD', DEAD_KEYS, '0', key)
  if kind == 'undecodable' then call('ZADD', DEAD_AGE, arg(i + 2), key) else call('ZREM', DEAD_AGE, key) end
end
local surplus = call('ZCARD', DEAD_AGE) - most_undecodable
if surplus > 0 then
  for _, key in ipairs(call('ZRANGE', DEAD_AGE, '0', str(surplus - 1))) do
    call('HDEL', DEAD, key)
    call('ZREM', DEAD_KEYS, key)
    call('ZREM', DEAD_AGE, key)
  end
end
return { 'OK' }
