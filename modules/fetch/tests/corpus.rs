//! The tests of Python's feedparser: 2,242 feeds of every version and with every mistake. feedparser
//! itself reads them beside this crate, and both must find the same.
//!
//! Where this crate departs on purpose, `departures.txt` says in which files, in which field and
//! why. The test fails for a departure that is not listed there, and for a listed one that does not
//! happen. `scripts/setup-tests.sh` installs feedparser and its tests.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use html5ever::ParseOpts;
use html5ever::serialize::{SerializeOpts, serialize};
use html5ever::tendril::TendrilSink;
use ion_fetch::feed::{Author, Feed, Item, read_feed};
use markup5ever_rcdom::{Handle, NodeData, RcDom, SerializableHandle};
use serde_json::{Value, json};
use url::Url;

/// A departure: a file and the field in which it is.
type Departures = BTreeMap<(String, String), String>;

#[test]
fn feeds_are_read_as_feedparser_reads_them() {
    let tests = cache().join("feedparser/tests");
    let told = feedparser(&tests);
    let mut departures = Departures::new();
    let (mut files, mut compared) = (0, 0);
    for line in told.lines() {
        let theirs: Value = serde_json::from_str(line).unwrap();
        files += 1;
        compared += compare(&tests, &theirs, &mut departures);
    }
    let departing: std::collections::BTreeSet<_> =
        departures.keys().map(|(file, _)| file).collect();
    println!(
        "{files} files, {} equal in each of {compared} fields, {} departing",
        files - departing.len(),
        departing.len()
    );
    assert_eq!(files, 2242, "the corpus has other files");
    let wrong = judge(&departures);
    assert!(wrong.is_empty(), "{} mistakes:\n{}", wrong.len(), wrong.join("\n"));
}

/// Returns the folder for programs of other projects.
fn cache() -> PathBuf {
    match std::env::var_os("ION_TEST_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/ion-test"),
    }
}

