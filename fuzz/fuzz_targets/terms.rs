//! Terms that people and pipeline files give, judged on values that modules give: any text is a
//! term or an error, and a term and its opposite never agree.
#![no_main]

use ionfs::event::KeyValue;
use ionfs::term::{Term, TermSubject};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &str)| {
    let (text, value, file) = input;
    let Ok(term) = text.parse::<Term>() else { return };
    assert_eq!(term.to_string(), text);
    let data = [KeyValue { key: term.key().to_owned(), value: value.to_owned() }];
    let subject = TermSubject { data: &data, files: &[file] };
    let holds = term.holds(&subject);
    let _ = term.compared_with(&subject);
    if let Some((key, pattern)) = text.split_once('=')
        && !key.contains(['!', '<', '>', '\\'])
    {
        let opposite: Term = format!("{key}!={pattern}").parse().expect("only its operator differs");
        assert_ne!(opposite.holds(&subject), holds);
    }
});
