//! Tests jobs that run as pods of a real one-node cluster, whose CSI driver mounts their trees.
//! Where no Kubernetes is built, each test says so and is skipped; `make test-kubernetes` builds
//! it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on panics; it starts programs and says what it saw"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::cluster::{ClusterPlane, KEY, words_programs, world};
use crate::support::{Home, example_clip, wait_for, wait_up_to};
use ionfs::id::JobId;
use ionfs::ticket::{TicketKey, TokenContent};
use serde_json::{Value, json};

const WORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/words");

/// A program whose first attempt does not end by itself. Its later attempts do.
const FIRST_WAITS: &str = "#!/bin/sh\n[ $ION_ATTEMPT = 1 ] && sleep 600\necho said > /ion/out/data/f\n\
    echo '{\"eventType\":\"end_done\",\"files\":\"f\"}' > /ion/out/events/e.json\n";

/// Returns what is the same of events wherever they were made: everything except ids, times and the
/// keys of blobs.
fn comparable(events: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = events
        .iter()
        .map(|event| {
            let files: Vec<Value> = event["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| serde_json::json!([file["name"], file["size"], file["checksums"]]))
                .collect();
            serde_json::json!([event["type"], event["context"]["name"], event["data"], files])
        })
        .collect();
    all.sort_by_key(Value::to_string);
    all
}

/// Returns the events of a trace.
fn events(trace: &[Value]) -> Vec<Value> {
    trace.iter().filter(|one| one["context"]["documentType"] == "eventMeta").cloned().collect()
}

#[test]
fn the_words_example_runs_as_pods_like_processes() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("words", &mut home);
    let programs = words_programs();
    let programs: Vec<(&str, &str)> =
        programs.iter().map(|(name, text)| (*name, text.as_str())).collect();
    world.image(&home, "words:1", &programs);
    let module = |name: &str, rest: &str| {
        format!(
            "  {name}: {{{rest}, executor: kubernetes, image: 'words:1', run: [/app/{name}.sh], user: '1000:1000'}}\n"
        )
    };
    let pipeline = home.write(
        "pipeline.yaml",
        format!(
            "name: words\nmodules:\n{}{}{}",
            module("split", "on: [new_texts], emits: [text]"),
            module("count", "on: [text], emits: [counted], concurrency: 60"),
            module(
                "merge",
                "gather: counted, per: new_texts, emits: [ranking], commit: on-success, env: {TOP: '10'}"
            ),
        ),
    );
    let dispatcher = home.start("dispatch", &[pipeline.to_str().unwrap(), "--jobs", "60"]);
    let here = Home::new();
    let local = here.up(format!("{WORDS}/pipeline.yaml").as_ref());
    let files: Vec<String> = (0..50)
        .map(|n| {
            let text =
                format!("{}\n", "some words that count and words that matter ".repeat(50 + n % 7));
            home.write(&format!("text-{n}.txt"), text).display().to_string()
        })
        .collect();
    let mut words = vec!["event", "create", "new_texts", "--wait"];
    for file in &files {
        words.extend(["--file", file]);
    }
    here.run(&words).well();
    home.run(&words).well();
    let (ours, theirs) = (home.trace(), here.trace());
    assert_eq!(comparable(&events(&ours)), comparable(&events(&theirs)));
    assert_eq!(events(&ours).len(), 1 + 50 + 50 + 1);
    // Each job had one attempt, and nothing of the jobs is left in the cluster.
    let mut states = BTreeMap::<String, usize>::new();
    for job in jobs_of(&home, &["split", "count", "merge"]) {
        assert_eq!(job["attempt"], 1, "{job}");
        *states.entry(job["state"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(states, BTreeMap::from([("succeeded".to_owned(), 52)]));
    wait_for("Jobs to be removed", || {
        world.kubectl(&["-n", "words", "get", "jobs,pods", "-o", "name"]).is_empty()
    });
    assert_eq!(dispatcher.stop(), Some(0));
    assert_eq!(local.stop(), Some(0));
}

/// docs/kubernetes.md shows how to run this example. It has OpenCV, fan-out and fan-in, and files
/// of some hundred KiB.
#[test]
fn the_video_example_runs_as_pods_like_processes() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("video", &mut home);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/video");
    let files = home.path().join("image");
    let laid_out = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/machine/kubernetes/video-image.sh"
    ))
    .arg(&files)
    .status();
    assert!(laid_out.unwrap().success());
    // The image has the name that the example's pipeline file uses.
    world.script(&["image", "registry.example/ion-video:1", files.to_str().unwrap(), "/video"]);
    let dispatcher = home.start("dispatch", &[&format!("{root}/kubernetes.yaml"), "--jobs", "8"]);
    let here = Home::new();
    let local = here.up(format!("{root}/pipeline.yaml").as_ref());
    let clip = example_clip();
    let create = ["event", "create", "new_video", "--wait", "--file", &clip];
    here.run(create).well();
    let begun = Instant::now();
    home.run(create).well();
    let took = begun.elapsed();
    let (ours, theirs) = (events(&home.trace()), events(&here.trace()));
    assert_eq!(comparable(&ours), comparable(&theirs));
    assert!(ours.iter().any(|event| event["type"] == "contact_sheet"));
    let jobs = jobs_of(&home, &["sample", "detect", "crop", "classify", "sheet"]);
    assert!(jobs.iter().all(|job| job["attempt"] == 1 && job["state"] == "succeeded"), "{jobs:#?}");
    eprintln!("{} jobs as pods, 8 at a time: {took:?}", jobs.len());
    assert_eq!(dispatcher.stop(), Some(0));
    assert_eq!(local.stop(), Some(0));
}

