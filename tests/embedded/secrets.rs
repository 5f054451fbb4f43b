//! Tests of secrets: that modules read them, and that their values are nowhere else.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{CommandOutput, Home, below, wait_for};

/// The values that nothing may show. Each has a part that is nowhere else.
const URL: &str = "hidden-of-slack-4711-as-a-whole\n";
const KEY: &str =
    "-----BEGIN KEY-----\nMIIEvAIBhidden-one\nkqhkiG9whidden-two\n-----END KEY-----\n";

/// What each value has in it, and nothing else.
const HIDDEN: &str = "hidden-";

/// Writes a secret into the folder `vault` beside the home, which only its owner may enter.
fn put(home: &Home, name: &str, value: &str) -> PathBuf {
    let vault = vault(home);
    fs::create_dir_all(&vault).unwrap();
    fs::set_permissions(&vault, Permissions::from_mode(0o700)).unwrap();
    let path = vault.join(name);
    let _ = fs::remove_file(&path);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(value.as_bytes()).unwrap();
    path
}

fn vault(home: &Home) -> PathBuf {
    home.path().join("vault")
}

/// Returns a home whose commands look for secrets in `vault`.
fn home() -> Home {
    let mut home = Home::new();
    home.env.push(("ION_SECRETS".into(), vault(&home).display().to_string()));
    home
}

/// Fails if a file below a folder, but for the vault, has a part of a value in it.
fn assert_no_value_below(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if path.ends_with("vault") || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            assert_no_value_below(&path);
        } else if let Ok(bytes) = fs::read(&path) {
            assert!(!has_value(&bytes), "{} has a value", path.display());
        }
    }
}

fn has_value(bytes: &[u8]) -> bool {
    bytes.windows(HIDDEN.len()).any(|part| part == HIDDEN.as_bytes())
}

/// Fails if a process of `ion up`, or one below it, has a value in its environment or command line.
fn assert_no_value_in_processes(up: u32) {
    let pids: Vec<u32> = below(up).into_iter().map(|(pid, _)| pid).chain([up]).collect();
    assert!(pids.len() > 2, "no job runs");
    for pid in pids {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!has_value(&bytes), "{file} of process {pid} has a value");
        }
    }
}

/// Uses its secrets, and shows them in every way in which programs show something.
const TELL: &str = r#"#!/bin/sh
set -e
url=$(cat /run/secrets/SLACK_URL)
test "$ION_SECRETS_DIR" = /run/secrets
test "$(ls /run/secrets | tr '\n' ' ')" = "KEY SLACK_URL "
test "$(stat -c %a:%u /run/secrets/KEY)" = "400:$(id -u)"
test "$(stat -c %a /run/secrets)" = 500
test "$(stat -f -c %T /run/secrets)" = tmpfs
! (echo x > /run/secrets/x) 2>/dev/null
! (echo x > /run/secrets/KEY) 2>/dev/null
echo "said: $url"
echo "said on stderr: $url" >&2
printf 'in two: hid'
sleep 0.2
printf 'den-of-slack-4'
sleep 0.2
echo '711-as-a-whole end'
cat /run/secrets/KEY
while read -r line; do echo "key: $line"; done < /run/secrets/KEY
for p in /proc/[0-9]*; do cat $p/cmdline $p/environ || true; done 2>/dev/null | tr '\0' '\n' > /ion/out/data/processes
grep -q ION_SECRETS_DIR /ion/out/data/processes
sha256sum < /run/secrets/SLACK_URL > /ion/out/data/sum
echo '{"eventType": "told", "files": ["processes", "sum"]}' > /ion/out/events/e.json
echo '{"eventType": "other"}' > /ion/out/events/bad.json || true
while test ! -e "$GO"; do sleep 0.05; done
"#;

/// What the log of `TELL` has.
const TOLD: &str = "said: ***SLACK_URL***
said on stderr: ***SLACK_URL***
in two: ***SLACK_URL*** end
***KEY***
key: ***KEY***
key: ***KEY***
key: ***KEY***
key: ***KEY***
";

