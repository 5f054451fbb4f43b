//! Shows that forms mean the same whichever client sends them. The test replays real requests,
//! `clients/*.http`, byte by byte to a gateway on the embedded stores.
//!
//! Each file holds one request. The requests of `CAPTURED` were captured from the clients
//! themselves; those of `WRITTEN` were written by hand, as the clients' source code writes them.
//! Every client was asked for the same form: a value with a letter that is not ASCII, a value whose
//! name has a quote, and files in two fields. The names of the files have letters that are not
//! ASCII, a quote, a backslash and a percent sign; one file is empty, and one has a name without an
//! extension.

use std::path::PathBuf;

use serde_json::Value;

use super::{gateway, text};
use crate::support::Home;
use crate::support::http::{Http, get};

/// A client, and what its request means: values, and files with their contents.
struct Captured {
    /// The name of the request's file, without the extension.
    name: &'static str,
    /// The client, with its version or with the source that the request follows.
    client: &'static str,
    values: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
}

const NOTE: (&str, &str) = ("note", "für alle");
const QUOTE: (&str, &str) = ("a\"b", "1");
const UMLAUT: (&str, &str) = ("ü", "2");

const FILES: &[(&str, &str)] = &[
    ("ä 😀.txt", "hello\n"),
    ("a\"b.txt", "q"),
    ("c\\d.txt", "bs"),
    ("50%25 off.txt", "pc"),
    ("empty.txt", ""),
    ("same", "1"),
];

/// The files of Apache HttpClient. The Java program that sent them left the emoji out of the first
/// name.
const OF_APACHE: &[(&str, &str)] = &[
    ("ä.txt", "hello\n"),
    ("a\"b.txt", "q"),
    ("c\\d.txt", "bs"),
    ("50%25 off.txt", "pc"),
    ("empty.txt", ""),
    ("same", "1"),
];

/// The values of a page's form. The form also has a text of two lines, and a field in which no file
/// was chosen.
const OF_A_PAGE: &[(&str, &str)] = &[NOTE, QUOTE, ("text", "two\r\nlines")];

const CAPTURED: &[Captured] = &[
    Captured { name: "chrome", client: "Chromium 156.0.8078.108", values: OF_A_PAGE, files: FILES },
    Captured { name: "firefox", client: "Firefox 153.7.0esr", values: OF_A_PAGE, files: FILES },
    Captured { name: "curl", client: "curl 7.88.1", values: &[NOTE, QUOTE], files: FILES },
    Captured {
        name: "requests",
        client: "requests 2.34.2, urllib3 2.8.0",
        values: &[NOTE, QUOTE, UMLAUT],
        files: FILES,
    },
    Captured {
        name: "urllib3-1",
        client: "requests 2.34.2, urllib3 1.26.20",
        values: &[NOTE, QUOTE, UMLAUT],
        files: FILES,
    },
    Captured {
        name: "httpx",
        client: "httpx 0.28.1",
        values: &[NOTE, QUOTE, UMLAUT],
        files: FILES,
    },
    Captured {
        name: "undici",
        client: "fetch of Node 20.20.2, undici 6.24.1",
        values: &[NOTE, QUOTE, ("line\r\nend", "2")],
        files: FILES,
    },
    Captured {
        name: "form-data",
        client: "form-data 4.0.6, as axios uses it",
        values: &[NOTE, QUOTE],
        files: FILES,
    },
    Captured {
        name: "go",
        client: "Go 1.19.8",
        values: &[NOTE, QUOTE, ("c\\d", "2")],
        files: FILES,
    },
    Captured { name: "okhttp", client: "OkHttp 3.13.1", values: &[NOTE, QUOTE], files: FILES },
    Captured {
        name: "apache-browser",
        client: "Apache HttpClient 4.5.14, BROWSER_COMPATIBLE",
        values: &[NOTE, QUOTE],
        files: OF_APACHE,
    },
    Captured {
        name: "apache-rfc6532",
        client: "Apache HttpClient 4.5.14, RFC6532",
        values: &[NOTE, QUOTE],
        files: OF_APACHE,
    },
    Captured {
        name: "aiohttp-plain",
        client: "aiohttp 3.14.5, quote_fields=False",
        values: &[NOTE, QUOTE],
        files: FILES,
    },
    // By default aiohttp escapes names as parts of URLs. A gateway cannot tell such a name from the
    // name of a file that is really called so.
    Captured {
        name: "aiohttp",
        client: "aiohttp 3.14.5",
        values: &[NOTE, QUOTE],
        files: &[
            ("%C3%A4%20%F0%9F%98%80.txt", "hello\n"),
            ("a\"b.txt", "q"),
            ("c%5Cd.txt", "bs"),
            ("50%2525%20off.txt", "pc"),
            ("empty.txt", ""),
            ("same", "1"),
        ],
    },
    // By default Apache HttpClient replaces characters that are not ASCII before it sends a name.
    Captured {
        name: "apache-strict",
        client: "Apache HttpClient 4.5.14, STRICT",
        values: &[NOTE, QUOTE],
        files: &[
            ("?.txt", "hello\n"),
            ("a\"b.txt", "q"),
            ("c\\d.txt", "bs"),
            ("50%25 off.txt", "pc"),
            ("empty.txt", ""),
            ("same", "1"),
        ],
    },
];