/// Returns a pipeline file whose modules share one image. Each module has a name and further
/// settings.
fn pipeline(image: &str, modules: &[(&str, &str)]) -> String {
    let of = |(name, rest): &(&str, &str)| {
        format!(
            "  {name}: {{executor: kubernetes, image: '{image}', run: [/app/{name}], {rest}}}\n"
        )
    };
    format!("name: tests\nmodules:\n{}", modules.iter().map(of).collect::<String>())
}

/// Returns the jobs of these modules. All tests share one plane, so it has jobs of other modules
/// too.
fn jobs_of(home: &Home, modules: &[&str]) -> Vec<Value> {
    let mut jobs = home.jobs();
    jobs.retain(|job| modules.contains(&job["module"].as_str().unwrap()));
    jobs
}

/// Returns how each attempt of a module's only job ended, and why.
fn attempts(home: &Home, module: &str) -> Vec<(String, String)> {
    let jobs = jobs_of(home, &[module]);
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let job = &jobs[0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    job["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["end"]), text(&one["reason"])))
        .collect()
}

/// Waits with a long deadline, because each pod takes seconds. Checks the condition at most every
/// 200 ms, because each check starts a process.
#[track_caller]
fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let (begun, mut asked) = (Instant::now(), Instant::now());
    wait_up_to(Duration::from_secs(240), what, || {
        let ask = asked.elapsed() > Duration::from_millis(200);
        ask && {
            let holds = condition();
            asked = Instant::now();
            holds
        }
    });
    eprintln!("waited {:.1?} for {what}", begun.elapsed());
}

/// Returns the name of a module's pod in this namespace, if the pod is running.
fn running_pod(world: &ClusterPlane, namespace: &str, module: &str) -> Option<String> {
    let pods = world.kubectl_json(&[
        "-n",
        namespace,
        "get",
        "pods",
        "-l",
        &format!("ion/module={module}"),
    ]);
    let running =
        pods["items"].as_array().unwrap().iter().find(|pod| pod["status"]["phase"] == "Running")?;
    Some(running["metadata"]["name"].as_str().unwrap().to_owned())
}

#[test]
fn how_a_pod_ended_is_told_apart() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("ends", &mut home);
    let programs = [
        ("deleted", FIRST_WAITS),
        ("evicted", FIRST_WAITS),
        ("greedy", "#!/bin/sh\necho begins\ndd if=/dev/zero of=/dev/null bs=200M count=1\n"),
        ("slow", "#!/bin/sh\necho begins\nsleep 600\n"),
        ("rejected", "#!/bin/sh\necho '{' > /ion/out/events/e.json\n"),
        ("failing", "#!/bin/sh\necho a word; exit 3\n"),
        ("stoppable", "#!/bin/sh\nsleep 600\n"),
    ];
    world.image(&home, "ends:1", &programs);
    let mut text = pipeline(
        "ends:1",
        &[
            ("deleted", "on: [ends], emits: [end_done], retries: 1"),
            ("evicted", "on: [ends], emits: [end_done], retries: 0"),
            ("greedy", "on: [ends], retries: 0, resources: {memory: 32Mi}"),
            ("slow", "on: [ends], retries: 0, timeout: 8s"),
            ("rejected", "on: [ends], emits: [end_done], retries: 0"),
            ("failing", "on: [ends], retries: 0"),
            ("stoppable", "on: [ends], retries: 0"),
        ],
    );
    text.push_str(
        "  unpulled: {executor: kubernetes, image: 'missing:1', on: [ends], retries: 0}\n",
    );
    let file = home.write("pipeline.yaml", text);
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap(), "--jobs", "20"]);
    home.run(["event", "create", "ends"]).well();
    let pod_of = |module: &str| running_pod(&world, "ends", module);
    let (mut deleted, mut evicted) = (None, None);
    wait_long("the pods to run", || {
        (deleted, evicted) = (pod_of("deleted"), pod_of("evicted"));
        deleted.is_some() && evicted.is_some() && pod_of("stoppable").is_some()
    });
    world.kubectl(&["-n", "ends", "delete", "pod", &deleted.unwrap(), "--wait=false"]);
    // `kubectl drain` evicts pods in this way.
    let evicted = evicted.unwrap();
    let eviction = json!({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": evicted, "namespace": "ends"}});
    let place = format!("/api/v1/namespaces/ends/pods/{evicted}/eviction");
    world.kubectl_with(&["create", "--raw", &place, "-f", "-"], &eviction.to_string());
    let stoppable = jobs_of(&home, &["stoppable"]).remove(0);
    home.run(["job", "cancel", stoppable["id"].as_str().unwrap()]).well();
    let all =
        ["deleted", "evicted", "greedy", "slow", "rejected", "failing", "stoppable", "unpulled"];
    wait_long("all jobs to end", || {
        let ended = ["succeeded", "dead", "cancelled"];
        let jobs = jobs_of(&home, &all);
        jobs.len() == all.len()
            && jobs.iter().all(|job| ended.contains(&job["state"].as_str().unwrap()))
    });
    let one = |module: &str| attempts(&home, module).remove(0);
    for module in ["deleted", "evicted"] {
        let attempts = attempts(&home, module);
        let well = ("succeeded".to_owned(), String::new());
        assert_eq!(
            attempts,
            [("lost".to_owned(), "its pod was deleted".to_owned()), well],
            "{module}"
        );
    }
    assert_eq!(one("greedy"), ("failed".into(), "out of memory: its limit is 32 MiB".into()));
    assert_eq!(one("slow"), ("timed-out".into(), "over its timeout of 8s".into()));
    assert_eq!(one("failing"), ("failed".into(), "exit status 3".into()));
    assert_eq!(one("stoppable").0, "cancelled");
    let rejected = one("rejected");
    assert!(rejected.0 == "failed" && rejected.1.contains("was rejected: EINVAL"), "{rejected:?}");
    let unpulled = one("unpulled");
    assert!(
        unpulled.0 == "failed" && unpulled.1.contains("its image cannot be pulled"),
        "{unpulled:?}"
    );
    let failing = jobs_of(&home, &["failing"]).remove(0);
    let log = home.run(["job", "logs", failing["id"].as_str().unwrap()]).well();
    assert!(log.stdout.contains("a word") && log.stdout.contains("exit status 3"), "{log:?}");
    wait_long("Jobs to be removed", || {
        world.kubectl(&["-n", "ends", "get", "jobs,pods", "-o", "name"]).is_empty()
    });
    assert_eq!(dispatcher.stop(), Some(0));
}

#[test]
fn pods_run_where_their_module_says() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("places", &mut home);
    let nothing = "#!/bin/sh\ntrue\n";
    let modules = ["tolerant", "intolerant", "nowhere", "gpu"];
    world.image(&home, "places:1", &modules.map(|name| (name, nothing)));
    world.kubectl(&["label", "node", "n1", "ion-test/disk=fast"]);
    let taint = world.taint("ion-test/only=modules:NoSchedule");
    let tolerates =
        "tolerations: [{key: ion-test/only, operator: Equal, value: modules, effect: NoSchedule}]";
    let terms = |rest: &str, terms: &str| {
        format!("on: [place], retries: 0, {rest} kubernetes: {{{terms}, {tolerates}}}")
    };
    let text = pipeline(
        "places:1",
        &[
            ("tolerant", &terms("", "nodeSelector: {ion-test/disk: fast}")),
            ("intolerant", "on: [place], retries: 0"),
            ("nowhere", &terms("timeout: 8s,", "nodeSelector: {ion-test/disk: none}")),
            ("gpu", &terms("resources: {gpu: 1},", "imagePullSecrets: [registry]")),
        ],
    );
    let file = home.write("pipeline.yaml", text);
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap(), "--jobs", "20"]);
    home.run(["event", "create", "place"]).well();
    let ended = |module: &str, state: &str| {
        jobs_of(&home, &[module]).iter().any(|job| job["state"] == state)
    };
    wait_long("the job that tolerates the taint to end", || ended("tolerant", "succeeded"));
    let pod_of = |module: &str| {
        let pods = world.kubectl_json(&[
            "-n",
            "places",
            "get",
            "pods",
            "-l",
            &format!("ion/module={module}"),
        ]);
        pods["items"][0].clone()
    };
    let waits = |module: &str, words: &str| {
        let status = pod_of(module)["status"].take();
        status["phase"] == "Pending" && status["conditions"].to_string().contains(words)
    };
    wait_long("the other jobs to wait for a node", || {
        waits("intolerant", "had taint") && waits("gpu", "Insufficient nvidia.com/gpu")
    });
    let spec = pod_of("gpu")["spec"].take();
    assert_eq!(spec["containers"][0]["resources"]["limits"], json!({"nvidia.com/gpu": "1"}));
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
    // A device plugin would report a GPU in this way.
    let mut node = world.kubectl_json(&["get", "node", "n1"]);
    for there in ["capacity", "allocatable"] {
        node["status"][there]["nvidia.com/gpu"] = json!("1");
    }
    // With a resource version, the API server would refuse this status if the kubelet has just
    // written another one.
    node["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    world.kubectl_with(
        &["replace", "--raw", "/api/v1/nodes/n1/status", "-f", "-"],
        &node.to_string(),
    );
    wait_long("the GPU's job to end", || ended("gpu", "succeeded"));
    drop(taint);
    wait_long("the job that the taint kept waiting to end", || ended("intolerant", "succeeded"));
    wait_long("the job that no node takes to be given up", || ended("nowhere", "dead"));
    let (end, reason) = attempts(&home, "nowhere").remove(0);
    let expected =
        "over its timeout of 8s; its pod never ran: no node takes it: 0/1 nodes are available";
    assert!(end == "timed-out" && reason.starts_with(expected), "{end}: {reason}");
    assert_eq!(dispatcher.stop(), Some(0));
}

