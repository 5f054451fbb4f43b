//! The folder of a job, and runs of the program on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::search::Names;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ion-index");

/// A folder with `in/data`.
pub(crate) struct Job {
    folder: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Job {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("in/data")).unwrap();
        Self { folder }
    }

    /// Makes a job whose event has one file with these lines.
    pub(crate) fn with_lines(lines: impl IntoIterator<Item: ToString>) -> Self {
        let job = Self::new();
        let lines: Vec<_> = lines.into_iter().map(|line| line.to_string() + "\n").collect();
        job.write("in/data/items.ndjson", lines.concat());
        job
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes the template of a test, and returns the file.
    pub(crate) fn template(&self, names: &Names) -> String {
        let path = self.write(&format!("{}.json", names.prefix), names.template().to_string());
        path.to_str().unwrap().to_owned()
    }

    /// Returns a run that has not started: the source is `test`, and `arguments` come last.
    pub(crate) fn command(&self, url: &str, arguments: &[&str]) -> Command {
        let mut command = program();
        command.arg("--dir").arg(self.folder.path()).args(["--url", url, "--source", "test"]);
        command.args(arguments);
        command
    }

    pub(crate) fn spawn(&self, url: &str, arguments: &[&str]) -> Child {
        self.command(url, arguments).spawn().unwrap()
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, url: &str, arguments: &[&str]) -> Ended {
        self.command(url, arguments).output().unwrap().into()
    }

    /// Runs the program and returns its insights, which a run that succeeds leaves.
    #[track_caller]
    pub(crate) fn run_well(&self, url: &str, arguments: &[&str]) -> Value {
        let ended = self.run(url, arguments);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        self.json("out/insights.json")
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.path(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the lines of the file of rejected items.
    pub(crate) fn rejected(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out/data/rejected.ndjson")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the names of all files below `out`, drafts included.
    pub(crate) fn outputs(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, into);
                } else {
                    into.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut names = vec![];
        walk(&self.path("out"), &self.path("out"), &mut names);
        names.sort();
        names
    }
}

/// Returns the program without arguments, and without settings of the environment.
pub(crate) fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for name in ["ION_DIR", "ION_INDEX_URL", "ION_LOG", "http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
