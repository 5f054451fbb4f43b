//! Sources over HTTP, beside the commands: both see and change the same sources.

use serde_json::{Value, json};

use super::{pipeline, source};
use crate::support::chains::address;
use crate::support::http::{Answer, get, request};
use crate::support::{Home, RunningCommand, wait_for};

/// Starts modules that sources may start, one source of the file, and a gateway.
fn up(home: &Home) -> (RunningCommand, String) {
    let file = pipeline(home, "sources:\n  of-file: {module: count, every: 1day}\n");
    let text = std::fs::read_to_string(&file).unwrap();
    let feed = "  feed: {params: {url: {type: url, required: true, about: Its address}, limit: {type: number, default: 5}, kind: {type: choice, choices: [a, b]}}, commit: on-success, run: [\"true\"]}\n";
    std::fs::write(&file, text.replace("modules:\n", &format!("modules:\n{feed}"))).unwrap();
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let at = address(&up);
    wait_for("the file's source", || get(&at, "/sources/of-file").status == 200);
    (up, at)
}

fn send(at: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    request(at, method, path, &headers, body.to_string().as_bytes())
}

fn put(at: &str, name: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    send(at, "PUT", &format!("/sources/{name}"), headers, body)
}

fn patch(at: &str, name: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    send(at, "PATCH", &format!("/sources/{name}"), headers, body)
}

fn delete(at: &str, name: &str, headers: &[(&str, &str)]) -> Answer {
    request(at, "DELETE", &format!("/sources/{name}"), headers, b"")
}

fn tag(answer: &Answer) -> String {
    answer.header("etag").unwrap().to_owned()
}

