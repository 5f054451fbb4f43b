//! Event files: any bytes are judged; a complete document stays the one it is, and no prefix of it
//! is another.
#![no_main]

use ionfs::event::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse(bytes);
});