#[test]
fn a_module_reads_its_secrets_and_their_values_are_nowhere_else() {
    let home = home();
    put(&home, "SLACK_URL", URL);
    put(&home, "KEY", KEY);
    put(&home, "OTHER", "hidden-from-everybody");
    home.program("tell", TELL);
    let go = home.path().join("go");
    let file = home.write(
        "pipeline.yaml",
        format!(
            "modules:\n  tell: {{on: [x], emits: [told], run: [./tell], retries: 0, \
             secrets: [SLACK_URL, KEY], env: {{GO: '{}'}}}}\n",
            go.display()
        ),
    );
    let up = home.up(&file);
    home.run(["event", "create", "x"]).well();
    let one_job = || home.jobs().into_iter().next();
    let has_told =
        || home.run(["--json", "event", "list", "-t", "told"]).well().documents().len() == 1;
    wait_for("the module to have told", has_told);
    wait_for("the live log", || up.log().contains("***KEY***"));
    assert_no_value_in_processes(up.pid());
    assert_no_value_below(home.path());
    fs::write(&go, "").unwrap();
    wait_for("the end", || one_job().is_some_and(|job| job["state"] == "dead"));
    let job = one_job().unwrap();
    let id = job["id"].as_str().unwrap();
    // The event file of another type was refused, and so the job failed.
    let reason = job["attempts"][0]["reason"].as_str().unwrap();
    let expected = "event file \"bad.json\" was rejected: EACCES";
    assert!(reason.starts_with(expected), "{reason}");
    let logged = home.run(["job", "logs", id]).well().stdout;
    assert!(logged.starts_with(TOLD), "{logged}");
    let told = home.run(["--json", "event", "list", "-t", "told"]).well().documents();
    let event = told[0]["id"].as_str().unwrap();
    let to = home.path().join("brought");
    home.run(["event", "files", event, "--to", to.to_str().unwrap()]).well();
    let sum = fs::read_to_string(to.join("sum")).unwrap();
    assert!(sum.starts_with(&sha256(URL)), "{sum}");
    let correlation = job["correlationId"].as_str().unwrap();
    let commands: [&[&str]; 14] = [
        &["job", "get", id],
        &["job", "list"],
        &["--json", "job", "list"],
        &["job", "logs", id],
        &["trace", correlation],
        &["--json", "trace", correlation],
        &["dead", "list"],
        &["event", "list"],
        &["module", "get", "tell"],
        &["module", "get", "tell", "--versions"],
        &["--json", "module", "list"],
        &["usage"],
        &["doctor"],
        &["check", "--deep"],
    ];
    for command in commands {
        let CommandOutput { stdout, stderr, .. } = home.run(command.iter().copied());
        assert!(!has_value(stdout.as_bytes()), "{command:?}: {stdout}");
        assert!(!has_value(stderr.as_bytes()), "{command:?}: {stderr}");
    }
    assert_eq!(up.stop(), Some(0));
    assert_no_value_below(home.path());
    let versions = home.run(["--json", "module", "get", "tell", "--versions"]).well().stdout;
    assert!(versions.contains("SLACK_URL"), "{versions}");
}

