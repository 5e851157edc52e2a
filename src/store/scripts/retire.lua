-- RETIRE(owner, claim keys…): ends the owner's heartbeat, and with it his re-scan; releases those of the claims that
-- he holds.
local owner = arg(1)
call('DEL', PREFIX .. 'owner:' .. owner)
for i = FIXED + 2, #ARGV do
  local holder = string.match(call('GET', ARGV[i]) or '', '^(.*):%d+$')
  if holder == owner then call('DEL', ARGV[i]) end
end
return { 'OK' }
