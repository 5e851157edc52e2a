-- RELEASE(from, to, token): gives back what is still the token's.
if not truth() then return { 'VANISHED' } end
local token = arg(3)
for _, key in ipairs(claim_keys(num(1), num(2))) do
  if call('GET', key) == token then call('DEL', key) end
end
return { 'OK' }