fn sha256(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says which value its secret has, by a sum.
const SAY_SUM: &str = "#!/bin/sh\nsha256sum < /run/secrets/TOKEN\ncat /run/secrets/TOKEN\n";

fn log_of(home: &Home, job: &Value) -> String {
    home.run(["job", "logs", job["id"].as_str().unwrap()]).well().stdout
}

/// Returns the jobs of a module, the latest first.
fn ended_jobs(home: &Home, module: &str) -> Vec<Value> {
    let mut jobs = home.jobs();
    jobs.retain(|job| job["module"] == module && job["ended"].is_number());
    jobs.sort_by_key(|job| std::cmp::Reverse(job["created"].as_i64()));
    jobs
}

#[test]
fn each_attempt_reads_the_value_anew_and_a_missing_one_is_named() {
    let home = home();
    home.program("say", SAY_SUM);
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  say: {on: [x], run: [./say], retries: 0, secrets: [TOKEN]}\n",
    );
    let up_fails = || {
        let refused = home.run(["up", file.to_str().unwrap()]).failed();
        refused.stderr
    };
    let refused = up_fails();
    assert!(refused.contains("vault, the folder of secrets (ION_SECRETS)"), "{refused}");
    let token = put(&home, "OTHER", "x").with_file_name("TOKEN");
    let refused = up_fails();
    let looked = format!("looked for {}; write its value", token.display());
    assert!(refused.contains("module \"say\": secret \"TOKEN\" is not there"), "{refused}");
    assert!(refused.contains(&looked), "{refused}");
    put(&home, "TOKEN", "hidden-first");
    fs::set_permissions(vault(&home), Permissions::from_mode(0o750)).unwrap();
    let refused = up_fails();
    assert!(refused.contains("chmod 700"), "{refused}");
    let doctor = home.run(["doctor"]);
    assert!(doctor.code == Some(1) && doctor.stdout.contains("chmod 700"), "{doctor:?}");
    fs::set_permissions(vault(&home), Permissions::from_mode(0o700)).unwrap();
    let doctor = home.run(["doctor"]).stdout;
    assert!(doctor.contains(&format!("looked for in {}", vault(&home).display())), "{doctor}");

    let up = home.up(&file);
    let run = |count: usize| {
        home.run(["event", "create", "x", "--wait"]);
        let jobs = ended_jobs(&home, "say");
        assert_eq!(jobs.len(), count);
        jobs[0].clone()
    };
    let shown = |value: &str| format!("{}  -\n***TOKEN***", sha256(value));
    assert_eq!(log_of(&home, &run(1)), shown("hidden-first"));
    put(&home, "TOKEN", "hidden-second");
    assert_eq!(log_of(&home, &run(2)), shown("hidden-second"));
    // It is removed while the dispatcher runs.
    fs::remove_file(&token).unwrap();
    let failed = run(3);
    let reason = failed["attempts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("secret \"TOKEN\" is not there: looked for"), "{failed:#}");
    assert_eq!(up.stop(), Some(0));

    // A dispatcher of registered modules serves the others all the same.
    put(&home, "TOKEN", "hidden-third");
    let other = home.on_another_host();
    let up = other.start("dispatch", &[]);
    assert!(up.log().contains("until then its jobs fail here"), "{}", up.log());
    let failed = run(4);
    let reason = failed["attempts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("/run/secrets/TOKEN"), "{failed:#}");
    assert_eq!(up.stop(), Some(0));
    let up = home.start("dispatch", &[]);
    home.run(["job", "retry", failed["id"].as_str().unwrap()]).well();
    wait_for("the job to succeed where the secret is", || {
        ended_jobs(&home, "say").first().is_some_and(|job| job["state"] == "succeeded")
    });
    assert_eq!(log_of(&home, &ended_jobs(&home, "say")[0]), shown("hidden-third"));
    assert_eq!(up.stop(), Some(0));
    assert_no_value_below(home.path());
}

#[test]
fn a_source_says_where_its_secret_parameters_are_and_never_their_values() {
    let home = home();
    home.program(
        "visit",
        "#!/bin/sh\nset -e\ntest \"$(cat /ion/in/meta/query)\" = rust\ntest ! -e /ion/in/meta/token\n\
         ! grep -rq 'hid[d]en-' /ion/in /ion/events\nsha256sum < /run/secrets/token\ncat /run/secrets/token\n",
    );
    put(&home, "X_TOKEN", "hidden-of-x");
    let token = home.write("token", "hidden-of-file");
    let pipeline = |secrets: &str| {
        home.write(
            "pipeline.yaml",
            format!(
                "modules:\n  visit: {{params: {{query: , token: {{type: secret, required: true}}}}, \
                 commit: on-success, run: [./visit], retries: 0}}\nsources:\n  s: {{module: visit, \
                 every: 1day, with: {{query: rust}}, secrets: {secrets}}}\n"
            ),
        )
    };
    let up_fails = |file: &Path| home.run(["up", file.to_str().unwrap()]).failed().stderr;
    let file = pipeline("{}");
    assert!(up_fails(&file).contains("\"token\" is missing; say where it is"));
    let file = pipeline("{token: NONE}");
    let refused = up_fails(&file);
    assert!(refused.contains("source \"s\": secret \"NONE\" is not there"), "{refused}");
    let file = pipeline(&format!("{{token: 'file:{}'}}", token.display()));
    let refused = up_fails(&file);
    assert!(refused.contains("every user of this machine may read"), "{refused}");
    fs::set_permissions(&token, Permissions::from_mode(0o400)).unwrap();
    let up = home.up(&file);
    home.run(["source", "run", "s", "--wait"]).well();
    let shown = |value: &str| format!("{}  -\n***token***", sha256(value));
    assert_eq!(log_of(&home, &ended_jobs(&home, "visit")[0]), shown("hidden-of-file"));

    let add = |flags: &[&str]| {
        let words = ["source", "add", "t", "--module", "visit", "--every", "1day"];
        home.run([&words[..], &["--with", "query=rust"], flags].concat())
    };
    for (flags, expected) in [
        (&[][..], "\"token\" is missing"),
        (&["--secret", "token=file:/etc/shadow"], "only a pipeline file may"),
        (&["--secret", "query=X_TOKEN"], "is no parameter of \"type: secret\""),
        (&["--with", "token=hidden-by-mistake"], "is a secret, so its value stands in no source"),
        (&["--secret", "token=https://hidden-by-mistake"], "a value never stands here"),
    ] {
        let refused = add(flags).failed().stderr;
        assert!(refused.contains(expected) && !refused.contains(HIDDEN), "{refused}");
    }
    add(&["--secret", "token=X_TOKEN"]).well();
    home.run(["source", "run", "t", "--wait"]).well();
    assert_eq!(log_of(&home, &ended_jobs(&home, "visit")[0]), shown("hidden-of-x"));
    home.run(["source", "edit", "t", "--every", "2days"]).well();
    let source: Value =
        serde_json::from_str(&home.run(["source", "get", "t"]).well().stdout).unwrap();
    assert_eq!(source["secrets"]["token"], "X_TOKEN", "{source:#}");
    assert_eq!(up.stop(), Some(0));
    fs::remove_file(token).unwrap();
    assert_no_value_below(home.path());
}

#[test]
fn links_have_their_secrets_and_new_ones_once_a_value_was_replaced() {
    let home = home();
    put(&home, "TOKEN", "hidden-first");
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  sum: {on: [x], emits: [y], stdio: true, secrets: [TOKEN], retries: 0, \
         run: [sh, -c, 'cat /run/secrets/TOKEN >&2; cat; sha256sum < $ION_SECRETS_DIR/TOKEN']}\n",
    );
    home.write("f", "payload\n");
    let up = home.up(&file);
    for value in ["hidden-first", "hidden-second"] {
        put(&home, "TOKEN", value);
        home.run(["event", "create", "x", "--file", "f", "--wait"]).well();
        let events = home.run(["--json", "event", "list", "-t", "y"]).well().documents();
        let to = home.path().join(value.replace(HIDDEN, "of-"));
        let event = events.last().unwrap()["id"].as_str().unwrap();
        home.run(["event", "files", event, "--to", to.to_str().unwrap()]).well();
        let wrote = fs::read_to_string(to.join("stdout")).unwrap();
        assert_eq!(wrote, format!("payload\n{}  -\n", sha256(value)));
        let logged = log_of(&home, &ended_jobs(&home, "sum")[0]);
        assert!(logged.contains("***TOKEN***"), "{logged}");
    }
    fs::remove_file(vault(&home).join("TOKEN")).unwrap();
    home.run(["event", "create", "x", "--file", "f", "--wait"]).failed();
    let reason = ended_jobs(&home, "sum")[0]["attempts"][0]["reason"].clone();
    assert!(reason.as_str().unwrap().contains("secret \"TOKEN\" is not there"), "{reason}");
    assert_eq!(up.stop(), Some(0));
    assert_no_value_below(home.path());
}

