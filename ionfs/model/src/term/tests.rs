use proptest::prelude::*;

use super::*;

fn pairs(all: &[(&str, &str)]) -> Vec<KeyValue> {
    let pair =
        |(key, value): &(&str, &str)| KeyValue { key: (*key).into(), value: (*value).into() };
    all.iter().map(pair).collect()
}

fn holds(term: &str, data: &[(&str, &str)]) -> bool {
    let term: Term = term.parse().unwrap();
    term.holds(&TermSubject { data: &pairs(data), files: &["a/b.png", "c.txt"] })
}

#[test]
fn each_kind_of_term_holds_for_what_it_says() {
    let car = &[("kind", "car"), ("score", "0.81"), ("note", "")][..];
    for term in [
        "kind=car",
        "kind=bus|car",
        "kind=c*",
        "kind=c?r",
        "kind=*",
        "kind!=bus",
        "kind!=b*|truck",
        "note=",
        "note=|x",
        "score>=0.8",
        "score>0.8",
        "score<=8.1e-1",
        "score<1",
        "kind",
        "!colour",
        "colour!=red",
        "files=*.png",
        "files=c.txt",
        "files!=*.jpg",
        "files",
    ] {
        assert!(holds(term, car), "{term}");
    }
    for term in [
        "kind=bus",
        "kind=ca",
        "kind=?",
        "kind!=car",
        "kind!=c*|bus",
        "note=x",
        "score>=0.82",
        "score>0.81",
        "score<0.81",
        "score<=0.8",
        "kind>=1",
        "colour",
        "!kind",
        "colour=red",
        "colour=*",
        "colour>=0",
        "files=*.jpg",
        "!files",
    ] {
        assert!(!holds(term, car), "{term}");
    }
}

#[test]
fn one_of_several_values_is_enough_and_for_differing_none_may_be_equal() {
    let tags = &[("tag", "old"), ("tag", "7"), ("tag", "new")][..];
    for term in ["tag=new", "tag=old", "tag>=7", "tag!=other"] {
        assert!(holds(term, tags), "{term}");
    }
    for term in ["tag!=new", "tag>7", "tag=other"] {
        assert!(!holds(term, tags), "{term}");
    }
}

#[test]
fn an_escape_takes_the_special_meaning_away() {
    let odd = &[("a=b", "x|y"), ("!c", "*"), ("@d", "\\"), ("e>f", "1")][..];
    for term in [r"a\=b=x\|y", r"\!c=\*", r"\@d=\\", r"e\>f=1", r"e\>f>=1", r"\!c"] {
        assert!(holds(term, odd), "{term}");
    }
    for term in [r"a\=b=x", r"\!c=\?", r"!\!c"] {
        assert!(!holds(term, odd), "{term}");
    }
    // Only the first operator is one: what follows belongs to the value.
    assert!(holds("a=b=c", &[("a", "b=c")]));
    assert!(holds("url=https://x/?q=1", &[("url", "https://x/yq=1")]));
}

#[test]
fn whole_numbers_are_compared_exactly_and_words_are_no_numbers() {
    let large = "9007199254740993";
    assert!(holds("id>9007199254740992", &[("id", large)]));
    assert!(!holds("id>9007199254740993", &[("id", large)]));
    for word in ["inf", "nan", "", "1 ", "0x10", "1e999", "eE", "-"] {
        assert!(!holds("n>=-1e300", &[("n", word)]), "{word}");
        assert!(!holds("n<=1e300", &[("n", word)]), "{word}");
    }
}

#[test]
fn what_is_no_term_is_refused_with_the_way_out() {
    let refused = |text: &str| text.parse::<Term>().unwrap_err().to_string();
    for (text, part) in [
        ("", "has no key"),
        ("=car", "has no key"),
        ("!=car", "has no key"),
        ("!", "has no key"),
        (">=1", "has no key"),
        ("score>=high", "\"high\", which is no number"),
        ("score>", "which is no number"),
        ("!kind=car", "write KEY!=VALUE"),
        ("!score>1", "write KEY!=VALUE"),
        ("kind=car\\", "ends in a backslash"),
        ("files>=3", "files=*.png"),
        ("@new_video", "only `ion find` takes"),
    ] {
        assert!(refused(text).contains(part), "{text}: {}", refused(text));
    }
    assert!(refused(&"a".repeat(TERM_BYTES_MAX + 1)).contains("has 4097 bytes"));
    let many = vec!["a"; TERMS_MAX + 1];
    assert_eq!(Terms::parse(&many).unwrap_err(), TermError::TooMany(TERMS_MAX + 1));
}

