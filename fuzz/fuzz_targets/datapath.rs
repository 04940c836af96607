#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| rawr_fuzz::datapath::run(input));
