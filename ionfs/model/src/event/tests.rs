use proptest::prelude::*;

use super::*;
use crate::limits::Limits;

#[test]
fn a_byte_order_mark_says_nothing() {
    assert_eq!(parse(b"\xef\xbb\xbf{\"eventType\": \"a\"}"), parse(b"{\"eventType\": \"a\"}"));
    assert_eq!(parse(b"\xef\xbb\xbf"), ParsedEventFile::Empty);
    assert!(matches!(parse(b"{\xef\xbb\xbf}"), ParsedEventFile::Invalid(_)));
}

#[test]
fn both_forms_say_the_same() {
    let pairs = br#"[{"key": "eventType", "value": "frame"}, {"key": "files", "value": "a.png,,b.png"}, {"key": "n", "value": "7"}]"#;
    let object = br#"{"eventType": "frame", "files": ["a.png", "b.png"], "n": 7}"#;
    assert_eq!(parse(pairs), parse(object));
    let ParsedEventFile::Complete(file) = parse(object) else { panic!("not complete") };
    assert_eq!(file.event_type.as_deref(), Some("frame"));
    assert_eq!(file.files, ["a.png", "b.png"]);
    assert_eq!(file.data, [KeyValue { key: "n".into(), value: "7".into() }]);
}

#[test]
fn a_near_miss_of_a_reserved_word_is_a_slip_and_an_honest_value_is_none() {
    let slip = |text: &str| {
        let ParsedEventFile::Complete(file) = parse(text.as_bytes()) else {
            panic!("not complete: {text}")
        };
        file.find_slip(|path| path == "a.png")
    };
    for key in ["Files", "FILES", "file_s", "fi-les", "File", "file"] {
        let expected = format!("did you mean \"files\"? There is a value {key:?} and no \"files\"");
        assert_eq!(
            slip(&format!(r#"{{"eventType": "t", "{key}": ["x"]}}"#)),
            Some(expected.clone())
        );
        let pairs = format!(
            r#"[{{"key":"eventType","value":"t"}},{{"key":"{key}","value":"b.png, a.png"}}]"#
        );
        assert_eq!(slip(&pairs), Some(expected));
    }
    for key in ["EventType", "event_type", "eventtype", "event-type"] {
        let expected =
            format!("did you mean \"eventType\"? There is a value {key:?} and no \"eventType\"");
        assert_eq!(slip(&format!(r#"{{"{key}": "t"}}"#)), Some(expected));
    }
    for honest in [
        r#"{"eventType": "t", "file": "x.png"}"#,
        r#"{"eventType": "t", "Files": 12, "file": {"name": "a.png"}}"#,
        r#"{"eventType": "t", "files": [], "file": "a.png", "Files": ["x"]}"#,
        r#"{"eventType": "t", "event_type": "click", "type": "x"}"#,
        r#"{"eventType": "t", "profiles": ["x"], "filename": "a.png", "filesystem": ["x"]}"#,
    ] {
        assert_eq!(slip(honest), None, "{honest}");
    }
}

#[test]
fn what_a_program_has_not_finished_is_a_draft_in_an_inbox() {
    for draft in [
        ".clip.mp4.Xa3bC9",
        "clip.mp4.crdownload",
        "Unconfirmed 4711.crdownload",
        "clip.mp4.part",
        "clip.Xa3b.mp4.PART",
        "clip.download",
        "clip.mp4.filepart",
        "clip.mp4.1f2e3d4c.partial",
        "clip.mp4.aria2",
        "clip.mp4.!qB",
        "clip.mp4~",
        "tmpa1_b2c3d",
    ] {
        assert!(is_inbox_draft(draft), "{draft}");
    }
    for event in ["clip.mp4", "access.log.1", "sedation1", "part", "download", "a.part.rar"] {
        assert!(!is_inbox_draft(event), "{event}");
    }
}

#[test]
fn names_that_programs_rename_later_are_drafts() {
    for draft in ["tmpa1_b2c3d", ".x", "x~", "x.tmp", "sedAb12Cd", "made.json.4711", "made.1"] {
        assert!(is_event_draft(draft), "{draft}");
    }
    for event in [
        "tmp",
        "tmpa1_b2c3",
        "tmpA1_b2c3d",
        "tmpa1_b2c3d.json",
        "made.json",
        "made.v1",
        "made1",
        "4711",
    ] {
        assert!(!is_event_draft(event), "{event}");
    }
    assert!(!is_draft("frame.0001"), "the files of out/data are uploaded as before");
}

#[test]
fn every_proper_prefix_of_a_document_is_incomplete() {
    let document = br#"  {"eventType": "frame", "files": ["a\u00e9.png"], "n": [1, {"x": null}]}"#;
    for end in 0..document.len() {
        assert!(
            matches!(parse(&document[..end]), ParsedEventFile::Empty | ParsedEventFile::Incomplete),
            "prefix of {end} bytes"
        );
    }
    assert!(matches!(parse(document), ParsedEventFile::Complete(_)));
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    for path in ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\0b"] {
        assert_eq!(clean_path(path), None, "{path:?}");
    }
    assert_eq!(clean_path("./a//b").as_deref(), Some("a/b"));
}

#[test]
fn a_deeply_nested_document_is_refused_and_not_a_stack_overflow() {
    for bomb in [
        "[".repeat(200_000) + &"]".repeat(200_000),
        format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000)),
    ] {
        assert!(matches!(parse(bomb.as_bytes()), ParsedEventFile::Invalid(_)));
    }
}

#[test]
fn what_is_no_string_is_kept_to_the_letter() {
    const TEXT: &[u8] = br#" { "eventType":"a" , "n" : 1234567890123456789012.50, "l":[ 1,{"]":"\"}"} ], "s" : "\u00e9,:" } "#;
    let ParsedEventFile::Complete(file) = parse(TEXT) else { panic!("not complete") };
    let values: Vec<_> = file.data.iter().map(|pair| (&*pair.key, &*pair.value)).collect();
    assert_eq!(
        values,
        [("n", "1234567890123456789012.50"), ("l", r#"[ 1,{"]":"\"}"} ]"#), ("s", "\u{e9},:")]
    );
}

#[test]
fn each_limit_of_an_event_is_told_apart_from_a_mistake() {
    let limits =
        Limits { event_values: 2, event_value_bytes: 10, event_files: 1, ..Limits::default() };
    let over = |text: &str| match parse_within(text.as_bytes(), &limits) {
        ParsedEventFile::TooBig(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        parse_within(br#"{"a":1,"b":2,"files":"x"}"#, &limits),
        ParsedEventFile::Complete(_)
    ));
    assert_eq!(over(r#"{"a":1,"b":2,"c":3}"#), "an event may have 2 values");
    assert_eq!(over(r#"[{"key":"files","value":"x,y"}]"#), "an event may name 1 files");
    assert!(over(r#"{"abc":"12345678"}"#).contains("may take 10 bytes"));
}

proptest! {
    #[test]
    fn parsing_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn parsing_survives_almost_json(text in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,64}") {
        let _ = parse(text.as_bytes());
    }

    #[test]
    fn what_was_written_is_read(
        event_type in "[a-z][a-z0-9._-]{0,20}",
        files in proptest::collection::vec("[a-z/ ]{1,12}", 0..5),
        n in any::<i64>(),
    ) {
        let document = json!({"eventType": event_type, "files": files, "n": n});
        let ParsedEventFile::Complete(file) = parse(document.to_string().as_bytes()) else { panic!("not complete") };
        prop_assert_eq!(file.event_type, Some(event_type));
        prop_assert_eq!(file.files, files);
        prop_assert_eq!(file.data[0].value.clone(), n.to_string());
    }

    /// The members that this parser finds are those that serde_json's own tree has.
    #[test]
    fn members_are_those_of_a_whole_reader(
        text in "\\{(\"[a-c\\\\\\]\\[{}:,]{0,4}\" ?: ?(1.50|null|\"[a,:{}\\[\\]]{0,5}\"\
                 |\\[1, ?\"\\]\"\\]|\\{\"x\": ?\\{\\}\\}),? ?){0,4}\\}",
    ) {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        let ParsedEventFile::Complete(file) = parse(text.as_bytes()) else { panic!("not complete: {text}") };
        for pair in &file.data {
            prop_assert!(fields.contains_key(&pair.key), "{}", text);
        }
        for (key, value) in &fields {
            let last = file.data.iter().rfind(|pair| pair.key == *key).unwrap();
            let read = serde_json::from_str(&last.value).unwrap_or(Value::Null);
            prop_assert!(value.as_str() == Some(&last.value) || *value == read, "{}", text);
        }
    }

    #[test]
    fn a_clean_path_never_climbs(path in "[a./]{0,16}") {
        if let Some(clean) = clean_path(&path) {
            prop_assert!(clean.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }
}