#[test]
fn pods_go_on_without_their_dispatcher_and_without_the_api_server() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("adopted", &mut home);
    let lasting = "#!/bin/sh\nset -eu\necho begins\nsleep 25\ncp /ion/in/meta/n /ion/out/data/n\n\
        echo '{\"eventType\":\"lasted\",\"files\":\"n\"}' > /ion/out/events/e.json\necho ends\n";
    world.image(&home, "lasting:1", &[("lasting", lasting)]);
    let file = home.write(
        "pipeline.yaml",
        pipeline("lasting:1", &[("lasting", "on: [last], emits: [lasted], concurrency: 20")]),
    );
    let begin = || home.start("dispatch", &[file.to_str().unwrap(), "--jobs", "20"]);
    let dispatcher = begin();
    for n in 0..10 {
        home.run(["event", "create", "last", "--data", &format!("n={n}")]).well();
    }
    let pods = || {
        let pods = world.kubectl_json(&["-n", "adopted", "get", "pods"]);
        let running = pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running");
        let mut uids: Vec<String> =
            running.map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect();
        uids.sort();
        uids
    };
    wait_long("ten pods to run", || pods().len() == 10);
    let before = pods();
    dispatcher.kill();
    // The module is changed before the next dispatcher starts, as in an upgrade. The dispatcher
    // adopts the running pods as they are.
    let changed =
        "on: [last], emits: [lasted], concurrency: 20, env: {CHANGED: '1'}, resources: {cpu: 10m}";
    home.write("pipeline.yaml", pipeline("lasting:1", &[("lasting", changed)]));
    let dispatcher = begin();
    assert_eq!(pods(), before);
    let ended = |n: usize| {
        let jobs = jobs_of(&home, &["lasting"]);
        jobs.len() == n && jobs.iter().all(|job| job["state"] == "succeeded")
    };
    wait_long("ten jobs to end", || ended(10));
    // A dispatcher that is asked to stop also leaves its pods to the next one. The API server may
    // be unavailable meanwhile.
    home.run(["event", "create", "last", "--data", "n=10"]).well();
    wait_long("the next pod to run", || pods().len() == 1);
    assert_eq!(dispatcher.stop(), Some(0));
    let dispatcher = begin();
    world.script(&["down", "apiserver"]);
    let down = Instant::now();
    home.run(["event", "create", "last", "--data", "n=11"]).well();
    wait_long("a minute to pass", || down.elapsed() > Duration::from_secs(60));
    world.script(&["up", "apiserver"]);
    let back = Instant::now();
    // One pod ended while the API server was unavailable. The dispatcher sees its end within
    // seconds from now, however long the server was unavailable.
    wait_long("the end of that pod to be seen", || {
        jobs_of(&home, &["lasting"]).iter().filter(|job| job["state"] == "succeeded").count() > 10
    });
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    wait_long("twelve jobs to end", || ended(12));
    for job in jobs_of(&home, &["lasting"]) {
        assert_eq!((&job["attempt"], &job["losses"]), (&json!(1), &json!(0)), "{job}");
        let log = home.run(["job", "logs", job["id"].as_str().unwrap()]).well();
        assert_eq!(log.stdout, "begins\nends\n", "the log is whole");
    }
    home.run(["check"]).well();
    assert_eq!(dispatcher.stop(), Some(0));
}

