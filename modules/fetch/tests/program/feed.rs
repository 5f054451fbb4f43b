//! `ion-fetch feed`.

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::folder::Folder;
use crate::origin::{Asked, Origin, Reply};

/// Returns a feed of RSS with these titles, which are guids and paths too.
fn rss(titles: &[&str]) -> String {
    let item = |title: &&str| {
        format!("<item><guid>{title}</guid><link>/{title}</link><title>{title}</title></item>")
    };
    let items: String = titles.iter().map(item).collect();
    format!("<rss version='2.0'><channel><title>News</title>{items}</channel></rss>")
}

fn feed(titles: &'static [&'static str]) -> impl Fn(&Asked) -> Reply + Send + Sync {
    |_| Reply::ok(rss(titles)).with("Content-Type", "application/rss+xml")
}

#[test]
fn each_item_is_published_once_with_its_file_and_its_values() {
    let origin = Origin::start(feed(&["b", "a"]));
    let folder = Folder::new();
    let url = origin.at("/feed");
    folder.succeed("feed", &["--url", &url, "--first", "1"]);
    let events = folder.take_events();
    assert_eq!(events.len(), 1);
    let (name, event) = events.first_key_value().unwrap();
    assert_eq!(
        *event,
        json!({
            "eventType": "article", "files": [format!("{name}/item.json")], "id": name,
            "title": "b", "link": origin.at("/b"), "feed": "News"
        })
    );
    let item = folder.json(&format!("out/data/{name}/item.json"));
    assert_eq!((&item["guid"], &item["feed"]["title"]), (&json!("b"), &json!("News")));
    origin.answer(feed(&["c", "b", "a"]));
    folder.succeed("feed", &["--url", &url]);
    assert_eq!(folder.take_titles(), ["c"]);
    folder.succeed("feed", &["--url", &url]);
    assert_eq!(folder.take_titles(), [""; 0]);
}

#[test]
fn a_run_that_did_not_count_is_repeated_with_the_same_events() {
    let origin = Origin::start(feed(&["b", "a"]));
    let folder = Folder::new();
    let url = origin.at("/feed");
    let run = || {
        assert_eq!(folder.run("feed", &["--url", &url, "--first", "all"]).code, 0);
        folder.take_events()
    };
    let first = run();
    assert_eq!(first.len(), 2);
    assert_eq!(run(), first);
}

#[test]
fn validators_are_sent_back_as_they_came_and_304_changes_nothing() {
    let origin = Origin::start(|asked| match asked.headers.get("if-none-match") {
        None => Reply::ok(rss(&["a"]))
            .with("ETag", "W/\"e,x\"")
            .with("Last-Modified", "yesterday, 25:00"),
        Some(_) => Reply::new(304, ""),
    });
    let folder = Folder::new();
    folder.write("in/meta/url", &origin.at("/feed"));
    folder.succeed("feed", &["--contact", "me@example.org"]);
    let asked = origin.take_asked();
    assert!(asked[0].headers["user-agent"].contains("(me@example.org)"));
    let state = [folder.text("in/state/feed.json"), folder.text("in/state/seen")];
    assert!(folder.succeed("feed", &[]).contains("nothing has changed"));
    let asked = origin.take_asked();
    assert_eq!(asked[0].headers["if-none-match"], "W/\"e,x\"");
    assert_eq!(asked[0].headers["if-modified-since"], "yesterday, 25:00");
    assert_eq!([folder.text("in/state/feed.json"), folder.text("in/state/seen")], state);
}

#[test]
fn a_permanent_redirect_is_adopted_in_time_and_another_one_never() {
    for (status, adopted) in [(301, true), (308, true), (302, false), (307, false)] {
        let origin = Origin::start(move |asked| match &*asked.path {
            "/old" => Reply::redirect(status, "/new"),
            _ => Reply::ok(rss(&["a"])),
        });
        let folder = Folder::new();
        for _ in 0..3 {
            folder.succeed("feed", &["--url", &origin.at("/old")]);
            let paths: Vec<_> = origin.take_asked().into_iter().map(|asked| asked.path).collect();
            assert_eq!(paths, ["/old", "/new"], "{status}");
        }
        folder.succeed("feed", &["--url", &origin.at("/old")]);
        assert_eq!(origin.take_asked()[0].path == "/new", adopted, "{status}");
    }
}

