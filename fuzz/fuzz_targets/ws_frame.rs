#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chaintap::fuzzing::ws_frame(data));
