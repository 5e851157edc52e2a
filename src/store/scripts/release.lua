-- RELEASE(from, to, token): gives back what is still the token's.
if not truth() then return { 'VANISHED' } end
release(num(1), num(2), arg(3))
return { 'OK' }
