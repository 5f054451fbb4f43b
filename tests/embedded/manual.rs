//! Tests that follow the manual as a reader does: they run its own lines in a shell.
//!
//! They replace only what differs from machine to machine: ports, ids and folders. A test fails if
//! the manual has no line any more with the beginning that the test looks for. A test in
//! `src/main.rs` shows that each command line of the manual is valid.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{CommandOutput, Home, ION, signal, wait_for};

/// A page of the manual, and the home in which its lines are run.
struct Page {
    text: String,
    home: Home,
    /// Texts of the page, each with the text that replaces it.
    places: Vec<(String, String)>,
}

impl Page {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        Self { text: std::fs::read_to_string(path).unwrap(), home: Home::new(), places: vec![] }
    }

    /// Replaces a text of the page, wherever it stands in a line that is run.
    fn place(&mut self, there: &str, here: impl Into<String>) {
        assert!(self.text.contains(there), "{there:?} is not in the page any more");
        self.places.push((there.to_owned(), here.into()));
    }

    /// Replaces an address of the page by one with a free port of this machine.
    fn port(&mut self, there: &str) {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = free.local_addr().unwrap().to_string();
        self.place(there, here);
    }

    /// Returns the block number `n` of the page in this language, counted from 0.
    fn block(&self, language: &str, n: usize) -> String {
        let begin = format!("```{language}\n");
        let blocks = self.text.split(&begin).skip(1);
        let block = blocks.map(|rest| rest.split("```").next().unwrap()).nth(n);
        block.unwrap_or_else(|| panic!("the page has too few blocks of {language}")).to_owned()
    }

    /// Returns the first line with this beginning, with the replacements and without the
    /// explanation beside it.
    fn line(&self, beginning: &str) -> String {
        let mut lines = self.text.lines().map(str::trim_start);
        let line = lines.find(|line| line.starts_with(beginning));
        let line = line.unwrap_or_else(|| panic!("no line of the page begins with {beginning:?}"));
        let line = line.split("    ").next().unwrap().trim_end().to_owned();
        self.places.iter().fold(line, |line, (there, here)| line.replace(there, here))
    }

    /// Returns a command that runs a line in a shell, which finds the `ion` under test.
    fn shell(&self, line: &str) -> Command {
        let folder = Path::new(ION).parent().unwrap().display();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap()))
            .env("ION_HOME", self.home.state())
            .current_dir(self.home.path());
        shell
    }

    /// Runs the line with this beginning.
    fn run(&self, beginning: &str) -> CommandOutput {
        let line = self.line(beginning);
        CommandOutput::of(self.shell(&line).output().unwrap())
    }

    /// Starts the line with this beginning, whose command runs until it is stopped. Waits until the
    /// command says that it is ready.
    fn start(&self, beginning: &str) -> Started {
        let line = self.line(beginning);
        let line = line.trim_end_matches('&');
        let log = self.home.path().join("started.log");
        let file = std::fs::File::create(&log).unwrap();
        let mut shell = self.shell(&format!("exec {line}"));
        let child = shell.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let started = Started(child);
        wait_for(line, || {
            let said = std::fs::read_to_string(&log).unwrap();
            ["ready", "mounted at"].iter().any(|word| said.contains(word))
        });
        started
    }
}

/// A command that is stopped on drop.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        let _ = self.0.wait();
    }
}

#[test]
fn the_readme_is_true_as_it_stands() {
    let mut page = Page::open("README.md");
    let home = page.home.path().to_owned();
    page.home.program("count.sh", &page.block("sh", 1));
    page.home.write("pipeline.yaml", page.block("yaml", 0));
    page.home.write("text.txt", "three small words\n");
    let up = page.start("ion up pipeline.yaml");
    page.run("ion event create new_text").well();
    page.run("ion run --file text.txt").well();
    assert_eq!(std::fs::read_to_string(home.join("results/n")).unwrap(), "3\n");
    let trace = page.run("ion trace ").well();
    assert!(trace.stdout.contains("run"), "{trace:#?}");
    drop(up);

    // The following lines look for a failure, so the pipeline gets a module that fails.
    page.home.program("detect", "#!/bin/sh\necho Traceback of what went wrong >&2\nexit 1\n");
    let pipeline =
        page.block("yaml", 0) + "  detect: {on: [new_text], run: [./detect], retries: 0}\n";
    page.home.write("pipeline.yaml", pipeline);
    let up = page.start("ion up pipeline.yaml");
    page.run("ion event create new_text").failed();
    let dead = page.home.jobs().into_iter().find(|job| job["state"] == "dead").unwrap();
    page.place("3f2b91c0", dead["id"].as_str().unwrap());
    page.place("/tmp/plane", home.join("plane").display().to_string());
    assert!(page.run("ion job logs 3f2b91c0 -f").well().stdout.contains("Traceback"));
    let mount = page.start("ion mount /tmp/plane");
    assert!(page.run("ls   /tmp/plane/correlations").well().stdout.contains("new_text"));
    assert!(
        page.run("grep -r Traceback /tmp/plane/modules/detect/dead")
            .well()
            .stdout
            .contains("went wrong")
    );
    drop(mount);
    assert!(page.run("ion dead list").well().stdout.contains("detect"));
    page.run("ion check --deep").well();
    page.run("ion gc --older-than").well();
    drop(up);
    let (_, last) = page.places[0].clone();
    page.places[0].1 = dead["correlationId"].as_str().unwrap().to_owned();
    let ran = page.run("ion cancel 3f2b91c0");
    assert!(ran.code == Some(0), "{last}: {ran:#?}");
    page.run("ion doctor").well();
}

