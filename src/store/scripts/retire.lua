-- RETIRE(owner, claim keys…): ends the owner's heartbeat; gives back its re-scan, and those of the claims that it holds.
local owner = arg(1)
call('DEL', PREFIX .. 'owner:' .. owner)
call('HDEL', RESCAN_OWNERS, owner)
for i = FIXED + 2, #ARGV do
  local holder = string.match(call('GET', ARGV[i]) or '', '^(.*):%d+$')
  if holder == owner then call('DEL', ARGV[i]) end
end
return { 'OK' }
