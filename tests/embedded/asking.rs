//! Tests of asking a plane: which events start a module with `where`, what people see of the
//! others, and how events, jobs and correlations are found by their ids.

use serde_json::Value;

use crate::support::{Home, wait_for};

/// Writes a shell script that publishes one event of type `thing` for each of these members.
fn publishing(members: &[&str]) -> String {
    let event = |(n, members): (usize, &&str)| {
        format!("echo '{{\"eventType\":\"thing\",{members}}}' > /ion/out/events/{n:02}.json\n")
    };
    let events: String = members.iter().enumerate().map(event).collect();
    format!("#!/bin/sh\nset -e\ncd /ion/out/data; echo x > a.png; echo x > b.txt\n{events}")
}

/// Two modules with opposite terms are a branch: each event starts one of them. A gathering module
/// waits for the jobs that the terms allow, and for no others.
#[test]
fn opposite_terms_are_a_branch_and_a_gathering_module_waits_for_no_job_that_never_comes() {
    let home = Home::new();
    home.program(
        "make",
        &publishing(&[
            "\"kind\":\"car\",\"score\":0.9",
            "\"kind\":\"car\",\"score\":0.41",
            "\"kind\":\"bus\",\"files\":[\"a.png\"]",
            "\"files\":\"b.txt\"",
        ]),
    );
    home.program("note", "#!/bin/sh\necho '{\"eventType\":\"noted\"}' > /ion/out/events/n.json\n");
    home.program("end", "#!/bin/sh\nls /ion/in/data > /ion/out/data/all\n");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  make: {on: [start], emits: [thing], run: [./make]}\n  \
         cars: {on: [thing], where: [kind=car], emits: [noted], run: [./note]}\n  \
         others: {on: [thing], where: [kind!=car], emits: [noted], run: [./note]}\n  \
         sure: {on: [thing], where: [kind=car|bus, \"score>=0.8\"], emits: [noted], run: [./note]}\n  \
         pictures: {on: [thing], where: [\"files=*.png\"], emits: [noted], run: [./note]}\n  \
         end: {gather: noted, per: start, where: [\"!skip\"], run: [./end]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    home.run(["event", "create", "start", "-d", "skip=1", "--wait"]).well();
    let jobs = home.jobs();
    let count = |module: &str| jobs.iter().filter(|job| job["module"] == module).count();
    let counts = ["make", "cars", "others", "sure", "pictures", "end"].map(count);
    assert_eq!(counts, [2, 4, 4, 2, 2, 1], "{jobs:#?}");
    assert!(jobs.iter().all(|job| job["state"] == "succeeded"), "{jobs:#?}");
    let shown = home.run(["trace"]).well().stdout;
    for line in [
        "· not for end: !skip (skip=1)",
        "· not for sure: score>=0.8 (score=0.41)",
        "· not for others: kind!=car (kind=car)",
        "· not for cars: kind=car (no kind)",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    let listed = home.run(["module", "list"]).well().stdout;
    assert!(listed.contains("thing where kind=car|bus, score>=0.8"), "{listed}");
    home.run(["check"]).well();
    assert_eq!(up.stop(), Some(0));
}

/// The document of an event with very many files does not name them; their list decides.
#[test]
fn a_term_about_files_is_answered_for_an_event_with_very_many_files() {
    let home = Home::new();
    home.program(
        "make",
        "#!/bin/sh\nset -e\nmkdir /ion/out/data/many; cd /ion/out/data/many\n\
         for n in $(seq 1200); do : > $n.txt; done; : > the-one.png\n\
         echo '{\"eventType\":\"thing\",\"files\":[\"many/\"]}' > /ion/out/events/e.json\n",
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  make: {on: [start], emits: [thing], run: [./make]}\n  \
         png: {on: [thing], where: [\"files=*.png\"], run: [\"true\"]}\n  \
         jpg: {on: [thing], where: [\"files=*.jpg\"], run: [\"true\"]}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "start", "--wait"]).well();
    let jobs = home.jobs();
    let mut ran: Vec<&str> = jobs.iter().map(|job| job["module"].as_str().unwrap()).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["make", "png"]);
    assert_eq!(up.stop(), Some(0));
}

/// What a module's terms say when an event is committed decides, whatever they say later.
#[test]
fn a_change_of_the_terms_is_for_events_that_are_committed_after_it() {
    let home = Home::new();
    let create = |term: &str| {
        let term = format!("--where={term}");
        home.run(["module", "create", "-n", "m", "-i", "go", &term, "--", "true"]).well();
    };
    let event = |data: &str| {
        home.run(["event", "create", "go", "-d", data]).well();
    };
    create("kind=car");
    event("kind=car");
    event("kind=bus");
    create("kind=bus");
    event("kind=car");
    event("kind=bus");
    let up = home.start("up", &[]);
    home.run(["event", "create", "go", "-d", "kind=bus", "--wait"]).well();
    wait_for("three jobs to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() == 3
    });
    let mut ran: Vec<String> = home
        .jobs()
        .iter()
        .map(|job| {
            let id = job["eventId"].as_str().unwrap();
            let event = home.run(["event", "get", id]).well().stdout;
            let event: Value = serde_json::from_str(&event).unwrap();
            event["data"][0]["value"].as_str().unwrap().to_owned()
        })
        .collect();
    ran.sort_unstable();
    assert_eq!(ran, ["bus", "bus", "car"]);
    assert_eq!(up.stop(), Some(0));
}

/// A beginning of an id stands for the only id that begins with it, of an event, a job or a
/// correlation. Where several ids begin with it, two of them are named.
#[test]
fn the_beginning_of_an_id_is_enough_where_only_one_id_has_it() {
    let home = Home::new();
    let file = home.write("pipeline.yaml", "modules:\n  m: {on: [go], run: [\"true\"]}\n");
    let up = home.up(&file);
    let nothing = home.run(["trace"]).failed();
    assert!(nothing.stderr.contains("there are no events yet"), "{nothing:#?}");
    for id in ["abc-1", "abc-2", "xyz-1"] {
        let of =
            ["event", "create", "go", "--id", id, "--correlation", &format!("c-{id}"), "--wait"];
        home.run(of).well();
    }
    assert!(home.run(["event", "get", "xyz"]).well().stdout.contains("xyz-1"));
    let several = home.run(["event", "get", "abc"]).failed();
    let says = "several events begin with \"abc\", such as abc-1 and abc-2; give more of the id";
    assert!(several.stderr.contains(says), "{several:#?}");
    let nothing = home.run(["event", "get", "abd"]).failed();
    assert!(nothing.stderr.contains("there is no event \"abd\""), "{nothing:#?}");
    assert!(home.run(["trace", "c-xy"]).well().stdout.contains("correlation c-xyz-1"));
    assert!(home.run(["trace", "abc-1"]).well().stdout.contains("correlation c-abc-1"));
    assert!(home.run(["trace"]).well().stdout.contains("correlation c-xyz-1"));
    let several = home.run(["trace", "c-"]).failed();
    let says = "several correlations begin with \"c-\", such as c-abc-1 and c-xyz-1";
    assert!(several.stderr.contains(says), "{several:#?}");
    let nothing = home.run(["trace", "none"]).failed();
    assert!(
        nothing.stderr.contains("there is no correlation and no event \"none\""),
        "{nothing:#?}"
    );
    let job = home.jobs().remove(0);
    let id = job["id"].as_str().unwrap();
    assert!(home.run(["job", "get", &id[..13]]).well().stdout.contains(id));
    let nothing = home.run(["job", "get", "none"]).failed();
    assert!(nothing.stderr.contains("there is no job \"none\"; `ion job list`"), "{nothing:#?}");
    assert_eq!(up.stop(), Some(0));
}

/// The pipeline of the search's tests: each picture keeps what it shows.
const DETECTING: &str = "\
modules:
  split: {on: [video], emits: [frame], run: [./split]}
  detect: {on: [frame], run: [./detect]}
";

/// A plane with two videos of four frames each. The first one shows a red car in two frames.
fn detecting() -> Home {
    let home = Home::new();
    home.program(
        "split",
        "#!/bin/sh\nv=$(cat /ion/in/meta/v)\nfor n in 1 2 3 4; do \
         echo \"{\\\"eventType\\\":\\\"frame\\\",\\\"v\\\":\\\"$v\\\",\\\"n\\\":$n}\" > /ion/out/events/$n.json; done\n",
    );
    home.program(
        "detect",
        "#!/usr/bin/env python3\n\
import json\n\
v, n = (open(f'/ion/in/meta/{k}').read() for k in 'vn')\n\
red = v == 'a' and n in '23'\n\
found = {'kind': 'car' if n != '4' else 'bus', 'colour': 'red' if red else 'blue', 'score': int(n) / 4, 'n': n}\n\
json.dump(found, open('/ion/out/insights.json', 'w'))\n",
    );
    let file = home.write("pipeline.yaml", DETECTING);
    let up = home.up(&file);
    for video in ["a", "b"] {
        let id = format!("video-{video}");
        let value = format!("v={video}");
        home.run(["event", "create", "video", "--id", &id, "-d", &value, "--wait"]).well();
    }
    assert_eq!(up.stop(), Some(0));
    home
}

/// The question of the product's own story: all videos in which a red car was detected.
#[test]
fn insights_and_the_events_above_them_are_found_by_their_values() {
    let home = detecting();
    let find = |words: &[&str]| home.run([&["--json", "find"], words].concat()).well().documents();
    let values = |words: &[&str], key: &str| -> Vec<String> {
        let value = |hit: &Value| {
            let pair = hit["data"].as_array().unwrap().iter().find(|pair| pair["key"] == key);
            pair.unwrap()["value"].as_str().unwrap().to_owned()
        };
        let mut values: Vec<String> = find(words).iter().map(value).collect();
        values.sort();
        values
    };
    let red = ["insights", "detect", "kind=car", "colour=red"];
    assert_eq!(values(&red, "n"), ["2", "3"]);
    let videos = find(&[&red[..], &["@video"]].concat());
    assert_eq!(videos.len(), 1, "a video is found once: {videos:#?}");
    assert_eq!(videos[0]["above"]["id"], "video-a");
    assert!(videos[0].get("terms").is_none());
    assert_eq!(find(&["insights", "detect", "kind=car|bus"]).len(), 8);
    assert_eq!(find(&["insights", "detect", "kind=b*"]).len(), 2);
    assert_eq!(find(&["insights", "detect", "kind!=car"]).len(), 2);
    assert_eq!(values(&["insights", "detect", "score>=0.75", "kind=car"], "n"), ["3", "3"]);
    assert_eq!(values(&["insights", "detect", "score<0.5"], "n"), ["1", "1"]);
    assert_eq!(find(&["insights", "detect", "colour"]).len(), 8);
    assert_eq!(find(&["insights", "detect", "!colour"]).len(), 0);
    assert_eq!(find(&["insights", "other"]).len(), 0);
    assert_eq!(values(&["events", "frame", "n>=3", "v=a"], "n"), ["3", "4"]);
    let count = home.run(["find", "insights", "detect", "kind=car", "--count"]).well();
    assert_eq!(count.stdout, "6\n");
    assert_eq!(find(&["insights", "detect", "--until", "2020-01-01"]).len(), 0);

    // A search that is cut goes on after its last hit, and the parts are the whole.
    let all: Vec<Value> = find(&["insights", "detect", "kind=car"]);
    let part =
        home.run(["--json", "find", "insights", "detect", "kind=car", "--limit", "4"]).well();
    let hits = part.documents();
    let last = hits[3]["jobId"].as_str().unwrap();
    assert!(part.stderr.contains(&format!("there are more hits: --after {last}")), "{part:#?}");
    let rest = find(&["insights", "detect", "kind=car", "--after", last]);
    assert_eq!([hits, rest].concat(), all);

    let table = home.run(["find", "insights", "detect", "colour=red", "@video"]).well().stdout;
    assert!(table.starts_with("CREATED"), "{table}");
    assert!(table.lines().nth(1).is_some_and(|row| row.contains("video-a")), "{table}");
    let csv = home.run(["find", "insights", "detect", "colour=red", "--csv"]).well().stdout;
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("created,correlation,event,job,colour,kind,score,n"));
    assert_eq!(lines.filter(|line| line.ends_with(",red,car,0.5,2")).count(), 1, "{csv}");
    let wrong = home.run(["find", "insights", "detect", "score>=high"]).failed();
    assert!(wrong.stderr.contains("which is no number"), "{wrong:#?}");
    let wrong = home.run(["find", "insights", "detect", "@a", "@b"]).failed();
    assert!(wrong.stderr.contains("a search has one @TYPE"), "{wrong:#?}");
}

/// The insights of a plane that an older Ion made are indexed when the plane is opened, also if the
/// process that does this is killed.
#[test]
fn the_insights_of_an_older_plane_are_found() {
    let home = detecting();
    let older = "
c.execute(\"UPDATE events SET document = json_remove(document, '$.terms')\")
c.execute(\"DELETE FROM plane WHERE id = 'layout'\")
assert c.execute('SELECT count(*) FROM event_terms').fetchone() == (0,)
c.execute('DROP INDEX events_type_created')
c.execute('PRAGMA user_version = 4')
";
    home.change_database(older);
    for point in ["layout.index=1", "layout.insights=1"] {
        let killed = home.run_with(&[("ION_FAILPOINTS", point)], ["job", "list"]);
        assert_eq!(killed.code, None, "{point}: {killed:#?}");
    }
    let found = home.run(["--json", "find", "insights", "detect", "colour=red"]).well();
    assert_eq!(found.documents().len(), 2, "{found:#?}");
}