#[test]
fn all_terms_of_a_list_must_hold_and_the_first_that_does_not_is_explained() {
    let terms = Terms::parse(&["kind=car", "score>=0.8", "!old"]).unwrap();
    let good = pairs(&[("kind", "car"), ("score", "0.9")]);
    assert!(terms.hold(&TermSubject { data: &good, files: &[] }));
    let data = pairs(&[("kind", "car"), ("score", "0.41")]);
    let subject = TermSubject { data: &data, files: &[] };
    assert!(!terms.hold(&subject));
    let unmet = terms.first_unmet(&subject).unwrap();
    assert_eq!(unmet.compared_with(&subject), "score>=0.8 (score=0.41)");
    let nothing = TermSubject { data: &[], files: &[] };
    assert_eq!(terms.first_unmet(&nothing).unwrap().compared_with(&nothing), "kind=car (no kind)");
    let twice = pairs(&[("old", "1"), ("old", "2")]);
    let twice = TermSubject { data: &twice, files: &[] };
    let missing: Term = "!old".parse().unwrap();
    assert_eq!(missing.compared_with(&twice), "!old (old=1 and 1 more)");
    assert!(Terms::default().hold(&nothing));
}

#[test]
fn a_list_is_stored_as_its_texts() {
    let terms = Terms::parse(&["kind=car|bus", r"a\=b"]).unwrap();
    let stored = serde_json::to_string(&terms).unwrap();
    assert_eq!(stored, r#"["kind=car|bus","a\\=b"]"#);
    assert_eq!(serde_json::from_str::<Terms>(&stored).unwrap(), terms);
    assert!(serde_json::from_str::<Terms>(r#"["=x"]"#).is_err());
}

/// Matches as the words of the manual say it: the oracle of the property below.
fn matches_slowly(pattern: &[TermLetter], value: &[char]) -> bool {
    match (pattern.split_first(), value.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((TermLetter::Special('*'), rest)), None) => matches_slowly(rest, value),
        (Some((TermLetter::Special('*'), rest)), Some((_, tail))) => {
            matches_slowly(rest, value) || matches_slowly(pattern, tail)
        }
        (Some((TermLetter::Special('?'), rest)), Some((_, tail))) => matches_slowly(rest, tail),
        (Some((letter, rest)), Some((char, tail))) => {
            letter.char() == *char && matches_slowly(rest, tail)
        }
        (Some(_), None) => false,
    }
}

proptest! {
    #[test]
    fn any_text_is_a_term_or_an_error_and_a_term_is_written_as_it_was_read(text in ".{0,20}") {
        if let Ok(term) = text.parse::<Term>() {
            prop_assert_eq!(term.to_string(), text);
            let data = pairs(&[(term.key(), "1")]);
            let _ = term.holds(&TermSubject { data: &data, files: &[] });
        }
    }

    #[test]
    fn equal_and_differing_are_opposites(
        pattern in r"[ab*?|\\é.\n]{0,6}[ab]",
        values in proptest::collection::vec("[abé.\n]{0,4}", 0..3),
    ) {
        let data: Vec<KeyValue> =
            values.iter().map(|value| KeyValue { key: "k".into(), value: value.clone() }).collect();
        let subject = TermSubject { data: &data, files: &[] };
        if let Ok(equal) = format!("k={pattern}").parse::<Term>() {
            let differing: Term = format!("k!={pattern}").parse().unwrap();
            prop_assert_ne!(equal.holds(&subject), differing.holds(&subject));
        }
    }

    #[test]
    fn wildcards_match_as_the_manual_says(
        pattern in r"([ab*?é.]|\\[*?]){0,7}",
        value in r"[ab*?é.\n]{0,7}",
    ) {
        let read = letters(&pattern).unwrap();
        let chars: Vec<char> = value.chars().collect();
        prop_assert_eq!(value_pattern(&read).matches(&value), matches_slowly(&read, &chars));
    }
}
