//! Tests of what a job's record says about what ran and what it used, and of the commands that show
//! it.

use serde_json::{Value, json};

use crate::support::Home;

const MIB: u64 = 1 << 20;

/// Reads its input, takes 200 ms of processor time and 64 MiB of memory, and writes 2 MiB.
const WORK: &str = r#"#!/usr/bin/env python3
import json, os, time
ion = os.environ["ION_DIR"]
assert len(open(ion + "/in/data/input", "rb").read()) == 1 << 20
kept = b"x" * (64 << 20)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
open(ion + "/out/data/made", "wb").write(os.urandom(2 << 20))
json.dump({"eventType": "made", "files": ["made"]}, open(ion + "/out/events/e.json", "w"))
"#;

const PIPELINE: &str = "modules:
  work: {on: [begin], emits: [made], run: [./work.py, notes.txt], env: {TOKEN: hush-hush}}
  count: {on: [made], emits: [counted], run: [wc, -c], stdio: true}
";

/// Returns the only attempts of the jobs of a module, oldest first.
fn attempts_of(home: &Home, module: &str) -> Vec<Value> {
    let jobs = home.jobs().into_iter().filter(|job| job["module"] == module);
    jobs.map(|job| job["attempts"][0].clone()).collect()
}

#[test]
fn a_record_says_what_ran_and_what_it_used() {
    let home = Home::new();
    home.program("work.py", WORK);
    home.write("notes.txt", "one");
    home.write("input", "y".repeat(usize::try_from(MIB).unwrap()));
    let up = home.up(&home.write("pipeline.yaml", PIPELINE));
    let create = || home.run(["event", "create", "begin", "--file", "input", "--wait"]).well();
    create();
    create();
    home.program("work.py", &WORK.replace("0.2", "0.21"));
    create();
    home.write("notes.txt", "two");
    create();
    let attempts = attempts_of(&home, "work");
    let versions: Vec<&str> =
        attempts.iter().map(|attempt| attempt["version"].as_str().unwrap()).collect();
    assert_eq!((versions.len(), versions[0].len()), (4, 16), "{versions:?}");
    assert_eq!(versions[0], versions[1], "nothing changed");
    assert!(versions[1] != versions[2] && versions[2] != versions[3], "{versions:?}");
    let number = |attempt: &Value, name: &str| attempt["usage"][name].as_u64().unwrap();
    for attempt in &attempts {
        assert!((200..20_000).contains(&number(attempt, "cpuMs")), "{attempt}");
        assert!((64 * MIB..512 * MIB).contains(&number(attempt, "peakBytes")), "{attempt}");
        assert_eq!(
            (number(attempt, "fetchedBytes"), number(attempt, "storedBytes")),
            (MIB, 2 * MIB),
            "{attempt}"
        );
    }
    // A module between stdin and stdout is a chain of one link.
    let counted = attempts_of(&home, "count");
    assert_eq!(counted.len(), 4);
    for attempt in &counted {
        assert!(number(attempt, "peakBytes") > 0 && attempt["version"].is_string(), "{attempt}");
        assert_eq!(
            (number(attempt, "fetchedBytes"), number(attempt, "storedBytes")),
            (2 * MIB, "2097152\n".len() as u64),
            "{attempt}"
        );
    }
    sums_are_those_of_the_records(&home, &attempts);
    versions_are_explained(&home, &versions);
    assert_eq!(up.stop(), Some(0));
}

