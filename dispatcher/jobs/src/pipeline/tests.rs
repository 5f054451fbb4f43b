use std::path::PathBuf;

use ion_model::errors::error_chain;
use ion_model::limits::Limits;
use ion_plane::address::FileUrls;
use proptest::prelude::*;

use super::*;

/// Returns the pipeline, or the text that people see in its place.
fn parse(text: &str) -> Result<Pipeline, String> {
    let pipeline = Pipeline::from_bytes(text.as_bytes(), "p.yaml", Path::new("/somewhere"));
    pipeline.map_err(|error| error_chain(&error))
}

#[test]
fn a_whole_file_is_read() {
    let pipeline = parse(
        "name: video\nmodules:\n  sample:\n    on: [new_video]\n    emits: [frame]\n    run: [./sample.sh]\n    env: {FPS: \"1\"}\n    commit: on-success\n    timeout: 2m\n    retries: 0\n    concurrency: 4\n    executor: local\n  sheet:\n    gather: frame\n    per: new_video\n    on-dead: go\n    run: [python3, sheet.py]\n",
    )
    .unwrap();
    let [sample, sheet] = &pipeline.modules[..] else { panic!("two modules") };
    assert_eq!(
        (sample.timeout, sample.retries, sample.concurrency),
        (Duration::from_secs(120), 0, 4)
    );
    assert_eq!(sample.commit, CommitMode::OnSuccess);
    assert_eq!(sample.argv(), ["/somewhere/./sample.sh"]);
    assert_eq!(sheet.subscribed_types(), ["new_video"]);
    assert_eq!(sheet.argv(), ["python3", "sheet.py"]);
    assert_eq!(sheet.on_dead, OnDead::Go);
}

#[test]
fn a_module_of_the_sidecar_api_is_seen_when_it_is_done_and_finds_addresses() {
    let module = |fields: &str| {
        let text = format!("modules:\n  a: {{on: [x], run: [cat]{fields}}}\n");
        let module = parse(&text).unwrap().modules.remove(0);
        (module.commit, module.urls, module.base_dir())
    };
    let ion = PathBuf::from("/ion");
    assert_eq!(module(""), (CommitMode::OnClose, FileUrls::None, ion.clone()));
    assert_eq!(module(", api: sidecar"), (CommitMode::OnSuccess, FileUrls::Ion, ion.clone()));
    assert_eq!(
        module(", api: sidecar, commit: on-close, urls: signed"),
        (CommitMode::OnClose, FileUrls::Signed, ion)
    );
    assert_eq!(module(", env: {HANDLER_BASE_DIR: /older}").2, Path::new("/older"));
}

#[test]
fn a_module_of_an_image_says_what_it_may_take() {
    let text = "modules:\n  a: {on: [x], image: 'oci:i:v1', network: host, user: '1000', resources: {cpu: 0.5, memory: 256Mi}}\n  b: {on: [x], image: i, run: [cat], executor: container}\n";
    let modules = parse(text).unwrap().modules;
    assert!(modules.iter().all(|module| module.executor == ExecutorKind::Container));
    let [a, b] = [&modules[0], &modules[1]].map(|module| module.container.clone().unwrap());
    assert_eq!((a.image.to_string(), a.network), ("oci:/somewhere/i:v1".into(), Network::Host));
    assert_eq!((a.resources.cpu_millis, a.resources.memory_bytes), (Some(500), Some(256 << 20)));
    assert_eq!(b, Container::from_image(ImageReference::Registry("i".into())));
    assert!(modules[0].run.is_empty() && modules[1].argv() == ["cat"]);
    let stored = serde_json::to_value(&modules[0]).unwrap();
    assert_eq!(serde_json::from_value::<Module>(stored).unwrap(), modules[0]);
}