#[test]
fn a_feed_that_is_gone_says_so_in_its_state() {
    let origin = Origin::start(feed(&["a"]));
    let folder = Folder::new();
    folder.succeed("feed", &["--url", &origin.at("/feed")]);
    origin.answer(|_| Reply::new(410, "gone"));
    folder.succeed("feed", &["--url", &origin.at("/feed")]);
    assert!(folder.text("in/state/gone").unwrap().contains("410"));
    assert!(folder.text("in/state/seen").is_some());
    // Whoever starts it again may find it again.
    origin.answer(feed(&["b", "a"]));
    folder.succeed("feed", &["--url", &origin.at("/feed")]);
    assert_eq!((folder.text("in/state/gone"), folder.take_titles()), (None, vec!["b".to_owned()]));
}

#[test]
fn a_server_that_asks_for_a_pause_is_not_asked_before_its_end() {
    for (status, header, value) in [
        (429, "Retry-After", "3600"),
        (503, "Retry-After", "3600"),
        (200, "Cache-Control", "max-age=3600"),
    ] {
        let origin = Origin::start(move |_| Reply::new(status, rss(&["a"])).with(header, value));
        let folder = Folder::new();
        folder.succeed("feed", &["--url", &origin.at("/feed")]);
        let until: jiff::Timestamp =
            folder.text("in/state/not-before").unwrap().trim().parse().unwrap();
        let wait = until.duration_since(jiff::Timestamp::now()).as_secs();
        assert!((3500..=3600).contains(&wait), "{status} {wait}");
        assert_eq!(origin.take_asked().len(), 1);
        let said = folder.succeed("feed", &["--url", &origin.at("/feed")]);
        assert!(said.contains("no request before"), "{said}");
        assert_eq!(origin.take_asked().len(), 0, "{status}");
        folder.succeed("feed", &["--url", &origin.at("/feed"), "--ignore-wait"]);
        assert_eq!(origin.take_asked().len(), 1);
    }
}

#[test]
fn forbidden_is_an_error_or_a_pause_as_one_wishes() {
    let origin = Origin::start(|_| Reply::new(403, "no"));
    let folder = Folder::new();
    let said = folder.fail("feed", &["--url", &origin.at("/feed")]);
    assert!(said.contains("403") && said.contains("--forbidden-waits"), "{said}");
    folder.succeed("feed", &["--url", &origin.at("/feed"), "--forbidden-waits"]);
    assert!(folder.text("in/state/not-before").is_some());
}

#[test]
fn a_server_that_refuses_every_visit_makes_the_run_fail_in_the_end() {
    let origin = Origin::start(|_| Reply::new(429, ""));
    let folder = Folder::new();
    let url = origin.at("/feed");
    for _ in 0..10 {
        folder.succeed("feed", &["--url", &url, "--ignore-wait"]);
    }
    let said = folder.fail("feed", &["--url", &url, "--ignore-wait"]);
    assert!(said.contains("10 visits in a row"), "{said}");
}

#[test]
fn errors_of_servers_name_the_address_and_the_way_out() {
    for (reply, arguments, expected) in [
        (Reply::new(404, ""), &[][..], "404"),
        (Reply::new(500, ""), &[], "later run"),
        (Reply::redirect(302, "/feed"), &[], "redirects more than 5 times"),
        (Reply::redirect(302, "ftp://example.org/"), &[], "must begin with https://"),
        (Reply::ok(rss(&["a"])).cut_at(20), &[], "does not answer"),
        (
            Reply::ok(rss(&["a"])).dripping(Duration::from_millis(300)),
            &["--timeout", "1s"],
            "--timeout",
        ),
        (Reply::ok("<feed>".repeat(1000)), &["--max-bytes", "1000"], "--max-bytes"),
        (
            Reply::ok(bomb()).with("Content-Encoding", "gzip"),
            &["--max-bytes", "1000000"],
            "--max-bytes",
        ),
        (Reply::ok("no feed"), &[], "is no feed: it has no <rss>"),
        (Reply::ok(""), &[], "the answer is empty"),
        (
            Reply::ok(
                "<html><link rel=alternate type='application/rss+xml' href='/rss.xml'></html>",
            )
            .with("Content-Type", "text/html"),
            &[],
            "/rss.xml",
        ),
    ] {
        let origin = Origin::start(move |_| reply.clone());
        let folder = Folder::new();
        let begin = Instant::now();
        let said = folder.fail("feed", &[&["--url", &*origin.at("/feed")], arguments].concat());
        assert!(said.contains("://") && said.contains(expected), "{said}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert_eq!(folder.text("out/state/seen"), None);
    }
}

/// Returns a few kilobytes that unpack to 100 megabytes.
fn bomb() -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::best());
    for _ in 0..100 {
        encoder.write_all(&[b' '; 1_000_000]).unwrap();
    }
    encoder.finish().unwrap();
    packed
}

