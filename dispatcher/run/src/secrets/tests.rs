use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use ion_jobs::pipeline::Pipeline;
use ion_model::source::SourceTick;
use ion_model::state::StateFiles;

use super::*;

/// A folder of secrets, with a home beside it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("home")).unwrap();
        fs::create_dir(place.path("secrets")).unwrap();
        place.chmod("secrets", 0o700);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, value: &str, mode: u32) {
        fs::write(self.path(name), value).unwrap();
        self.chmod(name, mode);
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn folders(&self) -> Result<SecretFolders, SecretError> {
        SecretFolders::new(Some(self.path("secrets")), None, &self.path("home"))
    }
}

fn named(name: &str) -> NeededSecret {
    NeededSecret::named(name)
}

#[test]
fn a_folder_that_others_may_enter_is_refused() {
    let place = Place::new();
    place.write("secrets/TOKEN", "very-secret\n", 0o600);
    let folders = place.folders().unwrap();
    assert_eq!(folders.find(&named("TOKEN")).unwrap().bytes(), b"very-secret\n");
    for mode in [0o750, 0o701, 0o755] {
        place.chmod("secrets", mode);
        let refused = place.folders().unwrap_err().to_string();
        assert!(refused.contains("chmod 700"), "{refused}");
        // It was closed when the process started.
        assert!(folders.find(&named("TOKEN")).is_err());
    }
    let nowhere = SecretFolders::new(Some(place.path("none")), None, &place.path("home"));
    assert!(nowhere.unwrap_err().to_string().contains("ION_SECRETS"));
    place.chmod("secrets", 0o700);
    let within = SecretFolders::new(Some(place.path("secrets")), None, place.0.path());
    assert!(within.unwrap_err().to_string().contains("outside of"));
}

#[test]
fn the_first_folder_that_has_a_secret_counts_and_one_of_the_operators_own_alone() {
    let place = Place::new();
    fs::create_dir(place.path("credentials")).unwrap();
    place.write("credentials/TOKEN", "of systemd", 0o440);
    let credentials = || Some(place.path("credentials"));
    let folders = SecretFolders::new(None, credentials(), &place.path("home")).unwrap();
    assert_eq!(folders.find(&named("TOKEN")).unwrap().bytes(), b"of systemd");
    let missing = folders.find(&named("NONE")).unwrap_err().to_string();
    let looked =
        format!("looked for {}/NONE and /run/secrets/NONE;", credentials().unwrap().display());
    assert!(missing.contains("\"NONE\"") && missing.contains(&looked), "{missing}");
    assert!(missing.contains("ION_SECRETS"), "{missing}");
    let own = Some(place.path("secrets"));
    let mut folders = SecretFolders::new(own, credentials(), &place.path("home")).unwrap();
    let missing = folders.find(&named("TOKEN")).unwrap_err().to_string();
    assert!(!missing.contains("credentials") && missing.contains("secrets/TOKEN"), "{missing}");
    folders.give("TOKEN", SecretValue::new(b"given".to_vec()));
    assert_eq!(folders.find(&named("TOKEN")).unwrap().bytes(), b"given");
    assert!(!format!("{folders:?}").contains("given\""));
}

#[test]
fn what_is_no_closed_file_of_bounded_length_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("secrets/folder")).unwrap();
    place.write("secrets/long", &"x".repeat(SECRET_BYTES_MAX as usize + 1), 0o600);
    place.write("open", "very-secret", 0o604);
    let folders = place.folders().unwrap();
    let refused = |needed: &NeededSecret| folders.find(needed).unwrap_err().to_string();
    assert!(refused(&named("folder")).contains("is no file"));
    assert!(refused(&named("long")).contains("more than 65536 bytes"));
    let file = |name: &str| NeededSecret {
        name: "token".into(),
        origin: SecretOrigin::File(place.path(name)),
    };
    let open = refused(&file("open"));
    assert!(open.contains("chmod o=") && !open.contains("very-secret"), "{open}");
    assert!(refused(&file("none")).contains("cannot be read"));
    // Its group may be the dispatcher's.
    place.chmod("open", 0o640);
    assert_eq!(folders.find(&file("open")).unwrap().bytes(), b"very-secret");
}

#[test]
fn a_job_has_the_secrets_of_its_module_and_of_its_source() {
    let text = "modules:
  m: {params: {url: , token: {type: secret}, other: {type: secret}}, secrets: [SLACK], commit: on-success, run: [cat]}
";
    let pipeline = Pipeline::from_bytes(text.as_bytes(), "p", Path::new("/")).unwrap();
    let module = &pipeline.modules[0];
    let place = Place::new();
    place.write("secrets/SLACK", "one", 0o600);
    place.write("secrets/X_TOKEN", "two", 0o600);
    let mut folders = place.folders().unwrap();
    let mut event: Event = serde_json::from_value(serde_json::json!({
        "id": "e", "type": "t", "created": 0, "publication": "published",
        "context": {"name": "n", "eventId": "e", "correlationId": "c", "parentEventId": "",
                    "documentType": "eventMeta"},
    }))
    .unwrap();
    let values = |secrets: &Secrets| {
        let one = |(name, value): &(String, SecretValue)| {
            (name.clone(), String::from_utf8(value.bytes().to_vec()).unwrap())
        };
        secrets.iter().map(one).collect::<Vec<_>>()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(values(&folders.read(module, &event).unwrap()), [pair("SLACK", "one")]);
    // Of a parameter that is none any more, nothing is read.
    let secrets = [("token", "X_TOKEN"), ("gone", "X_TOKEN")];
    event.tick = Some(Box::new(SourceTick {
        source: "s".into(),
        scheduled: 0,
        state: StateFiles::default(),
        secrets: secrets.map(|(name, at)| (name.to_owned(), at.parse().unwrap())).into(),
    }));
    let read = folders.read(module, &event).unwrap();
    assert_eq!(values(&read), [pair("SLACK", "one"), pair("token", "two")]);
    assert!(!format!("{read:?}").contains("two"));
    place.write("secrets/X_TOKEN", "three", 0o600);
    assert_eq!(values(&folders.read(module, &event).unwrap())[1], pair("token", "three"));
    event.tick = None;
    folders.give("other", SecretValue::new(b"four".to_vec()));
    assert_eq!(values(&folders.read(module, &event).unwrap())[1], pair("other", "four"));
    fs::remove_file(place.path("secrets/SLACK")).unwrap();
    let missing = folders.read(module, &event).unwrap_err().to_string();
    assert!(missing.contains("\"SLACK\""), "{missing}");
    assert_eq!(values(&folders.read_present(module, &event)), [pair("other", "four")]);
}