/// Returns the names of the fields that a problem names, sorted.
fn wrong_fields(problem: &Value) -> Vec<&str> {
    let problems = problem["problems"].as_array().unwrap();
    let mut fields: Vec<&str> =
        problems.iter().map(|problem| problem["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    fields
}

#[test]
fn a_source_is_added_changed_and_removed_over_http() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let first = json!({"module": "feed", "every": "1day", "with": {"url": "https://a.example/x"}});
    let added = put(&at, "bbc", &[("if-none-match", "*")], &first);
    assert_eq!(added.header("location"), Some("/sources/bbc"));
    let (added_tag, added) = (tag(&added), added.says(201));
    let expected = json!({
        "module": "feed", "every": "1day", "missed": "last", "paused": false,
        "with": {"url": "https://a.example/x", "limit": "5"},
    });
    assert_eq!((&added["name"], &added["definition"]), (&json!("bbc"), &expected));
    assert_eq!((&added["state"], &added["version"]), (&json!("idle"), &json!(1)));
    assert_eq!(source(&home, "bbc")["version"], 1, "the command sees the same source");
    put(&at, "bbc", &[("if-none-match", "*")], &first).problem(412, "changed");
    let same = put(&at, "bbc", &[], &added["definition"]);
    assert_eq!((tag(&same), same.status), (added_tag.clone(), 200), "nothing is changed by itself");
    let unchanged = request(&at, "GET", "/sources/bbc", &[("if-none-match", &added_tag)], b"");
    assert_eq!(unchanged.status, 304);

    let changed = patch(
        &at,
        "bbc",
        &[("if-match", &added_tag)],
        &json!({"at": "30 6 * * *", "zone": "Europe/London", "with": {"limit": 7}}),
    );
    let changed_tag = tag(&changed);
    let changed = changed.says(200);
    assert_eq!(changed["definition"]["at"], "30 6 * * *");
    assert_eq!(changed["definition"]["with"], json!({"url": "https://a.example/x", "limit": "7"}));
    assert!(changed["definition"].get("every").is_none(), "{changed}");
    for late in [
        put(&at, "bbc", &[("if-match", &added_tag)], &first),
        patch(&at, "bbc", &[("if-match", &added_tag)], &json!({"paused": true})),
        delete(&at, "bbc", &[("if-match", &added_tag)]),
        put(&at, "other", &[("if-match", "*")], &first),
    ] {
        late.problem(412, "changed");
    }
    assert_eq!(get(&at, "/sources/bbc").header("etag"), Some(changed_tag.as_str()));

    // The command changes the source meanwhile.
    home.run(["source", "edit", "bbc", "--every", "2h"]).well();
    patch(&at, "bbc", &[("if-match", &changed_tag)], &json!({"every": "1h"}))
        .problem(412, "changed");
    let edited = get(&at, "/sources/bbc").says(200);
    assert_eq!(edited["definition"]["every"], "2h");

    let paused = patch(&at, "bbc", &[], &json!({"paused": true})).says(200);
    assert_eq!((&paused["state"], paused.get("next")), (&json!("paused"), None));
    let resumed = patch(&at, "bbc", &[], &json!({"paused": false})).says(200);
    assert_eq!(resumed["state"], "idle");
    assert!(resumed["next"].as_i64().unwrap() > resumed["added"].as_i64().unwrap());

    assert_eq!(delete(&at, "bbc", &[]).status, 204);
    delete(&at, "bbc", &[]).problem(404, "not-found");
    get(&at, "/sources/bbc").problem(404, "not-found");
    patch(&at, "bbc", &[], &json!({"every": "1h"})).problem(404, "not-found");
    // A source that was added again is another one, whatever its version.
    assert_ne!(tag(&put(&at, "bbc", &[], &first)), added_tag);
    put(&at, "bbc", &[("if-match", &added_tag)], &first).problem(412, "changed");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn everything_that_is_wrong_with_a_source_is_said_at_once() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let wrong = json!({
        "module": "feed", "every": "often", "missed": "never", "evry": "1m", "paused": 1,
        "with": {"limit": "many", "kind": "c", "urk": "x", "deep": {}},
    });
    let problem = put(&at, "s", &[], &wrong).problem(422, "invalid-source");
    let expected = [
        "every",
        "evry",
        "missed",
        "paused",
        "with.deep",
        "with.kind",
        "with.limit",
        "with.urk",
        "with.url",
    ];
    assert_eq!(wrong_fields(&problem), expected, "{problem:#}");
    let of = |field: &str| {
        let problems = problem["problems"].as_array().unwrap();
        problems.iter().find(|one| one["field"] == field).unwrap()["problem"].to_string()
    };
    assert!(of("with.urk").contains("did you mean") && of("with.kind").contains("one of a, b"));
    for (name, body, fields) in [
        ("s", json!({}), vec!["every", "module"]),
        ("s", json!({"module": "none", "every": "1h"}), vec!["module"]),
        ("s", json!({"module": "keep", "every": "1h"}), vec!["module"]),
        ("-s", json!({"module": "count", "every": "1h"}), vec!["name"]),
        ("s", json!({"module": "count", "at": "0 0 30 2 *"}), vec!["at"]),
        ("s", json!({"module": "count", "at": "0 6 * * *", "zone": "Mars"}), vec!["zone"]),
        ("s", json!({"module": "count", "every": "1h", "jitter": "2h"}), vec!["jitter"]),
        ("s", json!({"module": "count", "every": "1h", "first": "some"}), vec!["first"]),
    ] {
        let problem = put(&at, name, &[], &body).problem(422, "invalid-source");
        assert_eq!(wrong_fields(&problem), fields, "{body}");
    }
    put(&at, "s", &[], &json!([])).problem(400, "malformed");
    request(&at, "PUT", "/sources/s", &[("content-type", "application/json")], b"{")
        .problem(400, "malformed");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    request(&at, "PUT", "/sources/s", &form, b"{}").problem(415, "wrong-form");
    request(&at, "POST", "/sources", &[], b"").problem(405, "wrong-method");
    assert_eq!(get(&at, "/sources/s").status, 404, "nothing was added");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_source_of_the_file_is_shown_and_run_and_not_changed() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let shown = get(&at, "/sources/of-file").says(200);
    assert!(shown["pipeline"].as_str().unwrap().ends_with("pipeline.yaml"), "{shown}");
    let own = json!({"module": "count", "every": "1h"});
    put(&at, "of-file", &[], &own).problem(409, "declared");
    patch(&at, "of-file", &[], &json!({"every": "1h"})).problem(409, "declared");
    delete(&at, "of-file", &[]).problem(409, "declared");
    let runs = "/sources/of-file/runs";
    for run in 1..=3 {
        let asked = request(&at, "POST", runs, &[], b"");
        assert_eq!(asked.header("location"), Some(runs));
        asked.says(202);
        wait_for("the run to end", || {
            let source = get(&at, "/sources/of-file").says(200);
            source["succeeded"]["number"] == run
        });
    }
    let first = get(&at, &format!("{runs}?limit=2"));
    let link = first.header("link").unwrap().to_owned();
    let first = first.says(200);
    let path = link.strip_prefix('<').unwrap().split('>').next().unwrap();
    let second = get(&at, path).says(200);
    let numbers: Vec<String> = [&first, &second]
        .iter()
        .flat_map(|page| page["runs"].as_array().unwrap())
        .map(|run| {
            assert_eq!(run["state"], "succeeded", "{run}");
            run["run"].as_str().unwrap()[.."of-file@00000001".len()].to_owned()
        })
        .collect();
    let expected = ["of-file@00000003", "of-file@00000002", "of-file@00000001"];
    assert_eq!(
        (numbers.as_slice(), &second["next"]),
        (&expected.map(str::to_owned)[..], &Value::Null)
    );
    assert_eq!(first["next"], first["runs"][1]["run"]);
    let run = first["runs"][0]["run"].as_str().unwrap();
    assert_eq!(
        get(&at, &format!("/correlations/{run}?wait=30s")).header("ion-outcome"),
        Some("succeeded")
    );
    get(&at, &format!("{runs}?cursor=z")).problem(400, "malformed");
    get(&at, "/sources/none/runs").problem(404, "not-found");
    request(&at, "POST", "/sources/none/runs", &[], b"").problem(404, "not-found");
    // The command lists the same runs.
    let listed = home.run(["--json", "source", "runs", "of-file"]).well().documents();
    assert_eq!((listed.len(), &listed[0]["run"]), (3, &first["runs"][0]["run"]));
    let wrong = home.run(["source", "runs", "of-file", "--before", "zzz"]).failed();
    assert!(wrong.stderr.contains("is no run of source"), "{}", wrong.stderr);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn forms_are_told_which_parameters_modules_declare() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let kinds = get(&at, "/source-kinds").says(200);
    let expected = json!([
        {"module": "count", "parameters": []},
        {"module": "feed", "parameters": [
            {"name": "kind", "type": "choice", "required": false, "choices": ["a", "b"]},
            {"name": "limit", "type": "number", "required": false, "default": "5"},
            {"name": "url", "type": "url", "required": true, "about": "Its address"},
        ]},
    ]);
    assert_eq!(kinds["kinds"], expected);
    assert_eq!(daemon.stop(), Some(0));
}

/// The number of sources of the test of pages: more than one answer has, and more than are read at
/// once.
const MANY: usize = 2_345;

/// Copies a source many times, as sources that no dispatcher looks at.
fn copy_source(home: &Home, name: &str, count: usize) {
    home.change_database(&format!(
        "import json\n\
         d = json.loads(c.execute(\"SELECT document FROM sources WHERE id='{name}'\").fetchone()[0])\n\
         def rows():\n\
         \x20   for n in range({count}):\n\
         \x20       d['id'] = '%s.%06d' % ('{name}', n)\n\
         \x20       yield d['id'], json.dumps(d)\n\
         c.executemany('INSERT INTO sources VALUES (?, ?)', rows())"
    ));
}

#[test]
fn any_number_of_sources_is_listed_page_by_page() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let paused = json!({"module": "feed", "every": "1day", "paused": true, "with": {"url": "https://a.example"}});
    put(&at, "many", &[], &paused).says(201);
    copy_source(&home, "many", MANY);
    let (mut names, mut path, mut pages) = (Vec::new(), Some("/sources?limit=300".to_owned()), 0);
    while let Some(next) = path.take() {
        let answer = get(&at, &next);
        let link = answer
            .header("link")
            .map(|link| link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned());
        let page = answer.says(200);
        assert_eq!(link.is_some(), page["next"].is_string(), "{link:?}");
        let listed = page["sources"].as_array().unwrap();
        assert!(listed.len() == 300 || link.is_none());
        names.extend(listed.iter().map(|source| source["name"].as_str().unwrap().to_owned()));
        (path, pages) = (link, pages + 1);
    }
    assert_eq!((names.len(), pages), (MANY + 2, (MANY + 2).div_ceil(300)));
    assert!(names.is_sorted(), "each once and by name");
    assert_eq!(get(&at, "/sources").says(200)["sources"].as_array().unwrap().len(), 100);
    let end = get(&at, "/sources?cursor=zzz").says(200);
    assert_eq!(end, json!({"sources": [], "next": null}));
    for wrong in ["limit=0", "limit=1001", "limit=x", "cursor=%00", "cursor=", "after=a"] {
        get(&at, &format!("/sources?{wrong}")).problem(400, "malformed");
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// A page ends early where its sources are large, so that few of them fill the memory of no gateway.
#[test]
fn large_sources_make_short_pages() {
    let home = Home::new();
    let (daemon, at) = up(&home);
    let long = format!("https://a.example/{}", "x".repeat(60_000));
    let large = json!({"module": "feed", "every": "1day", "paused": true, "with": {"url": long}});
    put(&at, "large", &[], &large).says(201);
    copy_source(&home, "large", 60);
    let answer = get(&at, "/sources?limit=1000");
    assert!(answer.body.len() < 2 << 20, "{}", answer.body.len());
    let (mut count, mut path) = (0, Some("/sources?limit=1000".to_owned()));
    while let Some(next) = path.take() {
        let page = get(&at, &next).says(200);
        count += page["sources"].as_array().unwrap().len();
        path = page["next"].as_str().map(|next| format!("/sources?limit=1000&cursor={next}"));
    }
    assert_eq!(count, 62);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn tokens_read_or_change_sources_as_their_scopes_say() {
    const READS: &str = "0123456789abcdef-reads";
    const WRITES: &str = "0123456789abcdef-writes";
    const OTHER: &str = "0123456789abcdef-other";
    let mut home = Home::new();
    let tokens = format!(
        "view sources:read {READS}\nedit sources:write {WRITES}\nci events:write,events:read {OTHER}\n"
    );
    home.env.push(("ION_GATEWAY_TOKENS".into(), tokens));
    let file = pipeline(&home, "");
    let daemon = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let at = address(&daemon);
    let routes = [
        ("GET", "/sources", READS),
        ("GET", "/sources/s", READS),
        ("GET", "/sources/s/runs", READS),
        ("GET", "/source-kinds", READS),
        ("PUT", "/sources/s", WRITES),
        ("PATCH", "/sources/s", WRITES),
        ("DELETE", "/sources/s", WRITES),
        ("POST", "/sources/s/runs", WRITES),
    ];
    for (method, path, right) in routes {
        for token in [READS, WRITES, OTHER, "0123456789abcdef-none"] {
            let bearer = format!("Bearer {token}");
            let headers =
                [("authorization", bearer.as_str()), ("content-type", "application/json")];
            let status = request(&at, method, path, &headers, b"{}").status;
            match token {
                _ if token == right => assert!(![401, 403].contains(&status), "{method} {path}"),
                READS | WRITES | OTHER => assert_eq!(status, 403, "{method} {path} {token}"),
                _ => assert_eq!(status, 401, "{method} {path}"),
            }
        }
    }
    assert_eq!(daemon.stop(), Some(0));
}
