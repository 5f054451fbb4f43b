//! Tests the Helm chart: Helm renders it, and installs it on a real cluster with the image that
//! `make images` makes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs, and says what it did not try"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::cluster::{Cluster, words_programs};
use crate::support::servers::{Mongo, Rabbit, S3, cache, plane};
use crate::support::{CommandOutput, Home, wait_for};
use serde_json::{Value, json};

const CHART: &str = "deploy/helm/ion";
const EVERYTHING: &str = "tests/machine/deploy/everything.yaml";

/// The flags without which the chart cannot be rendered: they name a Secret for the stores.
const STORES: [&str; 2] = ["--set", "stores.existingSecret=there"];

/// Runs Helm with a state of its own, on this cluster or on none.
fn helm<'w>(
    home: &Home,
    kubeconfig: Option<&Path>,
    words: impl IntoIterator<Item = &'w str>,
) -> CommandOutput {
    let program = cache().join("bin/helm");
    assert!(program.exists(), "{program:?} is missing; scripts/setup-deploy.sh installs it");
    let mut command = Command::new(program);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, home.path());
    }
    command.env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/dev/null")));
    CommandOutput::of(command.args(words).output().unwrap())
}

fn template(words: &[&str]) -> CommandOutput {
    helm(
        &Home::new(),
        None,
        ["template", "try", CHART, "--namespace", "ion"].iter().chain(words).copied(),
    )
}

/// Returns all objects that the chart renders with these flags.
fn rendered(words: &[&str]) -> Vec<Value> {
    let text = template(words).well().stdout;
    let documents = text.split("\n---\n").filter(|document| document.contains("kind:"));
    documents
        .map(|document| {
            serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}\n{document}"))
        })
        .collect()
}

fn everything() -> Vec<Value> {
    rendered(&["--values", EVERYTHING])
}

fn name(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
}

#[track_caller]
fn named<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let found = objects.iter().find(|object| name(object) == wanted);
    found.unwrap_or_else(|| {
        panic!("no {wanted} among {:?}", objects.iter().map(name).collect::<Vec<_>>())
    })
}

/// Returns the pod template of each workload, by the workload's kind and name.
fn pods(objects: &[Value]) -> BTreeMap<String, &Value> {
    let with_pods = objects.iter().filter(|object| object["spec"]["template"].is_object());
    with_pods.map(|object| (name(object), &object["spec"]["template"])).collect()
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    // By default the chart runs the version that `make images` makes.
    let chart = std::fs::read_to_string(Path::new(CHART).join("Chart.yaml")).unwrap();
    assert!(chart.contains(concat!("\nappVersion: ", env!("CARGO_PKG_VERSION"), "\n")), "{chart}");
    for words in [[].as_slice(), &["--values", EVERYTHING]] {
        let words = ["lint", "--strict", CHART].iter().chain(&STORES).chain(words);
        helm(&Home::new(), None, words.copied()).well();
    }
}

#[test]
fn mistakes_in_values_are_refused_in_words() {
    let stores = STORES.to_vec();
    for (words, said) in [
        (vec![], "stores.blobs is needed"),
        (vec!["--set", "stores.blobs=file:///var/lib/blobs"], "stores.blobs: Does not match"),
        (
            vec!["--set", "dispatchers.video.replica=2"],
            "Additional property replica is not allowed",
        ),
        (
            vec!["--set", "dispatchers.Video.replicas=2"],
            "Property name of \"Video\" does not match",
        ),
        (
            vec!["--set", "dispatchers.gateway.replicas=2"],
            "Property name of \"gateway\" does not match",
        ),
        (
            vec!["--set", "dispatchers.video.pipeline.modules.a.image=x"],
            "dispatchers.video.pipeline: Invalid type",
        ),
        (
            vec!["--set", "dispatchers.video.pipeline=a: [b"],
            "dispatchers.video.pipeline is no YAML",
        ),
        (
            vec!["--set", "dispatchers.video.autoscaling.enabled=true"],
            "dispatchers.video.autoscaling.modules: name",
        ),
        (
            vec!["--set", "dispatchers.video.autoscaling.minReplicas=0"],
            "Must be greater than or equal to 1",
        ),
        (vec!["--set", "stores.ticketKey=short"], "stores.ticketKey: Does not match"),
        (vec!["--set", "env.A-B=1"], "Property name of \"A-B\" does not match"),
        (vec!["--set", "csi.kubeletDir=/var/lib/kubelet/"], "csi.kubeletDir: Does not match"),
        (
            vec!["--set", "gateway.ingress.enabled=true"],
            "gateway.ingress.hosts: Array must have at least 1 items",
        ),
        (vec!["--set", "jobs.createNamespace=true"], "name one there that is not the release's"),
        (vec!["--set", "gatway.enabled=true"], "Additional property gatway is not allowed"),
    ] {
        let first = if words.is_empty() { vec![] } else { stores.clone() };
        let refused = template(&[first, words.clone()].concat()).failed();
        assert!(refused.stderr.contains(said), "{words:?}: {}", refused.stderr);
    }
}

