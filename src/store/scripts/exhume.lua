-- EXHUME(key…): removes dead letters; how many there were.
if not truth() then return { 'VANISHED' } end
local removed = 0
for i = 1, #ARGV - FIXED do
  removed = removed + call('HDEL', DEAD, arg(i))
  call('ZREM', DEAD_KEYS, arg(i))
  call('ZREM', DEAD_AGE, arg(i))
end
return { 'OK', str(removed) }
