//! `ion-fetch json`, on the declared files of `examples/sources` and on servers that answer as
//! these APIs do.

use std::path::Path;

use serde_json::{Value, json};

use crate::folder::Folder;
use crate::origin::{Asked, Origin, Reply};

/// Returns an answer in JSON.
fn answer(document: &Value) -> Reply {
    Reply::ok(document.to_string()).with("Content-Type", "application/json; charset=utf-8")
}

/// Copies a declared file into the folder, with the server instead of the one that it names.
fn declare(folder: &Folder, name: &str, origin: &Origin) -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/sources");
    let text = std::fs::read_to_string(sources.join(name)).unwrap();
    let hosts: Vec<&str> = text
        .split("https://")
        .skip(1)
        .map(|rest| rest.split(['/', '"', '\n']).next().unwrap())
        .collect();
    assert!(!hosts.is_empty(), "{name} names no server");
    let text = hosts
        .iter()
        .fold(text.clone(), |text, host| text.replace(&format!("https://{host}"), &origin.at("")));
    folder.write(name, &text);
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// Returns the data of the items that the events name, sorted by their keys, and removes the
/// events.
fn take_data(folder: &Folder) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = folder
        .take_events()
        .into_keys()
        .map(|id| {
            let item = folder.json(&format!("out/data/{id}/item.json"));
            (item["key"].as_str().unwrap().to_owned(), item["data"].clone())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn take_keys(folder: &Folder) -> Vec<String> {
    take_data(folder).into_iter().map(|(key, _)| key).collect()
}

fn paths(origin: &Origin) -> Vec<String> {
    origin.take_asked().into_iter().map(|asked| asked.path).collect()
}

#[test]
fn stories_of_hacker_news_come_with_their_details() {
    let story = |asked: &Asked| match &*asked.path {
        "/v0/item/3.json" => answer(&Value::Null),
        path => {
            let id: u64 =
                path.trim_start_matches("/v0/item/").trim_end_matches(".json").parse().unwrap();
            answer(&json!({"id": id, "title": format!("Story {id}"), "time": 1_700_000_000 + id,
                "type": "story", "by": "x", "url": "https://example.org/"}))
        }
    };
    let origin = Origin::start(move |asked| match &*asked.path {
        "/v0/newstories.json" => answer(&json!([4, 3, 2, 1])),
        _ => story(asked),
    });
    let folder = Folder::new();
    let file = declare(&folder, "hacker-news.yaml", &origin);
    folder.succeed("json", &[&file, "--first", "3"]);
    assert_eq!(
        paths(&origin),
        ["/v0/newstories.json", "/v0/item/4.json", "/v0/item/3.json", "/v0/item/2.json"]
    );
    // Story 3 was removed, so there is nothing to publish.
    assert_eq!(folder.take_titles(), ["Story 2", "Story 4"]);
    origin.answer(move |asked| match &*asked.path {
        "/v0/newstories.json" => answer(&json!([5, 4, 3, 2])),
        _ => story(asked),
    });
    folder.succeed("json", &[&file]);
    assert_eq!(paths(&origin), ["/v0/newstories.json", "/v0/item/5.json"]);
    assert_eq!(folder.take_titles(), ["Story 5"]);
}

#[test]
fn a_detail_that_fails_is_left_to_the_next_run() {
    let list =
        |asked: &Asked| (asked.path == "/v0/newstories.json").then(|| answer(&json!([2, 1])));
    let story = |path: &str| answer(&json!({"title": path}));
    let origin = Origin::start(move |asked| match list(asked) {
        Some(reply) => reply,
        None if asked.path.contains("/2") => Reply::new(500, ""),
        None => story(&asked.path),
    });
    let folder = Folder::new();
    let file = declare(&folder, "hacker-news.yaml", &origin);
    folder.succeed("json", &[&file, "--first", "all"]);
    assert_eq!(take_keys(&folder), ["1"]);
    origin.answer(move |asked| list(asked).unwrap_or_else(|| story(&asked.path)));
    folder.succeed("json", &[&file]);
    assert_eq!(take_keys(&folder), ["2"]);
}

#[test]
fn the_hours_of_open_meteo_are_items_and_a_changed_forecast_is_an_update() {
    let forecast = |second: f64| {
        answer(&json!({"latitude": 52.52, "hourly_units": {"time": "iso8601"},
            "hourly": {"time": ["2024-05-06T00:00", "2024-05-06T01:00"],
                "temperature_2m": [9.5, second], "precipitation": [0.0, 0.1], "wind_speed_10m": [3.0, 4.0]}}))
    };
    let origin = Origin::start(move |_| forecast(9.0));
    let folder = Folder::new();
    folder.write("in/meta/latitude", "52.5");
    let file = declare(&folder, "open-meteo.yaml", &origin);
    let arguments = [&*file, "--set", "longitude=13.4", "--updates"];
    folder.succeed("json", &[&arguments[..], &["--first", "all"]].concat());
    let asked = paths(&origin);
    assert!(
        asked[0].contains("latitude=52.5&longitude=13.4&hourly=temperature_2m%2Cprecipitation")
    );
    let data = take_data(&folder);
    assert_eq!(data.len(), 2);
    assert_eq!(
        data[1].1,
        json!({"time": "2024-05-06T01:00", "temperature_2m": 9.0, "precipitation": 0.1, "wind_speed_10m": 4.0})
    );
    origin.answer(move |_| forecast(11.0));
    folder.succeed("json", &arguments);
    let data = take_data(&folder);
    assert_eq!((data.len(), &data[0].1["temperature_2m"]), (1, &json!(11.0)));
    origin.answer(|_| answer(&json!({"error": true, "reason": "Daily limit exceeded"})));
    let said = folder.fail("json", &arguments);
    assert!(said.contains("Daily limit exceeded"), "{said}");
}

#[test]
fn alerts_of_the_weather_service_are_read_page_by_page() {
    let alert = |id: &str| {
        json!({"id": format!("https://api.weather.gov/alerts/{id}"), "properties":
            {"id": id, "sent": "2024-05-06T07:00:00-05:00", "headline": format!("Alert {id}")}})
    };
    let origin = Origin::start(move |asked| match () {
        () if !asked.headers["user-agent"].contains("me@example.org") => Reply::new(403, ""),
        () if asked.path.contains("cursor=next") => answer(&json!({"features": [alert("b")]})),
        () => answer(&json!({"features": [alert("a")], "pagination": {"cursor": "next"}})),
    });
    let folder = Folder::new();
    let file = declare(&folder, "nws-alerts.yaml", &origin);
    let arguments = [&*file, "--set", "area=KS", "--first", "all"];
    assert!(folder.fail("json", &arguments).contains("403"));
    origin.take_asked();
    folder.succeed("json", &[&arguments[..], &["--contact", "me@example.org"]].concat());
    assert_eq!(origin.take_asked()[0].headers["accept"], "application/geo+json");
    assert_eq!(folder.take_titles(), ["Alert a", "Alert b"]);
}

#[test]
fn filings_with_the_sec_are_items() {
    let origin = Origin::start(|_| {
        answer(&json!({"cik": "320193", "filings": {"recent": {
            "accessionNumber": ["0000320193-24-000069", "0000320193-24-000068"],
            "acceptanceDateTime": ["2024-05-03T16:04:25.000Z", "2024-05-02T20:30:53.000Z"],
            "form": ["10-Q", "8-K"], "primaryDocDescription": ["10-Q", "8-K"]}}}))
    });
    let folder = Folder::new();
    let file = declare(&folder, "sec-edgar.yaml", &origin);
    folder.succeed("json", &[&file, "--set", "cik=0000320193", "--first", "1"]);
    assert_eq!(paths(&origin), ["/submissions/CIK0000320193.json"]);
    assert_eq!(take_keys(&folder), ["0000320193-24-000069"]);
}

#[test]
fn a_search_of_x_goes_on_from_its_newest_post_and_keeps_its_secret() {
    let post = |id: &str| json!({"id": id, "text": format!("post {id}"), "created_at": "2024-05-06T07:00:00Z"});
    let origin = Origin::start(move |asked| match &*asked.path {
        path if path.contains("next_token=t") => {
            answer(&json!({"data": [post("11")], "meta": {"newest_id": "11"}}))
        }
        path if path.contains("since_id=12") => answer(&json!({"meta": {"result_count": 0}})),
        _ => answer(&json!({"data": [post("12")], "meta": {"newest_id": "12", "next_token": "t"}})),
    });
    let folder = Folder::new();
    folder.write("secrets/token", "very-secret\n");
    let secrets = folder.path().join("secrets").to_str().unwrap().to_owned();
    let file = declare(&folder, "x-recent-search.yaml", &origin);
    let arguments = [&*file, "--set", "query=rust lang", "--first", "all", "--secrets", &secrets];
    folder.succeed("json", &arguments);
    let asked = origin.take_asked();
    assert_eq!(asked[0].headers["authorization"], "Bearer very-secret");
    assert!(asked[0].path.contains("query=rust%20lang") && !asked[0].path.contains("since_id"));
    assert_eq!(take_keys(&folder), ["11", "12"]);
    folder.succeed("json", &arguments);
    assert!(paths(&origin)[0].contains("since_id=12"));
    assert!(folder.take_events().is_empty());
    let reset = jiff::Timestamp::now().as_second() + 900;
    origin.answer(move |_| Reply::new(429, "{}").with("x-rate-limit-reset", &reset.to_string()));
    folder.succeed("json", &arguments);
    let until: jiff::Timestamp =
        folder.text("in/state/not-before").unwrap().trim().parse().unwrap();
    assert!((until.as_second() - reset).abs() <= 2);
    assert!(folder.text("in/state/api.json").unwrap().contains("\"12\""));
    // A secret that cannot be read is an error before anything is asked.
    origin.take_asked();
    let ended = folder.run("json", &[&arguments[..5], &["--secrets", "/nowhere"]].concat());
    assert!(ended.code == 2 && ended.said.contains("/nowhere/token"), "{}", ended.said);
    assert!(origin.take_asked().is_empty());
}

#[test]
fn a_secret_is_not_taken_along_to_another_server() {
    let other = Origin::start(|_| answer(&json!([])));
    let target = other.at("/elsewhere");
    let origin = Origin::start(move |asked| match &*asked.path {
        "/moved" => Reply::redirect(302, &target),
        _ => answer(&json!([1])).with("Link", &format!("<{target}>; rel=next")),
    });
    let folder = Folder::new();
    folder.write("secrets/token", "very-secret");
    let secrets = folder.path().join("secrets").to_str().unwrap().to_owned();
    let declare = |path: &str| {
        let headers =
            "headers: [{name: X-Key, value: '{token}'}]\nsecrets: [token]\npages: {by: link}";
        folder.write("api.yaml", &format!("url: {}\n{headers}", origin.at(path)));
        folder.path().join("api.yaml").to_str().unwrap().to_owned()
    };
    folder.succeed("json", &[&declare("/moved"), "--secrets", &secrets]);
    assert_eq!(origin.take_asked()[0].headers["x-key"], "very-secret");
    assert!(!other.take_asked()[0].headers.contains_key("x-key"));
    let said = folder.fail("json", &[&declare("/linked"), "--secrets", &secrets]);
    assert!(said.contains("another server") && !said.contains("very-secret"), "{said}");
    assert!(other.take_asked().is_empty());
}

#[test]
fn news_of_alpha_vantage_that_are_an_error_with_200_are_an_error() {
    let origin = Origin::start(|asked| match () {
        () if asked.path.contains("time_from") => answer(&json!({"feed": []})),
        () => answer(&json!({"feed": [
            {"url": "https://n/1", "time_published": "20240506T071500", "title": "News"}]})),
    });
    let folder = Folder::new();
    folder.write("secrets/apikey", "very-secret");
    let secrets = folder.path().join("secrets").to_str().unwrap().to_owned();
    let file = declare(&folder, "alpha-vantage.yaml", &origin);
    let arguments = [&*file, "--set", "ticker=IBM", "--first", "all", "--secrets", &secrets];
    folder.succeed("json", &arguments);
    assert_eq!(folder.take_titles(), ["News"]);
    origin.take_asked();
    folder.succeed("json", &arguments);
    assert!(paths(&origin)[0].contains("time_from=20240506T0615"));
    for key in ["Note", "Information", "Error Message"] {
        origin.answer(move |_| answer(&json!({key: "our standard limit"})));
        let said = folder.fail("json", &arguments);
        assert!(said.contains("our standard limit") && !said.contains("very-secret"), "{said}");
    }
}

#[test]
fn the_feed_of_reddit_is_a_feed_of_atom() {
    let entry = |id: &str| {
        format!(
            "<entry><id>t3_{id}</id><title>Post {id}</title><link href='https://www.reddit.com/r/rust/{id}/'/>\
            <author><name>/u/someone</name></author><updated>2024-05-06T07:00:00+00:00</updated>\
            <content type='html'>&lt;p&gt;Hello&lt;/p&gt;</content></entry>"
        )
    };
    let atom = format!(
        "<?xml version='1.0' encoding='UTF-8'?><feed xmlns='http://www.w3.org/2005/Atom'>\
        <title>newest submissions : rust</title>{}{}</feed>",
        entry("b"),
        entry("a")
    );
    let origin = Origin::start(move |_| {
        Reply::ok(atom.clone()).with("Content-Type", "application/atom+xml; charset=UTF-8")
    });
    let folder = Folder::new();
    folder.succeed("feed", &["--url", &origin.at("/r/rust/new.rss"), "--first", "all"]);
    assert_eq!(folder.take_titles(), ["Post a", "Post b"]);
    origin.answer(|_| Reply::new(429, "").with("Retry-After", "60"));
    folder.succeed("feed", &["--url", &origin.at("/r/rust/new.rss")]);
    assert!(folder.text("in/state/not-before").is_some());
}
