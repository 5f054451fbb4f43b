//! A folder of its own for one test, and the program in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A folder in which the program runs.
pub(crate) struct Folder {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) said: String,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("in/meta")).unwrap();
        Self { dir, env: Vec::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn set_env(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// Runs a subcommand that may ask this machine, and returns how it ended.
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> Ended {
        self.run_strictly(command, &[&["--allow-private"], arguments].concat())
    }

    /// Runs a subcommand as its users do.
    pub(crate) fn run_strictly(&self, command: &str, arguments: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_ion-fetch"))
            .arg(command)
            .arg("--dir")
            .arg(self.path())
            .args(arguments)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        Ended { code: output.status.code().unwrap(), said }
    }

    /// Runs a subcommand that must succeed, and keeps its state for the next run.
    pub(crate) fn succeed(&self, command: &str, arguments: &[&str]) -> String {
        let ended = self.run(command, &[&["--keep-state"], arguments].concat());
        assert_eq!(ended.code, 0, "{}", ended.said);
        ended.said
    }

    /// Runs a subcommand that must fail, and returns what it said.
    pub(crate) fn fail(&self, command: &str, arguments: &[&str]) -> String {
        let ended = self.run(command, arguments);
        assert_eq!(ended.code, 1, "{}", ended.said);
        assert!(self.take_events().is_empty());
        ended.said
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path().join(path)).ok()
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path).unwrap()).unwrap()
    }

    /// Returns the events by their names, and removes them, as a reader does.
    pub(crate) fn take_events(&self) -> BTreeMap<String, Value> {
        let Ok(entries) = fs::read_dir(self.path().join("out/events")) else {
            return BTreeMap::new();
        };
        let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let mut events = BTreeMap::new();
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            events.insert(name, serde_json::from_str(&text).unwrap());
            fs::remove_file(path).unwrap();
        }
        events
    }

    /// Returns the titles of the events, sorted, and removes them.
    pub(crate) fn take_titles(&self) -> Vec<String> {
        let title = |event: &Value| event["title"].as_str().unwrap().to_owned();
        let mut titles: Vec<String> = self.take_events().values().map(title).collect();
        titles.sort();
        titles
    }
}