/// Returns a line for each file, with what feedparser reads in it.
#[expect(clippy::disallowed_methods, reason = "a test starts the program that it compares with")]
fn feedparser(tests: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/feedparser_corpus.py");
    let output = std::process::Command::new(cache().join("feedparser/bin/python"))
        .arg(script)
        .arg(tests)
        .output()
        .expect("scripts/setup-tests.sh installs feedparser");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Compares one file, and returns how many fields were compared.
fn compare(tests: &Path, theirs: &Value, departures: &mut Departures) -> usize {
    let file = theirs["file"].as_str().unwrap();
    let bytes = std::fs::read(tests.join(file)).unwrap();
    let header = |name: &str| theirs["headers"].get(name).and_then(Value::as_str);
    let address = header("content-location").and_then(|address| Url::parse(address).ok());
    // A document without any feed is an empty one to feedparser.
    let ours = read_feed(&bytes, header("content-type"), address.as_ref()).unwrap_or_default();
    let mut compared = 0;
    let mut note = |field: &str, ours: Value, theirs: Value| {
        compared += 1;
        if ours != theirs {
            departures
                .entry((file.to_owned(), field.to_owned()))
                .or_insert_with(|| format!("ours {ours}, feedparser's {theirs}"));
        }
    };
    for (field, ours, theirs) in feed_fields(&ours, theirs) {
        note(field, ours, theirs);
    }
    let items = theirs["items"].as_array().unwrap();
    note("items", json!(ours.items.len()), json!(items.len()));
    for (ours, theirs) in ours.items.iter().zip(items) {
        for (field, ours, theirs) in item_fields(ours, theirs) {
            note(field, ours, theirs);
        }
    }
    compared
}

fn feed_fields(ours: &Feed, theirs: &Value) -> Vec<(&'static str, Value, Value)> {
    vec![
        ("feed.title", json!(ours.title), plain(&theirs["title"])),
        ("feed.link", json!(ours.link), theirs["link"].clone()),
        ("feed.language", json!(ours.language), theirs["language"].clone()),
        ("feed.authors", authors(&ours.authors), theirs["authors"].clone()),
        ("feed.updated", seconds(ours.updated), theirs["updated"].clone()),
    ]
}

fn item_fields(ours: &Item, theirs: &Value) -> Vec<(&'static str, Value, Value)> {
    let html =
        |html: &Option<String>| html.as_deref().map(canonical).map_or(Value::Null, Value::from);
    let enclosures: Vec<_> = ours
        .enclosures
        .iter()
        .map(|file| json!({"url": file.url, "type": file.media_type, "length": file.length}))
        .collect();
    vec![
        ("guid", json!(ours.guid), theirs["guid"].clone()),
        ("link", json!(ours.link), theirs["link"].clone()),
        ("title", json!(ours.title), plain(&theirs["title"])),
        ("authors", authors(&ours.authors), theirs["authors"].clone()),
        ("published", seconds(ours.published), theirs["published"].clone()),
        ("updated", seconds(ours.updated), theirs["updated"].clone()),
        ("summary", html(&ours.summary), markup(&theirs["summary"])),
        ("content", html(&ours.content), markup(&theirs["content"])),
        ("categories", json!(ours.categories), theirs["categories"].clone()),
        ("enclosures", json!(enclosures), theirs["enclosures"].clone()),
    ]
}

fn authors(authors: &[Author]) -> Value {
    serde_json::to_value(authors).unwrap()
}

fn seconds(date: Option<jiff::Timestamp>) -> Value {
    date.map_or(Value::Null, |date| json!(date.as_second()))
}

/// Returns a text of feedparser's as one line of plain text.
fn plain(theirs: &Value) -> Value {
    let Some(value) = theirs["value"].as_str() else { return Value::Null };
    let is_plain = theirs["type"].as_str() == Some("text/plain");
    let text = if is_plain { value.to_owned() } else { dom_text(value) };
    let text = one_line(&text);
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// Returns a text of feedparser's as canonical HTML.
fn markup(theirs: &Value) -> Value {
    let Some(value) = theirs["value"].as_str() else { return Value::Null };
    let is_plain = theirs["type"].as_str() == Some("text/plain");
    let html =
        if is_plain { value.replace('&', "&amp;").replace('<', "&lt;") } else { value.to_owned() };
    json!(canonical(&html))
}

fn parsed(html: &str) -> RcDom {
    let html = format!("<!doctype html><body>{html}");
    html5ever::parse_document(RcDom::default(), ParseOpts::default()).one(html)
}

/// Sorts the attributes, as feedparser does, and removes those that only name a namespace.
fn sort_attributes(node: &Handle) {
    if let NodeData::Element { attrs, .. } = &node.data {
        let attributes = &mut *attrs.borrow_mut();
        attributes.retain(|attribute| !attribute.name.local.starts_with("xmlns"));
        attributes.sort_by(|a, b| a.name.local.cmp(&b.name.local));
    }
    node.children.borrow().iter().for_each(sort_attributes);
}

/// Returns HTML as a browser understands it, with single spaces.
fn canonical(html: &str) -> String {
    let mut bytes = Vec::new();
    let dom = parsed(html);
    sort_attributes(&dom.document);
    let document = SerializableHandle::from(dom.document.clone());
    serialize(&mut bytes, &document, SerializeOpts::default()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let text = text.strip_prefix("<!DOCTYPE html><html><head></head><body>").unwrap_or(&text);
    one_line(text.strip_suffix("</body></html>").unwrap_or(text))
}

/// Returns the text of all elements but scripts and styles.
fn dom_text(html: &str) -> String {
    fn collect(node: &Handle, text: &mut String) {
        match &node.data {
            NodeData::Text { contents } => text.push_str(&contents.borrow()),
            NodeData::Element { name, .. } if matches!(&*name.local, "script" | "style") => {}
            NodeData::Element { name, .. } if matches!(&*name.local, "p" | "div" | "br" | "li") => {
                text.push(' ');
                node.children.borrow().iter().for_each(|child| collect(child, text));
                text.push(' ');
            }
            _ => node.children.borrow().iter().for_each(|child| collect(child, text)),
        }
    }
    let mut text = String::new();
    collect(&parsed(html).document, &mut text);
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the departures that `departures.txt` does not list, and the listed ones that do not
/// happen.
fn judge(departures: &Departures) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/departures.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut listed: Vec<(&str, &str, usize, usize)> = Vec::new();
    for line in
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (what, reason) = line.split_once(" : ").unwrap();
        let [files, field, count] = what.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("departures.txt: {line:?} is not FILES FIELD COUNT : REASON");
        };
        assert!(!reason.trim().is_empty(), "{line} has no reason");
        listed.push((files, field, count.parse().unwrap(), 0));
    }
    let mut wrong = Vec::new();
    for ((file, field), how) in departures {
        let entry = listed
            .iter_mut()
            .find(|(files, fields, ..)| matches(files, file) && matches(fields, field));
        match entry {
            Some((.., happened)) => *happened += 1,
            None => wrong.push(format!("not listed: {file} {field}: {how}")),
        }
    }
    for (files, field, count, happened) in listed {
        if count != happened {
            wrong.push(format!(
                "{files} {field} is listed {count} times and happens {happened} times"
            ));
        }
    }
    wrong
}

/// Whether the pattern, in which `*` stands for any characters, is the name.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).any(|at| name.get(at..).is_some_and(|name| matches(rest, name)))
        }),
    }
}
