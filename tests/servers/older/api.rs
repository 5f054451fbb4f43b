//! Shows how the localhost API answers older modules, and that older modules find their tree and
//! their files at the addresses they expect. The tests use the embedded stores, S3 and Azure Blob.

use super::*;

/// A program that uses the API wrongly and notes each status. After the 200 of `/done` it writes
/// another event file, and ends with exit code 3.
const STUBBORN: &str = r#"#!/usr/bin/env python3
import json, os, sys, urllib.error, urllib.request

def get(word, **headers):
    request = urllib.request.Request("http://127.0.0.1:%s/%s" % (os.environ["HANDLER_PORT"], word), headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return [answer.status, json.loads(answer.read()) if word == "done" else {}]
    except urllib.error.HTTPError as error:
        return [error.code, json.loads(error.read())]

base, secret = os.environ["HANDLER_BASE_DIR"], os.environ["SHARED_SECRET"]
said = [get("ready"), get("ready", secret="x" * len(secret)), get("ready", secret=secret[:-1]),
        get("done", secret=secret), get("ready", secret=secret), get("ready", secret=secret), get("done")]
with open(base + "/out/events/b.json", "w") as bad:
    bad.write('{"eventType": "noted", "files": ["missing"]')
    bad.flush()
    said.append(get("done", secret=secret))
try:
    with open(base + "/out/events/b.json", "w") as bad:
        bad.write('{"eventType": "noted", "files": ["missing"]}')
except OSError:
    pass
said.append(get("done", secret=secret))
with open(base + "/out/meta.json", "w") as meta:
    json.dump([{"key": "kept", "value": "yes"}], meta)
with open(base + "/out/events/b.json", "w") as good:
    good.write('{"eventType": "noted"}')
assert json.load(open(base + "/in/meta.json")) == json.load(open(base + "/in/eventmeta.json"))
said += [get("done", secret=secret), get("done", secret=secret), get("ready", secret=secret)]
try:
    with open(base + "/out/events/late.json", "w") as late:
        late.write('{"eventType": "noted", "files": ["missing"]}')
except OSError:
    pass
with open(os.environ["SAID"], "w") as out:
    json.dump({"said": said, "secret": secret, "port": os.environ["SIDECAR_PORT"]}, out)
sys.exit(3)
"#;

#[test]
fn the_localhost_api_answers_401_and_400_and_names_what_was_rejected() {
    let home = Home::new();
    home.program("stubborn", STUBBORN);
    home.program(
        "silent",
        "#!/bin/sh\necho '{\"eventType\":\"noted\"}' > /ion/out/events/s.json\n\
         echo $HANDLER_PORT > $SAID.tmp; mv $SAID.tmp $SAID.port\n\
         while test ! -e $SAID.go; do sleep 0.02; done\n",
    );
    let said = home.path().join("said");
    let module = |name: &str| {
        let keys = "on: [start], emits: [noted], retries: 0, api: sidecar";
        format!("  {name}: {{{keys}, run: [./{name}], env: {{SAID: {}}}}}\n", said.display())
    };
    let port = |text: &str| text.trim().parse::<u16>().unwrap();
    let file = home
        .write("pipeline.yaml", format!("modules:\n{}{}", module("stubborn"), module("silent")));
    let up = home.up(&file);
    home.run("event create start --id e --correlation c".split(' ')).well();
    wait_for("the silent module to write down its port", || home.path().join("said.port").exists());
    let silent = port(&std::fs::read_to_string(home.path().join("said.port")).unwrap());
    // A client that connects and sends nothing, or not the secret, holds nothing up, and its
    // connection does not outlast the job.
    let mut idle = std::net::TcpStream::connect(("127.0.0.1", silent)).unwrap();
    idle.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
    home.write("said.go", "");
    wait_for("both jobs to end", || {
        home.jobs().iter().filter(|job| job["ended"].is_number()).count() == 2
    });
    let noted: Value = serde_json::from_slice(&std::fs::read(&said).unwrap()).unwrap();
    let said = noted["said"].as_array().unwrap();
    let codes: Vec<u64> = said.iter().map(|answer| answer[0].as_u64().unwrap()).collect();
    assert_eq!(codes, [401, 401, 401, 400, 200, 400, 401, 422, 422, 200, 400, 400], "{said:#?}");
    let message = |n: usize| said[n][1]["message"].as_str().unwrap();
    assert!(message(7).contains("\"b.json\" was rejected: EBUSY: it is still open"), "{said:#?}");
    assert!(
        message(8).contains("\"b.json\" was rejected: ENOENT: file \"missing\" is not in out/data"),
        "{said:#?}"
    );
    assert_eq!(said[8][1]["statusCode"], 422);
    assert_eq!(said[9][1]["events"][0]["name"], "b.json");
    // The job has succeeded with the 200 of `/done`. Its event and its insight are there, whatever
    // the module writes later, and although it exits with 3. Nothing of the silent module is there.
    let jobs = home.jobs();
    let of = |module: &str| jobs.iter().find(|job| job["module"] == module).unwrap();
    assert_eq!(of("stubborn")["state"], "succeeded", "{jobs:#?}");
    assert_eq!(of("stubborn")["attempts"][0]["exitCode"], 3);
    assert_eq!(of("silent")["state"], "dead");
    let reason = of("silent")["attempts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("it ended and GET /done had not been answered with 200"), "{reason}");
    let events: Vec<Value> =
        made(&home, "c").into_iter().filter(|document| document["type"] == "noted").collect();
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(events[0]["context"]["name"], "stubborn");
    assert_eq!(insight(&home)["data"], json!([{"key": "kept", "value": "yes"}]));
    // The daemon still runs, and has closed the idle connection.
    assert_eq!(std::io::Read::read(&mut idle, &mut [0; 1]).unwrap_or(0), 0);
    let log = up.log();
    assert_eq!(up.stop(), Some(0));
    // Only the job has the secret, and its port is closed when the job has ended.
    let secret = noted["secret"].as_str().unwrap();
    let documents =
        home.run(["--json", "trace", "c"]).stdout + &serde_json::to_string(&jobs).unwrap();
    assert!(!log.contains(secret) && !documents.contains(secret));
    let stubborn = port(noted["port"].as_str().unwrap());
    assert!(
        [silent, stubborn]
            .iter()
            .all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err())
    );
}

#[test]
fn a_newer_module_finds_its_values_alone_and_an_older_one_its_tree_where_it_says() {
    let home = Home::new();
    home.write("f", "content\n");
    home.program(
        "newer",
        "#!/bin/sh\nset -e\n\
         test $HANDLER_BASE_DIR = /ion; test ! -e /ion/in/meta.json; test ! -e /ion/out/meta.json\n\
         ! touch /ion/out/meta.json 2>/dev/null\ngrep -c key /ion/in/eventmeta.json\n",
    );
    home.program(
        "older",
        "#!/bin/sh\nset -e\n\
         test $HANDLER_BASE_DIR = /older; test $ION_DIR = /older; test ! -e /ion/in\n\
         cat /older/in/data/f; echo '{\"eventType\":\"x\"}' > /older/out/events/x\n",
    );
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  newer: {on: [start], run: [./newer], retries: 0}\n  older: {on: [start], \
         emits: [x], run: [./older], retries: 0, env: {HANDLER_BASE_DIR: /older}}\n",
    );
    let up = home.up(&file);
    home.run("event create start --data a=1 --file f --wait".split(' ')).well();
    let jobs = home.jobs();
    let newer = jobs.iter().find(|job| job["module"] == "newer").unwrap();
    assert_eq!(home.run(["job", "logs", newer["id"].as_str().unwrap()]).well().stdout, "1\n");
    assert_eq!(home.trace().iter().filter(|document| document["type"] == "x").count(), 1);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_signed_url_is_read_without_a_credential_and_a_store_that_signs_none_gives_an_ion_uri() {
    let s3 = S3::start();
    let script = "import json, sys, urllib.request\n\
        values = dict((p['key'], p['value']) for p in json.load(open('/ion/in/eventmeta.json')))\n\
        url = values['f g']\n\
        print(url if url.startswith('ion://') else urllib.request.urlopen(url).read().decode(), end='')\n";
    for (signs, expected) in [(true, "content\n"), (false, "ion://e/f%20g")] {
        let mut home = Home::new();
        if signs {
            home.env = s3.env.clone();
            home.env.push(("ION_BLOBS".into(), format!("{}/signed", s3.url)));
        }
        home.write("f g", "content\n");
        home.write("read.py", script);
        let file = home.write(
            "pipeline.yaml",
            "modules:\n  read: {on: [start], run: [python3, read.py], retries: 0, urls: signed}\n",
        );
        let up = home.up(&file);
        home.run(["event", "create", "start", "--id", "e", "--file", "f g", "--wait"]).well();
        let job = home.jobs()[0]["id"].as_str().unwrap().to_owned();
        assert_eq!(home.run(["job", "logs", &job]).well().stdout, expected);
        assert_eq!(up.stop(), Some(0));
    }
}

#[test]
fn the_older_flags_of_azure_reach_the_container_and_its_files_have_signed_urls() {
    let azure = Azure::start();
    azure.make_container("older");
    let mut older = Older { home: Home::new() };
    older.home.env = azure.env.clone();
    older.home.env.push(("ION_BLOBS".into(), "az://older".into()));
    older.home.write("in.txt", "one\n");
    older.home.write("er.txt", "two words\n");
    older.start();
    let act = |action: &str| {
        let mut command = older.handler();
        let named = |name: &str| azure.env.iter().find(|(key, _)| key == name).unwrap().1.clone();
        for (key, _) in &older.home.env {
            command.env_remove(key);
        }
        // This variable names the address of the emulator. Azure itself needs no such variable.
        command.env("AZURE_STORAGE_ENDPOINT", named("AZURE_STORAGE_ENDPOINT"));
        command.env("AZUREBLOBPROVIDER_BLOBACCOUNTKEY", named("AZURE_STORAGE_ACCOUNT_KEY"));
        command.args([
            "--azureblobprovider=true",
            "--azureblobprovider.containername=older",
            "--urls=signed",
        ]);
        command.arg(format!(
            "--azureblobprovider.blobaccountname={}",
            named("AZURE_STORAGE_ACCOUNT_NAME")
        ));
        command.args([&format!("--action={action}"), "--context.name=m", "--context.eventid=e"]);
        CommandOutput::of(command.arg("--valideventtypes=noted").output().unwrap()).well()
    };
    act("prepare");
    older.home.write(
        "fetch.py",
        "import json, urllib.request\n\
        values = dict((p['key'], p['value']) for p in json.load(open('in/eventmeta.json')))\n\
        open('out/data/fetched', 'wb').write(urllib.request.urlopen(values['deep/er.txt']).read())\n\
        json.dump({'eventType': 'noted', 'files': ['fetched']}, open('out/events/n.json', 'w'))\n",
    );
    older.script("python3 ../fetch.py; cmp out/data/fetched in/data/deep/er.txt");
    act("commit");
    assert_eq!(older.made()[0]["files"][0]["size"], 10);
    older.home.run(["check", "--deep"]).well();
}