/// A value that no template reads would have no effect.
#[test]
fn every_value_is_read_by_a_template() {
    fn leaves(value: &Value, at: &str, into: &mut Vec<String>) {
        match value.as_object().filter(|map| !map.is_empty()) {
            Some(map) => {
                map.iter().for_each(|(key, value)| leaves(value, &format!("{at}.{key}"), into))
            }
            None => into.push(at.to_owned()),
        }
    }
    let values: Value = serde_saphyr::from_str(
        &std::fs::read_to_string(Path::new(CHART).join("values.yaml")).unwrap(),
    )
    .unwrap();
    let mut all = vec![];
    leaves(&values, "", &mut all);
    let templates = std::fs::read_dir(Path::new(CHART).join("templates")).unwrap();
    let text: String =
        templates.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    for path in all {
        let keys: Vec<&str> = path.split('.').skip(1).collect();
        // A template that hands on a whole map reads everything in it.
        let whole = ["resources", "nodeSelector", "updateStrategy"];
        let read = keys
            .iter()
            .rev()
            .find(|key| !keys.iter().any(|one| whole.contains(one)) || whole.contains(key));
        let key = read.unwrap();
        assert!(
            text.contains(&format!(".{key}")) || text.contains(&format!("\"{key}\"")),
            "no template reads {path}"
        );
    }
}

#[test]
fn only_the_daemon_that_mounts_is_privileged() {
    let objects = everything();
    let pods = pods(&objects);
    assert_eq!(pods.len(), 5, "{:?}", pods.keys());
    for (workload, pod) in pods {
        let spec = &pod["spec"];
        let container = &spec["containers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{workload}");
        assert_eq!(
            spec["automountServiceAccountToken"],
            workload.contains("Deployment") && !workload.contains("gateway")
        );
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(spec[shared].is_null(), "{workload} {shared}");
        }
        let volumes = spec["volumes"].as_array().unwrap();
        let of_the_node = volumes.iter().filter(|volume| volume["hostPath"].is_object()).count();
        if workload == "DaemonSet try-ion-csi" {
            assert_eq!(
                (of_the_node, &container["securityContext"]["privileged"]),
                (5, &json!(true))
            );
            continue;
        }
        assert_eq!(of_the_node, 0, "{workload}");
        let context = &container["securityContext"];
        assert_eq!(
            (&context["allowPrivilegeEscalation"], &context["runAsNonRoot"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{workload}");
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{workload}"
        );
    }
    // Only dispatchers have roles, and only in the namespace of the jobs.
    let roles: Vec<_> =
        objects.iter().filter(|object| object["kind"].as_str().unwrap().contains("Role")).collect();
    assert_eq!(roles.len(), 6);
    for role in roles {
        assert_eq!(role["metadata"]["namespace"], "ion-jobs", "{role}");
    }
}

#[test]
fn secrets_stand_in_secrets_only() {
    let objects = everything();
    let hidden = |object: &&Value| object.to_string().contains("hidden-");
    assert_eq!(
        objects.iter().filter(hidden).map(name).collect::<Vec<_>>(),
        Vec::<String>::new(),
        "even Secrets hold their values encoded"
    );
    let secret = named(&objects, "Secret try-ion-stores");
    let keys: Vec<&str> = secret["data"].as_object().unwrap().keys().map(String::as_str).collect();
    for key in [
        "ION_BLOBS",
        "ION_DOCUMENTS",
        "ION_BUS",
        "ION_TICKET_KEY",
        "ION_METRICS_TOKEN",
        "AWS_ACCESS_KEY_ID",
    ] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    let own = rendered(&STORES);
    assert!(
        !own.iter().any(|object| object["kind"] == "Secret"),
        "the chart makes no Secret where the values name one"
    );
}

#[test]
fn a_pipeline_arrives_to_the_letter_and_replaces_the_pods_of_its_dispatcher_only() {
    let home = Home::new();
    let text = "# words, with a comment\nmodules:\n  count:\n    on: [new_text]   # `on` is no boolean\n    run: [wc, -w]\n";
    let file = home.write("pipeline.yaml", text);
    let from_file = |path: &Path| {
        let set = format!("dispatchers.words.pipeline={}", path.display());
        rendered(&["--values", EVERYTHING, "--set-file", &set])
    };
    let before = from_file(&file);
    let map = named(&before, "ConfigMap try-ion-words");
    assert_eq!(map["data"]["pipeline.yaml"], text);
    let after = from_file(&home.write("pipeline.yaml", format!("{text}    retries: 1\n")));
    let (old, new) = (pods(&before), pods(&after));
    let changed: Vec<_> = old
        .iter()
        .filter(|(name, pod)| new[*name] != **pod)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(changed, ["Deployment try-ion-words"]);
}

#[test]
fn other_stores_replace_all_pods_and_another_version_of_the_chart_none() {
    let before = everything();
    let other = rendered(&["--values", EVERYTHING, "--set", "stores.blobs=s3://other/ion"]);
    let (old, new) = (pods(&before), pods(&other));
    assert!(old.iter().all(|(name, pod)| new[name] != *pod));
    for pod in old.values() {
        let labels = pod["metadata"]["labels"].to_string();
        assert!(!labels.contains("0.1.0"), "{labels}");
    }
}

#[test]
fn replicas_follow_the_queues_of_the_pipelines_modules() {
    let objects = everything();
    let scaled = named(&objects, "ScaledObject try-ion-scaled");
    let triggers = scaled["spec"]["triggers"].as_array().unwrap();
    let queues: Vec<_> = triggers.iter().map(|trigger| &trigger["metadata"]["queueName"]).collect();
    assert_eq!(queues, ["ion.module.crop", "ion.module.sheet"]);
    assert_eq!(triggers[0]["metadata"]["mode"], "QueueLength");
    assert!(
        named(&objects, "Deployment try-ion-scaled")["spec"]["replicas"].is_null(),
        "KEDA sets the number of replicas"
    );
    assert_eq!(named(&objects, "Deployment try-ion-video")["spec"]["replicas"], 3);
}

/// Modules with `network: host` in their pipeline are the exception.
#[test]
fn modules_reach_nothing() {
    let objects = rendered(&STORES);
    for (network, egress) in [("none", json!([])), ("host", json!([{}]))] {
        let policy = &named(&objects, &format!("NetworkPolicy try-ion-jobs-{network}"))["spec"];
        assert_eq!((&policy["ingress"], &policy["egress"]), (&json!([]), &egress));
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["podSelector"]["matchLabels"]["ion/network"], network);
    }
}

