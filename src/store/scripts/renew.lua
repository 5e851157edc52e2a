-- RENEW(from, to, token, claim's milliseconds): NO where any block that is not delivered is no longer the token's.
local p = truth()
if not p then return { 'VANISHED' } end
local from, to, token, claim_ms = num(1), num(2), arg(3), arg(4)
local reply = 'OK'
for n = from, to do
  local key = PREFIX .. 'claim:' .. str(n)
  if call('GET', key) == token then call('PEXPIRE', key, claim_ms)
  elseif not touches_done(p, n, n) then reply = 'NO' end
end
return { reply }