#[test]
fn a_module_keeps_the_daemons_rights_only_if_it_says_so() {
    let text = "modules:\n  a: {on: [x], run: [cat], privileged: true}\n  b: {on: [x], run: [cat], privileged: false}\n  c: {on: [x], run: [cat]}\n";
    let modules = parse(text).unwrap().modules;
    assert_eq!([0, 1, 2].map(|n| modules[n].privileged), [true, false, false]);
    let stored = serde_json::to_value(&modules[0]).unwrap();
    assert_eq!(serde_json::from_value::<Module>(stored).unwrap(), modules[0]);
    assert!(serde_json::to_value(&modules[2]).unwrap().get("privileged").is_none());
}

#[test]
fn secrets_are_names_and_no_mistake_shows_what_may_be_a_value() {
    let text = "modules:\n  a: {on: [x], run: [cat], secrets: [SLACK_URL, b.c-d]}\n  b: {on: [x], run: [cat]}\n";
    let modules = parse(text).unwrap().modules;
    assert_eq!(modules[0].secrets, ["SLACK_URL", "b.c-d"]);
    let stored = serde_json::to_value(&modules[0]).unwrap();
    assert_eq!(serde_json::from_value::<Module>(stored).unwrap(), modules[0]);
    assert!(serde_json::to_value(&modules[1]).unwrap().get("secrets").is_none());
    let chain = parse("name: c\nsecrets: [TOKEN]\nChain: [{Command: cat}]\n").unwrap();
    assert_eq!(chain.modules[0].secrets, ["TOKEN"]);
    let many: Vec<String> = (0..=MODULE_SECRETS_MAX).map(|n| format!("s{n}")).collect();
    let many = format!("[{}]", many.join(", "));
    let wrong = |text: &str| parse(text).unwrap_err();
    let module = |secrets: &str| {
        format!(
            "modules:\n  a: {{params: {{token: {{type: secret}}}}, commit: on-success, run: [cat], \
             secrets: {secrets}}}\n"
        )
    };
    for (secrets, expected) in [
        ("[https://hooks.example/very-secret]", "one of them is no name"),
        ("[.hidden]", "one of them is no name"),
        ("[A, B, A]", "\"A\" is named twice"),
        ("[token]", "is also a parameter of \"type: secret\""),
        (many.as_str(), "there are 65; at most 64"),
        ("{A: very-secret}", "a list of names in a module"),
    ] {
        let words = wrong(&module(secrets));
        assert!(words.contains(expected) && !words.contains("very-secret"), "{words}");
    }
    let source =
        |what: &str| format!("{}sources:\n  s: {{module: a, every: 1h, {what}}}\n", module("[A]"));
    let sources = parse(&source("secrets: {token: 'file:/etc/ion/token'}")).unwrap().sources;
    assert_eq!(sources["s"].secrets["token"].to_string(), "file:/etc/ion/token");
    assert!(sources["s"].with.is_empty());
    for (what, expected) in [
        ("with: {token: very-secret}", "is a secret, so its value stands in no source"),
        ("secrets: {token: 'very-secret/value'}", "a value never stands here"),
        ("secrets: {token: 'file:etc/token'}", "has to begin at the root"),
        ("secrets: {tokn: TOKEN}", "(those are: token)"),
    ] {
        let words = wrong(&source(what));
        assert!(words.contains(expected) && !words.contains("very-secret"), "{words}");
    }
    let pod = source("secrets: {token: 'file:/etc/ion/token'}")
        .replace("run: [cat]", "executor: kubernetes, image: 'registry.example/a:1'");
    assert!(wrong(&pod).contains("name a key of the Secret \"ion-secrets\""));
}

#[test]
fn a_chain_is_a_module_of_links() {
    let text = "name: lines\nwarm: 3\nidle: 1m\noutput: 1MiB\ntimeout: 5s\nChain:\n  - {Command: /bin/cat}\n  - {Name: n, Image: i, Command: xargs, Arguments: [-n, 1]}\n";
    let pipeline = parse(text).unwrap();
    let module = &pipeline.modules[0];
    assert_eq!(
        (&*module.name, &*module.on[0], &*module.emits[0]),
        ("lines", "chain.lines", "chain.lines.done")
    );
    assert_eq!(
        module.link_settings,
        LinkSettings { warm: 3, idle: Duration::from_secs(60), output_bytes: 1 << 20 }
    );
    assert_eq!((module.timeout, module.retries), (Duration::from_secs(5), 0));
    let names: Vec<&str> = module.links.iter().map(|link| &*link.name).collect();
    assert_eq!(names, ["cat", "n"]);
    assert_eq!(
        (&*module.links[1].image, module.link_argv(&module.links[1])),
        ("i", vec!["xargs".into(), "-n".into(), "1".into()])
    );
}