// ---- on a real cluster ----

/// A cluster, and a folder for Helm's state and the test's files.
struct Charted {
    home: Home,
    cluster: Cluster,
}

impl Charted {
    fn helm(&self, words: &[&str]) -> CommandOutput {
        helm(&self.home, Some(&self.cluster.at("kubeconfig")), words.iter().copied())
    }

    fn kubectl(&self, words: &[&str]) -> CommandOutput {
        self.cluster.kubectl(words)
    }

    fn get(&self, what: &str, path: &str) -> String {
        let output = format!("jsonpath={path}");
        self.kubectl(&["--namespace", "ion", "get", what, "--output", &output]).well().stdout
    }

    /// Asserts that a command succeeded. If it failed, prints the state and the logs of the pods
    /// first.
    fn well(&self, ran: CommandOutput) -> CommandOutput {
        if ran.code != Some(0) {
            for words in
                [["describe", "pods"].as_slice(), &["logs", "-l", "app.kubernetes.io/name=ion"]]
            {
                println!("{}", self.kubectl(&[&["--namespace", "ion"], words].concat()).stdout);
            }
        }
        ran.well()
    }
}

#[test]
fn on_a_real_cluster_it_is_installed_upgraded_and_removed() {
    let Some(cluster) = Cluster::start() else { return };
    let cluster = Charted { home: Home::new(), cluster };

    // The API server accepts every object that the chart can make. Unknown fields would be refused.
    cluster.kubectl(&["apply", "--filename", "tests/machine/deploy/kinds.yaml"]).well();
    cluster.kubectl(&["create", "namespace", "ion"]).well();
    wait_for("the added kinds to be known", || {
        cluster.kubectl(&["get", "scaledobjects,podmonitors"]).code == Some(0)
    });
    let whole = ["whole", CHART, "--namespace", "ion", "--values", EVERYTHING];
    cluster.helm(&[&["install"], whole.as_slice()].concat()).well();
    assert_eq!(
        cluster.get("csidriver/csi.ionfs", "{.spec.volumeLifecycleModes}"),
        "[\"Ephemeral\"]"
    );
    assert_eq!(cluster.get("poddisruptionbudget/whole-ion-gateway", "{.spec.maxUnavailable}"), "1");

    // A dispatcher has its rights in the namespace of the jobs only.
    let may = |account: &str, verb: &str, what: &str, namespace: &str| {
        let account = format!("system:serviceaccount:ion:{account}");
        cluster
            .kubectl(&["auth", "can-i", verb, what, "--as", &account, "--namespace", namespace])
            .code
            == Some(0)
    };
    for (verb, what) in
        [("create", "jobs.batch"), ("watch", "pods"), ("get", "pods/log"), ("list", "events")]
    {
        assert!(may("whole-ion-video", verb, what, "ion-jobs"), "{verb} {what}");
        assert!(!may("whole-ion-video", verb, what, "ion"), "{verb} {what} beside the daemons");
        assert!(
            !may("whole-ion-csi", verb, what, "ion-jobs"),
            "{verb} {what} by the node's daemon"
        );
    }
    for (verb, what) in
        [("get", "secrets"), ("create", "pods"), ("create", "pods/exec"), ("update", "jobs.batch")]
    {
        assert!(!may("whole-ion-video", verb, what, "ion-jobs"), "{verb} {what}");
    }
    cluster.helm(&["uninstall", "whole", "--namespace", "ion", "--wait"]).well();
    let ours = "app.kubernetes.io/instance=whole";
    wait_for("all objects of the release to be gone", || {
        let kinds = "all,secrets,configmaps,roles,csidrivers,namespaces";
        cluster.kubectl(&["get", kinds, "-A", "-l", ours, "-o", "name"]).well().stdout.is_empty()
    });

    // The daemons run with the image that `make images` makes. Each pod has stores of its own here,
    // because daemons can start without shared stores.
    let image = cluster.home.path().join("image.tar");
    let programs = Path::new(crate::support::ION).parent().unwrap();
    let made = Command::new("deploy/images.sh")
        .arg("--programs")
        .arg(programs)
        .arg("--output")
        .arg(&image)
        .output();
    println!("{}", CommandOutput::of(made.unwrap()).well().stdout);
    cluster
        .cluster
        .script("image", &[concat!("ion:", env!("CARGO_PKG_VERSION")), image.to_str().unwrap()]);
    let stores = [
        "--from-literal=ION_BLOBS=file:///var/lib/ion/blobs",
        "--from-literal=ION_DOCUMENTS=sqlite:///var/lib/ion/ion.db",
        "--from-literal=ION_BUS=sqlite:///var/lib/ion/ion.db",
        "--from-literal=ION_METRICS_TOKEN=0123456789abcdef",
        "--from-literal=ION_TICKET_KEY=0123456789abcdef0123456789abcdef",
    ];
    cluster
        .kubectl(
            &[["create", "secret", "generic", "there", "--namespace", "ion"].as_slice(), &stores]
                .concat(),
        )
        .well();
    let pipeline = |retries: u32| {
        format!(
            "modules:\n  count:\n    on: [new_text]\n    retries: {retries}\n    run: [wc, -w]\n"
        )
    };
    let upgrade = |retries: u32| {
        let file = cluster.home.write("pipeline.yaml", pipeline(retries));
        let set = format!("dispatchers.words.pipeline={}", file.display());
        let words = [
            "upgrade",
            "--install",
            "try",
            CHART,
            "--namespace",
            "ion",
            "--set-file",
            &set,
            "--set",
            "image.pullPolicy=Never",
            "--set",
            "gateway.enabled=true",
            "--set",
            "csi.enabled=false",
            "--wait",
            "--timeout",
            "2m",
        ];
        cluster.well(cluster.helm(&[words.as_slice(), &STORES].concat()))
    };
    let notes = upgrade(1).stdout;
    assert!(notes.contains("module count does not say `executor: kubernetes`"), "{notes}");
    let generation =
        |what: &str| cluster.get(&format!("deployment/try-ion-{what}"), "{.metadata.generation}");
    let token = cluster.get("secret/try-ion-tokens", "{.data.token}");
    assert!(token.len() > 32, "{token}");
    upgrade(1);
    assert_eq!([generation("words"), generation("gateway")], ["1", "1"], "nothing is replaced");
    upgrade(2);
    assert_eq!(
        [generation("words"), generation("gateway")],
        ["2", "1"],
        "only the dispatcher is replaced"
    );
    assert_eq!(cluster.get("secret/try-ion-tokens", "{.data.token}"), token, "made only once");
    cluster.helm(&["uninstall", "try", "--namespace", "ion", "--wait"]).well();
    words_run_as_pods(&cluster);
}