#[test]
fn packed_feeds_and_wrong_encodings_are_read() {
    let packed = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(rss(&["é"]).as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let latin: Vec<u8> = rss(&["é"]).chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    for reply in [
        Reply::ok(packed.clone()).with("Content-Encoding", "gzip"),
        Reply::ok(packed),
        Reply::ok(latin.clone()).with("Content-Type", "text/xml; charset=iso-8859-1"),
        Reply::ok(latin).with("Content-Type", "text/xml; charset=utf-8"),
        Reply::ok(rss(&["é"])).with("Content-Type", "text/xml; charset=us-ascii-or-so"),
        Reply::ok(format!("\u{FEFF}\n{}", rss(&["é\u{8}"]))),
    ] {
        let origin = Origin::start(move |_| reply.clone());
        let folder = Folder::new();
        folder.succeed("feed", &["--url", &origin.at("/feed"), "--first", "all"]);
        assert_eq!(folder.take_titles(), ["é"]);
    }
}

#[test]
fn private_addresses_are_refused_however_they_are_written() {
    let origin = Origin::start(feed(&["a"]));
    let port = origin.port();
    for host in
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0"]
    {
        let url = format!("http://{host}:{port}/feed");
        let ended = Folder::new().run_strictly("feed", &["--url", &url]);
        assert_eq!(ended.code, 1);
        assert!(ended.said.contains("--allow-private"), "{url}: {}", ended.said);
    }
    assert_eq!(origin.take_asked().len(), 0);
}

#[test]
fn a_redirect_never_leads_from_https_to_http() {
    let (config, authority) = certificate();
    let plain = Origin::start(feed(&["a"]));
    let target = plain.at("/feed");
    let secure = Origin::start_tls(config, move |asked| match &*asked.path {
        "/down" => Reply::redirect(301, &target),
        _ => Reply::ok(rss(&["a"])),
    });
    let mut folder = Folder::new();
    folder.set_env("SSL_CERT_FILE", authority.path().join("cert.pem").to_str().unwrap());
    folder.succeed("feed", &["--url", &secure.at("/feed")]);
    let said = folder.fail("feed", &["--url", &secure.at("/down")]);
    assert!(said.contains("from https to http"), "{said}");
    assert_eq!(plain.take_asked().len(), 0);
    // Without the authority, the server is nobody.
    assert_eq!(Folder::new().run("feed", &["--url", &secure.at("/feed")]).code, 1);
}

/// Makes a certificate for `localhost`, and returns the folder that it is in.
fn certificate() -> (Arc<rustls::ServerConfig>, tempfile::TempDir) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj".split(' '),
        )
        .args(["/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:false"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificate = CertificateDer::from_pem_file(dir.path().join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.path().join("key.pem")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    (Arc::new(config.with_single_cert(vec![certificate], key).unwrap()), dir)
}

#[test]
fn the_page_of_an_item_comes_with_its_text_and_its_picture() {
    let words = "Twenty words and more make a paragraph that looks like the text of an article, \
        and not like a menu of links.";
    let page = format!(
        "<meta property=og:image content=/p.png><nav><a href=/>Home</a></nav>\
         <p>{words}</p><p>{words}</p>"
    );
    let origin = Origin::start(move |asked| match &*asked.path {
        "/feed" => Reply::ok(rss(&["a", "missing"])),
        "/a" => Reply::ok(page.clone()).with("Content-Type", "text/html; charset=utf-8"),
        "/p.png" => Reply::ok("PNG").with("Content-Type", "image/png"),
        _ => Reply::new(404, ""),
    });
    let folder = Folder::new();
    folder.write("in/meta/url", &origin.at("/feed"));
    folder.write("in/meta/page", "true\n");
    folder.succeed("feed", &["--first=all"]);
    for (id, event) in folder.take_events() {
        let item = folder.json(&format!("out/data/{id}/item.json"));
        if event["title"] == "missing" {
            assert!(item["page"]["error"].as_str().unwrap().contains("404"));
            assert_eq!(event["files"], json!([format!("{id}/item.json")]));
            continue;
        }
        let names = ["item.json", "page.html", "page.txt", "picture.png"];
        assert_eq!(event["files"], json!(names.map(|name| format!("{id}/{name}"))));
        assert_eq!(
            folder.text(&format!("out/data/{id}/page.txt")).unwrap(),
            format!("{words}\n{words}")
        );
        assert_eq!(folder.text(&format!("out/data/{id}/picture.png")).unwrap(), "PNG");
        assert!(folder.text(&format!("out/data/{id}/page.html")).unwrap().contains("og:image"));
    }
}

#[test]
fn one_event_may_have_all_items_of_a_run() {
    let origin = Origin::start(feed(&["b", "a"]));
    let folder = Folder::new();
    let arguments = &["--url", &*origin.at("/feed"), "--first", "all", "--emit", "articles"];
    folder.succeed("feed", arguments);
    let events = folder.take_events();
    assert_eq!(events.len(), 1);
    let expected =
        json!({"eventType": "articles", "files": ["items.ndjson"], "count": "2", "feed": "News"});
    assert_eq!(events["articles"], expected);
    let lines = folder.text("out/data/items.ndjson").unwrap();
    let titles: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["title"].clone())
        .collect();
    assert_eq!(titles, ["b", "a"]);
    folder.succeed("feed", arguments);
    assert!(folder.take_events().is_empty());
}

#[test]
fn a_changed_item_is_an_update_if_that_is_wanted() {
    let one = |text: &str| {
        format!(
            "<rss><channel><item><guid>1</guid><title>t</title><description>{text}</description></item></channel></rss>"
        )
    };
    let (old, new) = (one("old"), one("new"));
    let origin = Origin::start(move |_| Reply::ok(old.clone()));
    let folder = Folder::new();
    let url = origin.at("/feed");
    folder.succeed("feed", &["--url", &url, "--updates"]);
    origin.answer(move |_| Reply::ok(new.clone()));
    folder.succeed("feed", &["--url", &url, "--updates"]);
    let events = folder.take_events();
    assert_eq!(events.values().next().unwrap()["update"], "true");
    folder.succeed("feed", &["--url", &url, "--updates"]);
    assert!(folder.take_events().is_empty());
}

#[test]
fn one_bad_folder_of_a_batch_harms_no_other() {
    let origin = Origin::start(|asked| match &*asked.path {
        "/good" => Reply::ok(rss(&["a"])),
        _ => Reply::new(500, ""),
    });
    let folder = Folder::new();
    for (number, path) in ["/good", "/bad", "/good"].iter().enumerate() {
        folder.write(&format!("{number}/in/meta/url"), &origin.at(path));
    }
    let ended = folder.run("feed", &["--first", "all"]);
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(folder.text("1/out/failed").unwrap().contains("500"));
    for number in [0, 2] {
        let events = folder.path().join(format!("{number}/out/events"));
        assert_eq!(std::fs::read_dir(events).unwrap().count(), 1);
        assert_eq!(folder.text(&format!("{number}/out/failed")), None);
    }
}

#[test]
fn a_wrong_parameter_is_named_and_is_no_reason_to_try_again() {
    let folder = Folder::new();
    for (arguments, expected) in [
        (&[][..], "in/meta/url"),
        (&["--url", "no address"], "url is wrong"),
        (&["--url", "http://a.example/", "--first", "some"], "first is wrong"),
        (&["--url", "http://a.example/", "--emit", "some"], "emit is wrong"),
        (&["--url", "http://a.example/", "--page=maybe"], "page is wrong"),
    ] {
        let ended = folder.run("feed", arguments);
        assert_eq!(ended.code, 2, "{}", ended.said);
        assert!(ended.said.contains(expected), "{}", ended.said);
    }
}