const WRITTEN: &[Captured] = &[
    Captured {
        name: "safari",
        client: "Safari, after the HTML standard and WebKit's FormDataBuilder",
        values: OF_A_PAGE,
        files: FILES,
    },
    // .NET refuses a quote in a file's name.
    Captured {
        name: "dotnet",
        client: ".NET, after MultipartFormDataContent",
        values: &[NOTE, UMLAUT],
        files: &[
            ("ä 😀.txt", "hello\n"),
            ("c\\d.txt", "bs"),
            ("50%25 off.txt", "pc"),
            ("empty.txt", ""),
            ("same", "1"),
        ],
    },
    Captured {
        name: "powershell",
        client: "PowerShell 7 -Form, after WebRequestPSCmdlet",
        values: &[NOTE],
        files: &[
            ("ä 😀.txt", "hello\n"),
            ("50%25 off.txt", "pc"),
            ("empty.txt", ""),
            ("same", "1"),
        ],
    },
    Captured {
        name: "postman",
        client: "Postman, after postman-request and form-data",
        values: &[NOTE, QUOTE],
        files: FILES,
    },
    Captured {
        name: "urllib3-old",
        client: "requests with urllib3 before 1.25, after its format_header_param",
        values: &[NOTE],
        files: &[("ä 😀.txt", "hello\n"), ("a\"b.txt", "q"), ("same", "1")],
    },
];

/// Returns a name as a part of a path.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[test]
fn forms_mean_the_same_whichever_client_sends_them() {
    let folder =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/gateway/clients"));
    let home = Home::new();
    let (daemon, at) = gateway(&home, &[]);
    for Captured { name, client, values, files } in CAPTURED.iter().chain(WRITTEN) {
        let mut http = Http::to(&at);
        http.send(&std::fs::read(folder.join(format!("{name}.http"))).unwrap()).unwrap();
        let answer = http.answer("POST").unwrap();
        assert_eq!(answer.status, 202, "{client}: {}", answer.text());
        let path = format!("/events/{}", text(&answer.says(202), "eventId"));
        let event = get(&at, &path).says(200);
        let pair = |pair: &Value| (text(pair, "key").to_owned(), text(pair, "value").to_owned());
        let seen: Vec<_> = event["data"].as_array().unwrap().iter().map(pair).collect();
        let expected: Vec<_> =
            values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(seen, expected, "{client}");
        let seen: Vec<&str> =
            event["files"].as_array().unwrap().iter().map(|file| text(file, "name")).collect();
        let expected: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(seen, expected, "{client}");
        for (name, content) in *files {
            let file = get(&at, &format!("{path}/data/{}", escaped(name)));
            assert_eq!((file.status, file.text().as_str()), (200, *content), "{client}: {name}");
        }
    }
    // Each request in the folder is in one of the lists.
    let there = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "http"));
    assert_eq!(there.count(), CAPTURED.len() + WRITTEN.len());
    assert_eq!(daemon.stop(), Some(0));
}
