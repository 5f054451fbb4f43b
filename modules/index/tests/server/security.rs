//! Credentials and certificates.

use std::fs;
use std::process::Command;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::job::Job;
use crate::proxy::{Fault, Proxy};
use crate::search::Names;

/// `user:s3cret-password` in base64.
const BASIC: &str = "dXNlcjpzM2NyZXQtcGFzc3dvcmQ=";

/// A proxy that asks for a user and a password.
fn guarded() -> Proxy {
    Proxy::start(|seen| match seen.header("authorization") {
        Some(value) if value == format!("Basic {BASIC}") || value == "ApiKey aWQ6a2V5" => {
            Fault::None
        }
        _ => Fault::Answer(401, vec![], json!({"error": "who are you?"})),
    })
}

#[test]
fn credentials_come_from_files_and_are_in_no_output() {
    let names = Names::new();
    let proxy = guarded();
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    for (name, text) in [
        ("user", "user"),
        ("password", "s3cret-password\n"),
        ("wrong", "s3cret-wrong"),
        ("key", "id:key"),
    ] {
        job.write(&format!("secrets/{name}"), text);
    }
    let (secrets, template) = (job.path("secrets"), job.template(&names));
    let run = |credentials: &[&str]| {
        let mut command = job.command(&proxy.url, &["--index", &names.prefix]);
        command.args(["--template", &template, "--secrets", secrets.to_str().unwrap()]);
        let output = command.args(credentials).env("ION_LOG", "trace").output().unwrap();
        let ended = crate::job::Ended::from(output);
        // Also with every line of every library in the log.
        assert!(ended.stderr.contains("TRACE") || ended.status != Some(0), "{ended:?}");
        for secret in ["s3cret", BASIC, "aWQ6a2V5", "id:key"] {
            let outputs = [&ended.stdout, &ended.stderr];
            assert!(!outputs.iter().any(|text| text.contains(secret)), "{secret} is in {ended:?}");
        }
        ended
    };
    let password = ["--user-from", "user", "--password-from", "password"];
    assert_eq!(run(&password).status, Some(0));
    assert_eq!(run(&["--api-key-from", "key"]).status, Some(0));
    let wrong = run(&["--user-from", "user", "--password-from", "wrong"]);
    assert_eq!(wrong.status, Some(1));
    assert!(wrong.stderr.contains("status 401, who are you?"), "{}", wrong.stderr);
    let none = run(&[]);
    assert!(none.stderr.contains("does not accept these credentials"), "{}", none.stderr);
    // Somebody gives the password itself, in place of the name of its file.
    let mistaken = run(&["--user-from", "user", "--password-from", "s3cret-password"]);
    assert!(mistaken.stderr.contains("--password-from names no readable file"), "{mistaken:?}");
    assert_eq!(names.documents().len(), 1);
}

/// Makes a certificate with its key. It signs itself, or the `authority` signs it for 127.0.0.1.
fn certificate(job: &Job, name: &str, authority: Option<&[String; 2]>) -> [String; 2] {
    let paths = [format!("{name}.pem"), format!("{name}.key")]
        .map(|file| job.path(&file).to_str().unwrap().to_owned());
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", &format!("/CN={name}")])
        .args(["-out", &paths[0], "-keyout", &paths[1]]);
    if let Some([certificate, key]) = authority {
        openssl.args(["-CA", certificate, "-CAkey", key]);
        openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    paths
}

#[test]
fn only_a_certificate_of_the_named_authority_is_accepted() {
    let names = Names::new();
    let job = Job::with_lines([json!({"id": "a", "n": 1})]);
    let authority = certificate(&job, "authority", None);
    let [other_ca, _] = certificate(&job, "another", None);
    let [own, key] = certificate(&job, "search", Some(&authority));
    let [ca, _] = authority;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = vec![CertificateDer::from_pem_file(&own).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&key).unwrap();
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let proxy = Proxy::start_tls(config);
    assert!(proxy.url.starts_with("https://"));
    for arguments in [&[] as &[&str], &["--ca", &other_ca]] {
        let ended = job.run(&proxy.url, &[&["--index", &names.prefix], arguments].concat());
        // A certificate does not become better by asking again.
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("invalid peer certificate"), "{}", ended.stderr);
        assert!(ended.stderr.contains("with --ca FILE"), "{}", ended.stderr);
        assert!(ended.stderr.contains("after 1 tries"), "{}", ended.stderr);
    }
    assert_eq!(proxy.seen().len(), 0);
    job.run_well(&proxy.url, &["--index", &names.prefix, "--ca", &ca]);
    assert_eq!(names.documents().len(), 1);
}

#[test]
fn a_password_on_the_command_line_is_refused_and_not_repeated() {
    let job = Job::with_lines([json!({"id": "a"})]);
    let ended = job.run("http://user:s3cret-password@127.0.0.1:9", &["--index", "a"]);
    assert_eq!(ended.status, Some(2));
    assert!(ended.stderr.contains("--password-from"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("s3cret"), "{}", ended.stderr);
    assert!(!fs::exists(job.path("out")).unwrap());
}

#[test]
fn a_redirection_is_not_followed() {
    let elsewhere = Proxy::start(|_| Fault::None);
    let location = format!("{}/_bulk", elsewhere.url);
    let proxy = Proxy::start(move |_| {
        Fault::Answer(307, vec![("location", location.clone())], json!({"error": "moved"}))
    });
    let job = Job::with_lines([json!({"id": "a"})]);
    let ended = job.run(&proxy.url, &["--index", "a"]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stderr.contains("give --url its real address"), "{}", ended.stderr);
    assert_eq!((proxy.seen().len(), elsewhere.seen().len()), (1, 0));
}
