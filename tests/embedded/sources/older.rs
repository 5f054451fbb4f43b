//! Jobs of the older ingest service: the import of its list, and its interface over HTTP.

use serde_json::{Value, json};

use crate::support::Home;
use crate::support::chains::address;
use crate::support::http::{Answer, get, request};

fn pipeline(home: &Home) -> std::path::PathBuf {
    home.write(
        "pipeline.yaml",
        "modules:
  feed: {params: {url: {type: url, required: true}, page: {type: bool}}, commit: on-success, run: [\"true\"]}
  tweets: {params: [search], commit: on-success, run: [\"true\"]}
sources:
  of-file: {module: feed, every: 1day, with: {url: https://file.example}}
",
    )
}

fn job(name: &str, kind: &str, parameters: &Value) -> Value {
    json!({"id": "worker-1", "name": name, "type": kind, "parmas": parameters.to_string(), "time": "2018-09-22 13:18:24"})
}

fn names(home: &Home) -> Vec<String> {
    let listed = home.run(["--json", "source", "list"]).well().documents();
    listed.iter().map(|source| source["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_list_of_jobs_becomes_sources_and_what_cannot_is_named() {
    let home = Home::new();
    let up = home.up(&pipeline(&home));
    let list = json!([
        job("bbc", "ARTICLE", &json!({"url": "https://a.example/1"})),
        job("bbc", "ARTICLE", &json!({"url": "https://a.example/2", "page": ""})),
        job("The Guardian", "ARTICLE", &json!({"url": "https://a.example/3"})),
        job("no-address", "ARTICLE", &json!({})),
        job("rust", "TWITTER", &json!({"search": "rust,ion", "token": "hush", "consumerKey": "hush"})),
        job("weather", "WEATHER", &json!({"city": "x"})),
        {"name": "broken", "type": "ARTICLE", "parmas": "{oops"},
        17,
        job("of-file", "ARTICLE", &json!({"url": "https://file.example"})),
    ]);
    home.write("list.json", list.to_string());
    let import = |more: &[&str]| {
        let words =
            ["source", "import", "list.json", "-m", "ARTICLE=feed", "--module", "TWITTER=tweets"];
        home.run([&words[..], more].concat())
    };
    let before = names(&home);
    let dry = import(&["--dry-run"]).failed();
    assert!(
        dry.stderr.contains("4 sources would be added, 1 are there already, 4 jobs cannot"),
        "{dry:#?}"
    );
    assert_eq!(names(&home), before);

    let first = import(&["--every", "15m", "--first", "new"]).failed();
    assert!(
        first.stderr.contains("4 sources are added, 1 are there already, 4 jobs cannot"),
        "{first:#?}"
    );
    for words in [
        "job \"no-address\" is not imported: \"url\" is missing",
        "job \"weather\" is not imported: no module is given for its type \"WEATHER\"",
        "job \"broken\" is not imported: its \"parmas\" is no JSON object",
        "job 8 of the list is not imported: it is no job",
        "job \"rust\": a source keeps no credentials, so consumerKey, token is left out",
    ] {
        assert!(first.stderr.contains(words), "{words}: {first:#?}");
    }
    assert!(!format!("{first:?}").contains("hush"));
    let after = names(&home);
    assert_eq!(after.len(), before.len() + 4, "{after:?}");
    assert!(after.contains(&"bbc".to_owned()) && after.iter().any(|name| name.starts_with("bbc-")));
    assert!(after.iter().any(|name| name.starts_with("The-Guardian-")), "{after:?}");
    let documents = home.run(["--json", "source", "list"]).well().stdout;
    assert!(!documents.contains("hush"));
    let bbc = super::source(&home, "bbc");
    assert_eq!(bbc["schedule"]["rule"]["every"], 900_000);
    assert_eq!(bbc["with"], json!({"url": "https://a.example/1", "first": "new"}));

    // A second time nothing changes, also after a person has changed a source.
    home.run(["source", "edit", "bbc", "--with", "url=https://b.example", "--every", "2h"]).well();
    let edited = home.run(["--json", "source", "list"]).well().stdout;
    let again = import(&[]).failed();
    assert!(again.stderr.contains("0 sources are added, 5 are there already"), "{again:#?}");
    assert_eq!(home.run(["--json", "source", "list"]).well().stdout, edited);

    home.write("good.json", json!([list[0]]).to_string());
    home.run(["source", "import", "good.json", "--module", "ARTICLE=feed"]).well();
    home.write("bad.json", "[{\"name\": \"x\", \"type\": \"ARTICLE\"}, oops");
    let bad = home.run(["source", "import", "bad.json", "--module", "ARTICLE=feed"]).failed();
    assert!(bad.stderr.contains("bad.json is no list of jobs"), "{bad:#?}");
    let missing = home.run(["source", "import", "none.json", "--module", "ARTICLE=feed"]).failed();
    assert!(missing.stderr.contains("none.json cannot be read"), "{missing:#?}");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn the_older_interface_lists_adds_and_deletes_jobs() {
    let home = Home::new();
    let flags = ["--gateway", "127.0.0.1:0", "--older-ingest", "ARTICLE=feed,TWITTER=tweets"];
    let up = home.up_with(&flags, &pipeline(&home));
    let at = address(&up);
    let send = |method: &str, body: &Value| -> Answer {
        // The service's page sent no Content-Type.
        request(&at, method, "/data", &[], body.to_string().as_bytes())
    };
    let success =
        |answer: Answer| assert_eq!((answer.status, answer.text().as_str()), (200, "success"));
    let settings = get(&at, "/settings").says(200);
    let expected = json!([
        {"type": "ARTICLE", "params": ["url", "page"]},
        {"type": "TWITTER", "params": ["search"]},
    ]);
    assert_eq!(settings, expected);

    success(send(
        "POST",
        &job("BBC News", "ARTICLE", &json!({"url": "https://a.example/1", "page": ""})),
    ));
    success(send("POST", &job("BBC News", "ARTICLE", &json!({"url": "https://a.example/2"}))));
    success(send(
        "POST",
        &job("rust", "TWITTER", &json!({"search": "rust", "tokenSecret": "hush"})),
    ));
    // The same job once more is the same source.
    success(send("POST", &job("rust", "TWITTER", &json!({"search": "rust"}))));
    let problem = send("POST", &job("x", "ARTICLE", &json!({"page": "maybe"})))
        .problem(422, "invalid-source");
    assert_eq!(problem["problems"].as_array().unwrap().len(), 2, "{problem}");
    send("POST", &job("x", "OTHER", &json!({}))).problem(422, "invalid-source");
    send("POST", &json!({"type": "ARTICLE"})).problem(422, "invalid-source");
    send("POST", &json!([])).problem(400, "malformed");

    let listed = || {
        let data = get(&at, "/data");
        assert_eq!(data.header("content-type"), Some("application/json"));
        let data = data.says(200);
        let keys: Vec<&String> = data.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
        data["Jobs"].as_array().unwrap().clone()
    };
    let of = |jobs: &[Value], name: &str| -> Vec<Value> {
        jobs.iter().filter(|job| job["name"] == name).cloned().collect()
    };
    let jobs = listed();
    let mut members: Vec<&String> = jobs[0].as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["id", "name", "parmas", "time", "type"]);
    let news = of(&jobs, "BBC News");
    assert_eq!((news.len(), &news[0]["type"]), (2, &json!("ARTICLE")));
    assert_eq!(of(&jobs, "of-file")[0]["type"], "ARTICLE", "a source of the file is shown");
    let rust = of(&jobs, "rust");
    assert_eq!((rust.len(), &rust[0]["parmas"]), (1, &json!(r#"{"search":"rust"}"#)));
    assert!(!json!(jobs).to_string().contains("hush") && !up.log().contains("hush"));

    send("DELETE", &json!({"name": "of-file"})).problem(409, "declared");
    send("DELETE", &json!({"id": "x"})).problem(400, "malformed");
    success(send("DELETE", &job("BBC News", "ARTICLE", &json!({}))));
    success(send("DELETE", &json!({"name": "BBC News"})));
    let jobs = listed();
    assert_eq!((of(&jobs, "BBC News").len(), jobs.len()), (0, 2), "{jobs:#?}");
    assert_eq!(
        get(&at, "/openapi.json").says(200)["paths"]["/data"]["post"]["operationId"],
        "addOlderJob"
    );
    assert_eq!(up.stop(), Some(0));

    // Nobody has it who does not ask for it.
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &home.path().join("pipeline.yaml"));
    let at = address(&up);
    for path in ["/data", "/settings"] {
        get(&at, path).problem(404, "not-found");
        assert!(get(&at, "/openapi.json").says(200)["paths"].get(path).is_none());
    }
    assert_eq!(up.stop(), Some(0));
    let wrong = home.run(["gateway", "--older-ingest", "ARTICLE"]);
    assert_eq!(wrong.code, Some(2), "{wrong:#?}");
}