/// The links of a chain run at the same time: the chain's own job has what they used together, and
/// no sum counts it twice.
#[test]
fn the_job_of_a_chain_has_the_sums_of_its_links() {
    let home = Home::new();
    let chain =
        "name: c\nChain: [{Command: cat, Name: one}, {Command: wc, Arguments: [-c], Name: two}]\n";
    home.write("pipeline.yaml", chain);
    home.write("input", vec![0; 1_000_000]);
    home.run(["run", "c", "--file", "input"]).well();
    let attempt = attempts_of(&home, "c").remove(0);
    let stored = 1_000_000 + "1000000\n".len();
    assert_eq!(attempt["usage"]["storedBytes"], json!(stored), "{attempt}");
    assert_eq!(attempt["usage"]["fetchedBytes"], json!(1_000_000), "{attempt}");
    assert!(attempt["usage"]["peakBytes"].as_u64() > Some(MIB) && attempt["version"].is_string());
    for link in ["one", "two"] {
        let attempt = attempts_of(&home, link).remove(0);
        assert_eq!((&attempt["usage"], &attempt["version"]), (&Value::Null, &Value::Null));
    }
    let sums = home.run(["--json", "usage", "--by", "correlation"]).well();
    assert!(sums.stderr.contains("of 2 attempts is not known: of pods, of links"), "{sums:?}");
    let sums = sums.documents();
    assert_eq!(
        (sums.len(), &sums[0]["jobs"], &sums[0]["storedBytes"]),
        (1, &json!(3), &json!(stored))
    );
}

fn sums_are_those_of_the_records(home: &Home, attempts: &[Value]) {
    let sums = home.run(["--json", "usage"]).well().documents();
    let work = &sums[0];
    let cpu: u64 = attempts.iter().map(|one| one["usage"]["cpuMs"].as_u64().unwrap()).sum();
    assert_eq!(
        [&work["module"], &work["jobs"], &work["attempts"], &work["cpuMs"]],
        [&json!("work"), &json!(4), &json!(4), &json!(cpu)],
        "the costliest comes first: {sums:?}"
    );
    assert_eq!(
        (&work["fetchedBytes"], &work["storedBytes"], &work["notMeasured"]),
        (&json!(4 * MIB), &json!(8 * MIB), &Value::Null)
    );
    assert_eq!((sums.len(), &sums[1]["module"]), (2, &json!("count")));
    let table = home.run(["usage", "--by", "type"]).well().stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("TYPE ") && lines[0].ends_with(" WALL"), "{table}");
    assert!(lines[1].starts_with("begin ") && lines[1].contains("4.0 MiB  8.0 MiB"), "{table}");
    let cut = home.run(["--json", "usage", "--by", "correlation", "--limit", "3"]).well();
    assert_eq!(cut.documents().len(), 3);
    assert!(cut.stderr.contains("1 cheaper rows are not shown: --limit 4 does"), "{cut:?}");
    let correlation = cut.documents()[0]["correlation"].as_str().unwrap().to_owned();
    let one = home.run(["--json", "usage", "--correlation", &correlation[..8]]).well();
    assert_eq!(one.documents().iter().map(|sum| sum["jobs"].as_u64().unwrap()).sum::<u64>(), 2);
    let none = home.run(["usage", "--until", "1970-01-02"]).well();
    assert_eq!(none.stdout, "MODULE  JOBS  ATTEMPTS  CPU  PEAK  FETCHED  STORED  WALL\n");
}

fn versions_are_explained(home: &Home, versions: &[&str]) {
    let listed = home.run(["--json", "module", "get", "work", "--versions"]).well();
    let documents = listed.documents();
    let listed: Vec<&str> =
        documents.iter().map(|document| document["version"].as_str().unwrap()).collect();
    assert_eq!(listed, [versions[0], versions[2], versions[3]], "the latest comes last");
    let text = Value::from(documents.clone()).to_string();
    assert!(text.contains("TOKEN") && !text.contains("hush-hush"), "{text}");
    let files = documents[0]["programs"][0]["files"].as_array().unwrap().clone();
    let names: Vec<&str> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["./work.py", "notes.txt"]);
    let job = home.jobs().into_iter().find(|job| job["module"] == "work").unwrap();
    let shown = home.run(["job", "get", job["id"].as_str().unwrap()]).well();
    let version = format!("version {}: ./work.py notes.txt", versions[0]);
    assert!(shown.stderr.contains(&version), "{shown:?}");
    assert!(shown.stderr.contains("attempt 1 used ") && shown.stderr.contains("2.0 MiB stored"));
    assert!(
        !home
            .run(["--json", "job", "get", job["id"].as_str().unwrap()])
            .well()
            .stderr
            .contains("used")
    );
    let unknown = home.run(["module", "get", "wrok", "--versions"]).failed();
    assert!(unknown.stderr.contains("there is no module \"wrok\""), "{unknown:?}");
}
