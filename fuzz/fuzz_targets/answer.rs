//! Answers of APIs and the files that declare them: any text is a file or an error, any bytes are
//! items or an error.
#![no_main]

use ion_fetch::api::ApiFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (path, body) = input;
    let Ok(path) = serde_json::to_string(path) else { return };
    let text = format!("url: x\nitems: {path}\nid: $.id\ntime: $.time");
    let Ok(file) = ApiFile::read(&text) else { return };
    let Ok(document) = file.document(body, None) else { return };
    if let Ok(items) = file.page(&document) {
        let _ = file.since_of(&document, &items);
    }
});