#[test]
fn each_mistake_is_named_with_its_line_and_the_way_out() {
    let module =
        |fields: &str| format!("modules:\n  a:\n    on: [x]\n    run: [cat]\n    {fields}\n");
    let cases = [
        (module("retrys: 3"), "p.yaml:5:", "did you mean \"retries\"? allowed: on, where, gather"),
        (
            module("where: [kind=car, score>=high]"),
            "p.yaml:5:",
            "\"where\": the term \"score>=high\" compares with \"high\", which is no number; a term \
             is, for example, score>=0.8",
        ),
        (module("files: [../lib/a.py]"), "p.yaml:5:", "below the pipeline file's folder"),
        (module("files: lib"), "p.yaml:5:", "as in files: [\"lib/*.py\", model.onnx]"),
        (module("image: i\n    files: [a.py]"), "p.yaml:6:", "an image has its files in it"),
        (module("where: [\"@start\"]"), "p.yaml:5:", "which only `ion find` takes"),
        (module("timeout: soon"), "p.yaml:5:", "write it as 30s"),
        (module("concurrency: 0"), "p.yaml:5:", "1 to 10000 jobs at a time are allowed"),
        (module("concurrency: 9223372036854775807"), "p.yaml:5:", "1 to 10000 jobs at a time are allowed"),
        (module("timeout: 0s"), "p.yaml:5:", "\"timeout\" \"0s\": 100ms to 1year are allowed"),
        (module("timeout: 9999years"), "p.yaml:5:", "100ms to 1year are allowed"),
        (module("limits: {staged-bytes: 10GB}"), "p.yaml:5:", "\"staged-bytes\" cannot be \"10GB\": bytes as in 500, 16MiB"),
        (module("limits: {open-files: 0}"), "p.yaml:5:", "from 1 on"),
        (module("limits: {event-values: 3KiB}"), "p.yaml:5:", "a number as in 1000"),
        (module("limits:\n      path-bytes: 901"), "p.yaml:6:", "at most 900"),
        (module("limits: {staged: 1}"), "p.yaml:5:", "allowed: event-bytes, event-values"),
        (module("limits: {staged-bytes: 99999999TiB}"), "p.yaml:5:", "cannot be"),
        (module("executor: moon"), "p.yaml:5:", "allowed: local, container"),
        (module("executor: container"), "p.yaml:5:", "needs an \"image\""),
        (module("network: host"), "p.yaml:5:", "\"network\" belongs to \"image\""),
        (module("image: i\n    executor: local"), "p.yaml:6:", "an image needs executor: container"),
        (module("image: a b"), "p.yaml:5:", "allowed: name:tag"),
        (module("image: i\n    network: all"), "p.yaml:6:", "allowed: none, host"),
        (module("image: i\n    user: a b"), "p.yaml:6:", "as in 1000:1000"),
        (module("image: i\n    api: sidecar"), "p.yaml:", "with network: host only"),
        (module("image: i\n    resources: {cpu: 1.5x}"), "p.yaml:6:", "as in 500m, 0.5 or 2"),
        (module("image: i\n    resources: {memory: 64}"), "p.yaml:6:", "as in 256Mi or 2G, from 4Mi on"),
        (module("image: i\n    resources: {disk: 1}"), "p.yaml:6:", "allowed: cpu, memory, gpu"),
        (module("image: i\n    resources: {gpu: 1}"), "p.yaml:6:", "gives no GPU"),
        (module("image: i\n    privileged: true"), "p.yaml:6:", "has no rights on the machine"),
        (module("emits: [y]\n    stdio: true\n    privileged: true"), "p.yaml:7:", "needs no rights"),
        ("privileged: true\nChain: [{Command: cat}]".into(), "p.yaml:1:", "privileged"),
        ("Chain: [{Command: cat, Image: a b}]".into(), "p.yaml:1:", "link \"cat\": \"a b\" is no image"),
        (module("api: rest"), "p.yaml:5:", "allowed: none, sidecar"),
        (module("urls: public"), "p.yaml:5:", "allowed: none, ion, signed"),
        (module("env: {HANDLER_BASE_DIR: /var/ion}"), "p.yaml:5:", "directly below /"),
        (module("env: {HANDLER_BASE_DIR: /usr}"), "p.yaml:5:", "hide the machine's own folder"),
        (module("gather: y"), "p.yaml:3:", "exclude each other"),
        (module("retries: many"), "p.yaml:5:", "\"retries\" has to be a number from 0 to 1000, as in retries: 3"),
        (module("retries: 1001"), "p.yaml:5:", "0 to 1000 are allowed"),
        (module("run: [ls]"), "p.yaml:5:", "\"run\" is set here a second time"),
        (module("emits: y"), "p.yaml:5:", "\"emits\" has to be a list of event types, as in emits: [thumbnail]"),
        (module("env: {A: }"), "p.yaml:5:", "\"A\" of \"env\" has to be a text, as in env: {A: \"1\"}"),
        (module("commit: sometimes"), "p.yaml:5:", "\"commit\" has to be on-close or on-success"),
        (module("stdio: maybe"), "p.yaml:5:", "\"stdio\" has to be true or false"),
        (module("concurrency: many"), "p.yaml:5:", "from 1 to 10000, as in concurrency: 4"),
        (module("limits: 3"), "p.yaml:5:", "\"limits\" has to be a map"),
        (module("emits: [[y]]"), "p.yaml:5:", "\"emits\" has to be a list of event types"),
        ("modules: {a: {on: x, run: [cat]}}".into(), "p.yaml:1:19:", "\"on\" has to be a list of event types, as in on: [new_picture]"),
        ("modules: {a: {on: [x], run: ./tool}}".into(), "p.yaml:1:29:", "\"run\" has to be a list of the program and its arguments"),
        ("modules: {a: [cat]}".into(), "p.yaml:1:14:", "module \"a\" has to be a map"),
        ("modules: [cat]".into(), "p.yaml:1:10:", "\"modules\" has to be a map from names to modules"),
        ("name: x\nmodule: {}".into(), "p.yaml:2:1:", "did you mean \"modules\"?"),
        ("hello".into(), "p.yaml:1:1:", "a pipeline file is a map, as in modules:"),
        (module("") + "---\nmodules: {}\n", "p.yaml:7:", "a second document begins here"),
        ("modules:\n\ta: {}\n".into(), "p.yaml:2:", "a tab cannot indent"),
        ("plane: {blobs: [x]}".into(), "p.yaml:1:16:", "\"blobs\" has to be a URL"),
        ("Chain: [{Command: [cat]}]".into(), "p.yaml:1:", "\"Command\" has to be a text, as in Command: sort"),
        (module("emits: [a b]"), "p.yaml:5:", "cannot be an event type"),
        ("modules:\n  a:\n    on: [x]\n".into(), "p.yaml:", "\"run\" is missing"),
        ("modules:\n  a:\n    run: [cat]\n".into(), "p.yaml:", "\"on\" is missing"),
        ("modules:\n  a:\n    gather: y\n    per: x\n    run: [cat]\n".into(), "p.yaml:3:", "no module emits"),
        (
            "modules:\n  a:\n    gather: y\n    per: x\n    emits: [z]\n    run: [cat]\n  b: {on: [z], emits: [y], run: [cat]}\n".into(),
            "p.yaml:3:",
            "which it waits for",
        ),
        ("modules: {}".into(), "p.yaml:1:", "empty"),
        (module("stdio: true"), "p.yaml:", "one type in \"emits\""),
        (module("warm: 3"), "p.yaml:5:", "belongs to \"stdio: true\""),
        ("Chain:\n  - Image: x\n".into(), "p.yaml:2:", "no \"Command\""),
        ("Chain: []".into(), "p.yaml:1:", "\"Chain\" is empty"),
        ("Chain:\n  - Command: cat\n    Argument: x\n".into(), "p.yaml:3:", "did you mean \"Arguments\"?"),
        ("warm: 99\nChain: [{Command: cat}]".into(), "p.yaml:1:", "at most 64"),
        ("output: much\nChain: [{Command: cat}]".into(), "p.yaml:1:", "bytes as in"),
        ("name: a b\nChain: [{Command: cat}]".into(), "p.yaml:2:", "is the chain's"),
        ("timeout: 1s\nmodules: {a: {on: [x], run: [cat]}}".into(), "p.yaml:1:", "belongs beside \"Chain\""),
        ("Chain: [{Command: cat}]\nmodules: {a: {on: [x], run: [cat]}}".into(), "p.yaml:2:", "exclude each other"),
        ("modules: {a: {on: [x], emits: [ion.dead], run: [cat]}}".into(), "p.yaml:1:", "are Ion's own"),
        ("modules: {a: {params: {}, run: [cat]}}".into(), "p.yaml:1:", "commit: on-success"),
        ("modules: {a: {params: {u: {type: url, default: x}}, commit: on-success, run: [cat]}}".into(), "p.yaml:1:", "its default is \"x\""),
        (String::new(), "p.yaml:1:", ""),
    ];
    for (text, place, words) in cases {
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(words), "{text}\n=> {error}");
    }
}

