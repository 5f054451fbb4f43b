//! Tests images from registries: the login that is used, how often the registry is asked, and that
//! the client ends with the daemon that started it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;

use serde_json::json;

use super::{base64, pipeline, processes, run, run_with};
use crate::support::images::{Entry, Image};
use crate::support::servers::Registry;
use crate::support::{Home, wait_for};

/// Copies the layout `image` of a home into a registry. Returns the image's full name.
fn push(home: &Home, registry: &Registry, name: &str) -> String {
    let (user, password) = Registry::USER;
    let image = format!("{}/{name}", registry.name);
    let copied = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-creds",
            &format!("{user}:{password}"),
        ])
        .args(["oci:image", &format!("docker://{image}")])
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    image
}

/// Writes a file of logins, and one that says that the registry has no TLS. Returns their paths.
fn settings(home: &Home, registry: &Registry) -> (String, String) {
    let (user, password) = Registry::USER;
    let auths = json!({"auths": {&registry.name: {"auth": base64(&format!("{user}:{password}"))}}});
    let insecure = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.name);
    let path = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    (
        path(home.write("logins.json", auths.to_string())),
        path(home.write("registries.conf", insecure)),
    )
}

/// skopeo receives the environment variables that name logins, proxies and registries. Modules do
/// not.
#[test]
fn the_client_of_registries_finds_logins_proxies_and_registries_as_podman_does() {
    let mut home = Home::new();
    let registry = Registry::start();
    Image::of("env; exit 0").write(&home, "image");
    let image = push(&home, &registry, "tools/module:1");
    let (logins, registries) = settings(&home, &registry);
    let user = home.path().join("user");
    fs::create_dir_all(user.join("containers")).unwrap();
    fs::copy(&logins, user.join("containers/auth.json")).unwrap();
    let user = user.to_str().unwrap().to_owned();
    let own = home.env.clone();
    for env in [
        [("REGISTRY_AUTH_FILE", &logins), ("CONTAINERS_REGISTRIES_CONF", &registries)],
        [("XDG_RUNTIME_DIR", &user), ("REGISTRIES_CONFIG_PATH", &registries)],
    ] {
        home.env = own.clone();
        home.env.push(("HOME".into(), "/nonexistent".into()));
        home.env.extend(env.map(|(key, value)| (key.to_owned(), value.clone())));
        pipeline(&home, &format!("  m: {{on: [x], image: '{image}'}}\n"));
        let ran = run(&home, "m").well();
        for (key, _) in env {
            assert!(
                ran.stderr.contains("ION_MODULE") && !ran.stderr.contains(key),
                "the module sees its own variables and not {key}: {ran:#?}"
            );
        }
        home.run(["gc", "--older-than", "0s"]).well();
    }
    for key in ["HTTPS_PROXY", "https_proxy"] {
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = format!("http://{}", proxy.local_addr().unwrap());
        home.env = [own.clone(), vec![(key.to_owned(), at)]].concat();
        pipeline(&home, "  m: {on: [x], image: 'registry.invalid/tools/module:1'}\n");
        let asked = std::thread::spawn(move || {
            let mut asked = String::new();
            // skopeo may connect more than once before it asks for a tunnel.
            for _ in 0..3 {
                let (mut client, _) = proxy.accept().unwrap();
                let mut bytes = [0; 1000];
                let length = client.read(&mut bytes).unwrap();
                asked.push_str(&String::from_utf8_lossy(&bytes[..length]));
                client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
                if asked.contains("CONNECT") {
                    break;
                }
            }
            asked
        });
        let ran = run(&home, "m").failed();
        assert!(
            ran.stderr.contains("cannot be fetched: skopeo: ") && ran.stderr.contains("Forbidden"),
            "{ran:#?}"
        );
        assert!(asked.join().unwrap().contains("CONNECT registry.invalid:443"), "{key}");
        // skopeo does not use the proxy for a registry in `no_proxy`.
        home.env.push(("no_proxy".into(), "registry.invalid".into()));
        let ran = run(&home, "m").failed();
        assert!(!ran.stderr.contains("Forbidden"), "{ran:#?}");
    }
}

/// `ion up` with eight jobs and three processes of `ion run` share one fetch.
#[test]
fn jobs_of_several_processes_that_need_a_new_image_at_once_fetch_it_once() {
    let mut home = Home::new();
    let registry = Registry::start();
    let large: Vec<u8> =
        (0..4_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::of("exit 0").with(&[Entry::File("large", &large)]).write(&home, "image");
    let image = push(&home, &registry, "tools/module:1");
    let (logins, registries) = settings(&home, &registry);
    home.env.push(("REGISTRY_AUTH_FILE".into(), logins));
    home.env.push(("CONTAINERS_REGISTRIES_CONF".into(), registries));
    let file = pipeline(
        &home,
        &(0..8).map(|n| format!("  m{n}: {{on: [x], image: '{image}'}}\n")).collect::<String>(),
    );
    home.write("f", "content\n");
    let up = home.up(&file);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| run_with(&home, "m0").well())).collect();
        home.run(["event", "create", "x"]).well();
        runs.into_iter().for_each(|run| drop(run.join().unwrap()));
    });
    wait_for("all jobs to succeed", || {
        home.jobs().iter().filter(|job| job["state"] == "succeeded").count() >= 8
    });
    assert_eq!(up.stop(), Some(0));
    let blobs = registry.requests("GET /v2/tools/module/blobs/");
    let mut once = blobs.clone();
    once.sort();
    once.dedup();
    assert_eq!((blobs.len(), once.len()), (3, 3), "two layers and the configuration: {blobs:#?}");
}

/// The registry never answers.
#[test]
fn a_killed_dispatcher_takes_the_client_of_registries_with_it_and_jobs_say_what_they_wait_for() {
    let mut home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/tools/module:1", silent.local_addr().unwrap());
    home.env.push(("REGISTRY_AUTH_FILE".into(), "/nonexistent/logins.json".into()));
    home.env.push(("AWS_SECRET_ACCESS_KEY".into(), "a-secret-of-tests-only".into()));
    let module = |name: &str| format!("  {name}: {{on: [x], image: '{image}', timeout: 3s}}\n");
    let up = home.up(&pipeline(&home, &[module("a"), module("b")].concat()));
    home.run(["event", "create", "x"]).well();
    let word = format!("docker://{image}");
    wait_for("the client to ask", || processes(&word).len() == 1);
    let environment = fs::read(format!("/proc/{}/environ", processes(&word)[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(
        environment.contains("/nonexistent/logins.json") && !environment.contains("a-secret"),
        "{environment}"
    );
    let logs = || -> Vec<String> {
        let all = home.jobs();
        let logs = all
            .iter()
            .filter_map(|job| Some(home.run(["job", "logs", job["id"].as_str()?]).stdout));
        logs.collect()
    };
    let one_says = |words: &str| logs().iter().filter(|log| log.contains(words)).count() == 1;
    wait_for("one job to fetch the image", || one_says(&format!("ion: fetches image {image}\n")));
    wait_for("one job to wait", || {
        one_says(&format!("ion: waits for image {image}, which is being fetched for another job\n"))
    });
    up.kill();
    wait_for("the client to be gone", || processes(&word).is_empty());
}
