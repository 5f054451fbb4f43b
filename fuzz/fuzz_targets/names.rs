//! Names that events, archives and modules give: none climbs, and what is accepted once is accepted
//! again.
#![no_main]

use ionfs::event::{clean_path, is_draft, is_event_type};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = is_draft(text);
    if is_event_type(text) {
        assert!(text.len() <= 200 && !text.contains(['/', '\0', '\n']));
    }
    if let Some(clean) = clean_path(text) {
        assert!(clean.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        assert!(!clean.contains('\0') && clean.len() <= text.len());
        assert_eq!(clean_path(&clean).as_deref(), Some(&*clean));
    }
});