/// Runs the words example inside the cluster: the dispatcher is a pod, the modules are pods, and
/// the daemon that mounts their trees is a pod too. Only the stores are outside.
fn words_run_as_pods(cluster: &Charted) {
    const TEXTS: usize = 5;
    let (mongo, rabbit, s3) = (Mongo::start(), Rabbit::start(), S3::start());
    let mut home = Home::new();
    home.env = plane(&mongo.url, &rabbit.url, &s3.url, &s3.env);
    // Pods reach the same stores at other addresses.
    let mut literals = vec![
        "--from-literal=ION_METRICS_TOKEN=0123456789abcdef".to_owned(),
        "--from-literal=ION_TICKET_KEY=0123456789abcdef0123456789abcdef".to_owned(),
    ];
    for (name, value) in &home.env {
        let mut value = value.clone();
        if let Some((before, rest)) = value.clone().split_once("127.0.0.1:") {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let at = cluster.cluster.script("forward", &[&port]);
            value = format!("{before}{}{}", at.trim(), &rest[port.len()..]);
            // The database names its members by addresses that only this machine reaches, so
            // clients must not look for them.
            if name == "ION_DOCUMENTS" {
                value.push_str(if value.contains('?') { "&" } else { "?" });
                value.push_str("directConnection=true");
            }
        }
        literals.push(format!("--from-literal={name}={value}"));
    }
    let secret = ["create", "secret", "generic", "plane", "--namespace", "ion"];
    let literals: Vec<&str> = literals.iter().map(String::as_str).collect();
    cluster.kubectl(&[secret.as_slice(), &literals].concat()).well();

    let programs = words_programs();
    let programs: Vec<(&str, &str)> =
        programs.iter().map(|(name, text)| (*name, text.as_str())).collect();
    cluster.cluster.image(&home, "words:1", &programs);
    let example = std::fs::read_to_string("examples/words/pipeline.yaml").unwrap();
    let in_pods = example.lines().map(|line| match line.trim().strip_prefix("run: [./") {
        Some(program) => {
            format!("    executor: kubernetes\n    image: words:1\n    run: [/app/{program}\n")
        }
        None => format!("{line}\n"),
    });
    let pipeline = home.write("pipeline.yaml", in_pods.collect::<String>());
    let (pipeline, kubelet) = (
        format!("dispatchers.words.pipeline={}", pipeline.display()),
        cluster.cluster.at("kubelet"),
    );
    let kubelet = format!("csi.kubeletDir={}", kubelet.display());
    let state = format!("csi.stateDir={}", cluster.cluster.at("ionfs").display());
    let words = [
        "install",
        "words",
        CHART,
        "--namespace",
        "ion",
        "--set-file",
        &pipeline,
        "--set",
        &kubelet,
        "--set",
        &state,
        "--set",
        "image.pullPolicy=Never",
        "--set",
        "stores.existingSecret=plane",
        "--wait",
        "--timeout",
        "3m",
    ];
    cluster.well(cluster.helm(&words));

    let here = Home::new();
    let local = here.up(&std::path::absolute("examples/words/pipeline.yaml").unwrap());
    let mut create = vec!["event".to_owned(), "create".into(), "new_texts".into(), "--wait".into()];
    for n in 0..TEXTS {
        let text = format!("{}\n", "some words that count and words that matter ".repeat(9 + n));
        create.extend([
            "--file".to_owned(),
            home.write(&format!("text-{n}.txt"), text).display().to_string(),
        ]);
    }
    here.run(&create).well();
    cluster.well(home.run(&create));
    let ranking = |trace: Vec<Value>| {
        let mut rankings = trace.into_iter().filter(|event| event["type"] == "ranking");
        let files = rankings.next().unwrap()["files"][0].clone();
        assert!(rankings.next().is_none());
        (files["name"].clone(), files["size"].clone(), files["checksums"].clone())
    };
    assert_eq!(ranking(home.trace()), ranking(here.trace()));
    let jobs = home.jobs();
    assert_eq!(jobs.len(), 1 + TEXTS + 1);
    assert!(jobs.iter().all(|job| job["state"] == "succeeded" && job["attempt"] == 1), "{jobs:?}");
    assert_eq!(local.stop(), Some(0));
    cluster.helm(&["uninstall", "words", "--namespace", "ion", "--wait"]).well();
    wait_for("all pods and their owners to be gone", || {
        cluster
            .kubectl(&["--namespace", "ion", "get", "jobs,pods,daemonsets", "--output", "name"])
            .well()
            .stdout
            .is_empty()
    });
}