#[test]
fn the_manual_has_every_key_and_its_example_is_right() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pipeline.md");
    let page = std::fs::read_to_string(page).unwrap();
    let example = page.split("```yaml").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(parse(example).unwrap().modules.len(), 2);
    let error = parse("modules: {a: {nothing: 1}}").unwrap_err();
    let (_, keys) = error.split_once("allowed: ").unwrap();
    for key in keys.split(", ") {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn what_anchors_hold_may_stand_aside() {
    let text = "x-terms: &terms {retries: 7, timeout: 3m}\nx-types: &types [x, y]\nmodules:\n  a: {<<: *terms, on: *types, run: [cat]}\n";
    let module = parse(text).unwrap().modules.remove(0);
    assert_eq!((module.retries, module.timeout), (7, Duration::from_secs(180)));
    assert_eq!(module.on, ["x", "y"]);
    // In a module, such a key would be taken for a field of the module.
    let error = parse("modules: {a: {x-on: 1, on: [x], run: [cat]}}").unwrap_err();
    assert!(error.contains("unknown field \"x-on\""), "{error}");
}

#[test]
fn a_program_that_cannot_run_is_found_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pipeline.yaml");
    std::fs::write(&file, "modules:\n  a:\n    on: [x]\n    run: [./tool.sh]\n").unwrap();
    let error = |path: &str| error_chain(&Pipeline::load(&file, path).unwrap_err());
    assert!(
        error("/bin").contains(":4:") && error("/bin").contains("is not there"),
        "{}",
        error("/bin")
    );
    std::fs::write(folder.path().join("tool.sh"), "#!/bin/sh\n").unwrap();
    assert!(error("/bin").contains("chmod +x"), "{}", error("/bin"));
    std::fs::write(&file, "modules:\n  a:\n    on: [x]\n    run: [tool.sh]\n").unwrap();
    assert!(error("/bin").contains("write ./tool.sh"), "{}", error("/bin"));
}

#[test]
fn limits_are_read_in_their_units_and_others_stay_the_daemons() {
    let pipeline = parse("modules:\n  a: {on: [x], run: [cat], limits: {staged-bytes: 2 GiB, open-files: 10, event-bytes: 100}}\n").unwrap();
    let limits = pipeline.modules[0].limits.apply_to(Limits::default());
    let expected =
        Limits { staged_bytes: 2 << 30, open_files: 10, event_bytes: 100, ..Limits::default() };
    assert_eq!(limits, expected);
}

proptest! {
    #[test]
    fn reading_survives_anything(text in "[a-z:\\[\\]{}\\- \n\"'&*#|>]{0,200}") {
        let _ = parse(&text);
    }
}
