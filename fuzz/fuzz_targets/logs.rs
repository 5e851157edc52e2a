#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chaintap::fuzzing::logs(data));