#[test]
fn a_chain_answers_as_the_manual_says() {
    let mut page = Page::open("docs/chains.md");
    page.port("127.0.0.1:8080");
    let chain: String = page
        .text
        .lines()
        .skip_while(|line| !line.contains("# chain.yaml"))
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", &line[4..]))
        .collect();
    page.home.write("chain.yaml", chain);
    let _up = page.start("ion up chain.yaml");
    let answer = page.run("curl --data-binary").well();
    assert_eq!(answer.stdout, "this is raw data\n".replace(' ', "\n"));
}

#[test]
fn a_pipeline_is_started_by_http_as_the_manual_says() {
    let mut page = Page::open("docs/http.md");
    page.port("127.0.0.1:8080");
    page.port("127.0.0.1:8081");
    page.home.write("clip.mp4", "no clip\n");
    page.home.write(
        "pipeline.yaml",
        "modules:\n  look: {on: [new_video], run: [grep, no clip, /ion/in/data/clip.mp4]}\n",
    );
    let _up = page.start("ion up pipeline.yaml");
    let _gateway = page.start("ion gateway --listen");
    let answer = page.run("curl -F file=@clip.mp4").well();
    assert!(answer.stdout.contains("\"outcome\":\"succeeded\""), "{answer:#?}");
    let job = page.home.jobs().remove(0);
    assert_eq!((&job["module"], &job["state"]), (&"look".into(), &"succeeded".into()));
}

#[test]
fn sources_are_changed_by_http_as_the_manual_says() {
    let mut page = Page::open("docs/sources.md");
    page.port("127.0.0.1:8080");
    page.home.program("count", "#!/bin/sh\ncat /ion/in/meta/from\n");
    let pipeline: String = page
        .text
        .lines()
        .skip_while(|line| *line != "    modules:")
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", &line[4..]))
        .collect();
    page.home.write("pipeline.yaml", pipeline);
    let here = page.places[0].1.clone();
    page.home.run(["source", "try", "every-minute", "--pipeline", "pipeline.yaml"]).well();
    let _up = page.home.up_with(&["--gateway", &here], &page.home.path().join("pipeline.yaml"));
    page.run("echo '{\"module\"").well();
    let answer = |beginning: &str| {
        let answer = page.run(beginning).well();
        serde_json::from_str::<Value>(&answer.stdout)
            .unwrap_or_else(|error| panic!("{error}: {answer:#?}"))
    };
    assert_eq!(answer("curl http://127.0.0.1:8080/source-kinds")["kinds"][0]["module"], "count");
    let added = answer("curl --json @source.json");
    assert_eq!(added["definition"]["with"]["from"], "100", "{added}");
    assert_eq!(answer("curl http://127.0.0.1:8080/sources/quarter")["name"], "quarter");
    assert_eq!(answer("curl --json '{")["definition"]["every"], "5m");
    assert_eq!(answer("curl -X POST")["name"], "quarter");
    let listed = answer("curl http://127.0.0.1:8080/sources?limit");
    assert_eq!(listed["sources"].as_array().unwrap().len(), 2, "{listed}");
    page.run("curl -X DELETE").well();
    page.home.run(["source", "get", "quarter"]).failed();
}

#[test]
fn numbers_are_read_as_the_manual_says() {
    let mut page = Page::open("docs/metrics.md");
    page.port("127.0.0.1:9464");
    page.home.write("pipeline.yaml", "modules:\n  look: {on: [x], run: [cat]}\n");
    let _up = page.start("ion up pipeline.yaml --metrics");
    assert!(page.run("curl http://127.0.0.1:9464/metrics").well().stdout.ends_with("# EOF\n"));
    for beginning in ["curl http://127.0.0.1:9464/ready", "curl http://127.0.0.1:9464/healthz"] {
        page.run(beginning).well();
    }
}

#[test]
fn the_words_of_some_texts_are_counted_as_their_example_says() {
    let mut page = Page::open("examples/words/README.md");
    let root = env!("CARGO_MANIFEST_DIR");
    page.place("examples/words/pipeline.yaml", format!("{root}/examples/words/pipeline.yaml"));
    page.place("/tmp/plane", page.home.path().join("plane").display().to_string());
    let _up = page.start("ion up");
    page.run("ion event create new_texts").well();
    let _mount = page.start("ion mount");
    let ranking = page.run("cat /tmp/plane/types/ranking").well().stdout;
    assert!(
        ranking.lines().count() > 3
            && ranking.lines().all(|line| line.split_whitespace().count() == 2),
        "{ranking}"
    );
}