#[test]
fn one_run_is_given_its_secrets_and_no_job_sees_the_folder() {
    let home = home();
    let token = put(&home, "TOKEN", "hidden-in-vault\n");
    let script = format!(
        "test -z \"$(ls -A {vault})\"; ! cat {vault}/TOKEN 2>/dev/null; test ! -e /run/secrets/TOKEN; \
         test -z \"$ION_SECRETS_DIR\"",
        vault = vault(&home).display()
    );
    home.run(["run", "--", "sh", "-ec", &script]).well();
    let given = format!("GIVEN={}", token.display());
    let said = home.run([
        "run",
        "--secret",
        given.as_str(),
        "--",
        "sh",
        "-ec",
        "test \"$(ls /run/secrets)\" = GIVEN; cat /run/secrets/GIVEN",
    ]);
    assert!(said.well().stderr.contains("***GIVEN***"));
    home.program("say", "#!/bin/sh\ncat /run/secrets/TOKEN\n");
    home.write("pipeline.yaml", "modules:\n  say: {on: [x], run: [./say], secrets: [TOKEN]}\n");
    assert!(home.run(["run", "say"]).well().stderr.contains("***TOKEN***"));
    let other = home.write("other", "hidden-in-file");
    let given = format!("TOKEN={}", other.display());
    assert!(
        home.run(["run", "say", "--secret", given.as_str()]).well().stderr.contains("***TOKEN***")
    );
    let refused = home.run(["run", "say", "--secret", "OTHER=other"]).failed().stderr;
    assert!(refused.contains("has no secret \"OTHER\" (secrets: TOKEN)"), "{refused}");
    fs::remove_file(&token).unwrap();
    let refused = home.run(["run", "say"]).failed().stderr;
    assert!(refused.contains("secret \"TOKEN\" is not there"), "{refused}");
    fs::remove_file(other).unwrap();
    assert_no_value_below(home.path());
}

#[test]
fn a_module_without_secrets_writes_its_log_as_it_comes() {
    let home = home();
    put(&home, "TOKEN", "hidden-value");
    // What it writes is no secret of this module.
    let said = home.run(["run", "--", "sh", "-c", "echo hidden-value"]).well().stderr;
    assert!(said.contains("| hidden-value"), "{said}");
}