#[test]
fn only_the_pod_that_a_token_is_for_has_the_tree() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("tokens", &mut home);
    world.kubectl(&["create", "namespace", "elsewhere"]);
    world.image(&home, "holder:1", &[("holder", "#!/bin/sh\nsleep 600\n")]);
    let file =
        home.write("pipeline.yaml", pipeline("holder:1", &[("holder", "on: [hold], retries: 0")]));
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap()]);
    home.run(["event", "create", "hold", "--data", "secret=s3cr3t"]).well();
    let mut token = String::new();
    wait_long("the pod to run", || {
        let pods = world.kubectl_json(&["-n", "tokens", "get", "pods"]);
        let pod = &pods["items"][0];
        token = pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        pod["status"]["phase"] == "Running"
    });
    let key = TicketKey::new(KEY).unwrap();
    let claims = TokenContent {
        job: JobId::new(jobs_of(&home, &["holder"])[0]["id"].as_str().unwrap()),
        attempt: 1,
        namespace: "tokens".into(),
        expires: 1,
    };
    let expired = key.sign(&claims);
    let forged = TicketKey::new(&"x".repeat(40))
        .unwrap()
        .sign(&TokenContent { expires: i64::MAX, ..claims });
    let pods = [
        ("none", "tokens", "", "has no attribute"),
        ("malformed", "tokens", "something", "none of Ion's"),
        ("expired", "tokens", &expired, "has expired"),
        ("forged", "tokens", &forged, "not signed by a dispatcher"),
        ("copied", "tokens", &token, "no other one has its tree"),
        ("copied", "elsewhere", &token, "of another namespace"),
    ];
    for (name, namespace, token, _) in &pods {
        let attributes = if token.is_empty() {
            String::new()
        } else {
            format!(", volumeAttributes: {{token: '{token}'}}")
        };
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  restartPolicy: Never\n  \
             containers: [{{name: c, image: 'holder:1', command: [/app/holder], volumeMounts: [{{name: ion, mountPath: /ion}}]}}]\n  \
             volumes: [{{name: ion, csi: {{driver: csi.ionfs{attributes}}}}}]\n"
        );
        world.kubectl_with(&["create", "-f", "-"], &pod);
    }
    for (name, namespace, _, reason) in &pods {
        wait_long(&format!("{namespace}/{name} to be refused"), || {
            let selector = format!("involvedObject.name={name},reason=FailedMount");
            let events = world.kubectl_json(&[
                "-n",
                namespace,
                "get",
                "events",
                "--field-selector",
                &selector,
            ]);
            let events = events["items"].as_array().unwrap();
            events.iter().any(|event| event["message"].as_str().unwrap().contains(reason))
        });
        world.kubectl(&["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force"]);
    }
    let id = jobs_of(&home, &["holder"])[0]["id"].as_str().unwrap().to_owned();
    home.run(["job", "cancel", &id]).well();
    wait_long("the job to be cancelled", || jobs_of(&home, &["holder"])[0]["state"] == "cancelled");
    assert_eq!(dispatcher.stop(), Some(0));
}

