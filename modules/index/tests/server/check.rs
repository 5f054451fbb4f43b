//! `ion-index check`.

use serde_json::{Value, json};

use crate::job::{Ended, Job, program};
use crate::proxy::{Fault, Proxy};
use crate::search::{self, Names, ask};

fn check(url: &str, arguments: &[&str]) -> Ended {
    program().args(["check", "--url", url]).args(arguments).output().unwrap().into()
}

#[test]
fn a_good_server_is_called_good_and_is_not_changed() {
    let names = Names::new();
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let template = job.template(&names);
    let pattern = format!("{}-%Y", names.prefix);
    let arguments = ["--index", &pattern, "--template", &template];
    let before = check(search::url(), &arguments);
    assert_eq!(before.status, Some(0), "{before:?}");
    for words in ["server       good", "version      good   OpenSearch", "rights       good"] {
        assert!(before.stdout.contains(words), "{}", before.stdout);
    }
    assert!(before.stdout.contains("template     so-so"), "{}", before.stdout);
    assert!(before.stdout.contains("is not there"), "{}", before.stdout);
    assert_eq!(names.indices(), Vec::<String>::new());
    let (status, _) = ask("GET", &format!("_index_template/{}", names.prefix), &Value::Null);
    assert_eq!(status, 404);

    job.run_well(search::url(), &arguments);
    let after = check(search::url(), &arguments);
    assert!(after.stdout.contains("template     good"), "{}", after.stdout);
    job.write(&format!("{}.json", names.prefix), r#"{"index_patterns": ["x-ion"]}"#);
    let changed = check(search::url(), &arguments);
    assert!(changed.stdout.contains("is not that of"), "{}", changed.stdout);
}

#[test]
fn an_alias_in_the_place_of_an_index_gets_no_document() {
    let names = Names::new();
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let (index, alias) = (format!("{}-1", names.prefix), format!("{}-all", names.prefix));
    job.run_well(search::url(), &["--index", &index, "--alias", &alias]);
    let checked = check(search::url(), &["--index", &alias]);
    assert!(checked.stdout.contains("rights       good"), "{checked:?}");
    assert_eq!(names.documents().len(), 1);
}

#[test]
fn what_is_wrong_is_told_with_the_way_out() {
    let gone = check("http://127.0.0.1:1", &["--json"]);
    assert_eq!(gone.status, Some(1));
    let findings: Value = serde_json::from_str(&gone.stdout).unwrap();
    assert_eq!((&findings[0]["what"], &findings[0]["good"]), (&json!("server"), &json!(false)));

    let denied = Proxy::start(|_| Fault::Answer(401, vec![], json!({"error": "who?"})));
    let ended = check(&denied.url, &[]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stdout.contains("see --user-from"), "{}", ended.stdout);

    let read_only = Proxy::start(|seen| match seen.path.as_str() {
        "/" => Fault::None,
        _ => Fault::Answer(403, vec![], json!({"error": {"type": "t", "reason": "read only"}})),
    });
    let ended = check(&read_only.url, &[]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stdout.contains("rights       bad"), "{}", ended.stdout);
    assert!(ended.stdout.contains("t: read only"), "{}", ended.stdout);

    let old = json!({"version": {"number": "6.8.23"}});
    let old = Proxy::start(move |_| Fault::Answer(200, vec![], old.clone()));
    let ended = check(&old.url, &[]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stdout.contains("Elasticsearch 6.8.23 is too old"), "{}", ended.stdout);
}