/// A node that does not answer cannot end its pods, so Kubernetes keeps them for ever and never
/// says how they ended.
#[test]
fn when_its_node_is_lost_a_job_is_tried_again() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("nodes", &mut home);
    world.image(&home, "stays:1", &[("stays", FIRST_WAITS)]);
    let tolerations = "tolerations: [{key: ion-test/gone, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]";
    let module =
        format!("on: [stay], emits: [end_done], retries: 0, kubernetes: {{{tolerations}}}");
    let file = home.write("pipeline.yaml", pipeline("stays:1", &[("stays", &module)]));
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap()]);
    home.run(["event", "create", "stay"]).well();
    wait_long("the pod to run", || running_pod(&world, "nodes", "stays").is_some());
    world.script(&["down", "kubelet"]);
    // The cluster sets a taint of its own on such a node, but removes it again if there is no other
    // node. So the test sets one.
    let taint = world.taint("ion-test/gone=yes:NoExecute");
    wait_long("the loss to be seen", || {
        attempts(&home, "stays")[0]
            == ("lost".into(), "its node was lost: its pod was to end, and does not".into())
    });
    world.script(&["up", "kubelet"]);
    drop(taint);
    wait_long("the retry to succeed", || jobs_of(&home, &["stays"])[0]["state"] == "succeeded");
    let job = jobs_of(&home, &["stays"]).remove(0);
    assert_eq!(
        (&job["attempt"], &job["losses"], &job["failures"]),
        (&json!(2), &json!(1), &json!(0)),
        "{job}"
    );
    wait_long("Jobs to be removed", || {
        world.kubectl(&["-n", "nodes", "get", "jobs,pods", "-o", "name"]).is_empty()
    });
    home.run(["check"]).well();
    assert_eq!(dispatcher.stop(), Some(0));
}

#[test]
fn when_the_nodes_daemon_ends_a_job_fails_at_once_and_is_tried_again() {
    let Some(mut world) = world() else { return };
    let mut home = world.home();
    world.namespace("restarts", &mut home);
    let reads = "#!/bin/sh\nset -eu\necho reads\nmd5sum /ion/in/data/big > /ion/out/data/sum\n\
        echo '{\"eventType\":\"summed\",\"files\":\"sum\"}' > /ion/out/events/e.json\n";
    world.image(&home, "reads:1", &[("reads", reads)]);
    let file = home.write(
        "pipeline.yaml",
        pipeline("reads:1", &[("reads", "on: [read], emits: [summed], retries: 0")]),
    );
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap()]);
    let big = home.path().join("big");
    let random = std::fs::File::open("/dev/urandom").unwrap().take(1 << 30);
    std::io::copy(&mut { random }, &mut std::fs::File::create(&big).unwrap()).unwrap();
    for how in ["TERM", "KILL"] {
        let said = || home.log_of("dispatch").matches("| reads").count();
        let before = said();
        home.run(["event", "create", "read", "--file", big.to_str().unwrap()]).well();
        let driver = world.driver();
        wait_long("the module to read", || said() > before);
        let begun = Instant::now();
        match how {
            "TERM" => assert_eq!(driver.stop(), Some(0)),
            _ => driver.kill(),
        }
        wait_long("the pod to have failed", || {
            let pods = world.kubectl_json(&["-n", "restarts", "get", "pods"]);
            let pods = pods["items"].as_array().unwrap();
            pods.iter().all(|pod| pod["status"]["phase"] != "Running")
        });
        eprintln!("SIG{how}: the pod had ended after {:.1?}", begun.elapsed());
        world.start_driver();
        wait_long("the retry to succeed", || {
            jobs_of(&home, &["reads"]).last().unwrap()["state"] == "succeeded"
        });
        eprintln!("SIG{how}: the next attempt had succeeded after {:.1?}", begun.elapsed());
        let jobs = jobs_of(&home, &["reads"]);
        let job = jobs.last().unwrap();
        let ends: Vec<&str> = job["attempts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["end"].as_str().unwrap())
            .collect();
        assert_eq!(ends, ["lost", "succeeded"], "{job}");
        assert_eq!(job["failures"], 0);
    }
    home.run(["check"]).well();
    assert_eq!(dispatcher.stop(), Some(0));
}

/// Prints the time of a job of Ion and of a bare Job with an emptyDir. The difference is what the
/// tree and Ion's other work for a job take; it is a figure, not a promise.
#[test]
fn what_a_pod_costs_beside_a_bare_job() {
    let Some(world) = world() else { return };
    let mut home = world.home();
    world.namespace("costs", &mut home);
    world.image(&home, "nothing:1", &[("nothing", "#!/bin/sh\nls /ion > /dev/null\n")]);
    let file = home.write("pipeline.yaml", pipeline("nothing:1", &[("nothing", "on: [cost]")]));
    let dispatcher = home.start("dispatch", &[file.to_str().unwrap()]);
    let (mut ours, mut theirs) = (vec![], vec![]);
    for n in 0..7 {
        let begun = Instant::now();
        home.run(["event", "create", "cost", "--wait"]).well();
        ours.push(begun.elapsed());
        let bare = format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: bare-{n}, namespace: costs}}\nspec:\n  backoffLimit: 0\n  template:\n    \
             spec:\n      restartPolicy: Never\n      containers: [{{name: c, image: 'nothing:1', command: [/app/nothing], \
             volumeMounts: [{{name: ion, mountPath: /ion}}]}}]\n      volumes: [{{name: ion, emptyDir: {{}}}}]\n"
        );
        let begun = Instant::now();
        world.kubectl_with(&["create", "-f", "-"], &bare);
        world.kubectl(&[
            "-n",
            "costs",
            "wait",
            "--for=condition=complete",
            "--timeout=60s",
            &format!("job/bare-{n}"),
        ]);
        theirs.push(begun.elapsed());
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    eprintln!(
        "from the request to the end, p50: a job {:.2?}, a bare Job with an emptyDir {:.2?}",
        ours[3], theirs[3]
    );
    assert_eq!(dispatcher.stop(), Some(0));
}
