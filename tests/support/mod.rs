//! Helpers that the suites share: a private home, the `ion` command, and waiting for a condition
//! with a deadline.
#![allow(dead_code, unreachable_pub, reason = "each suite uses a part of it")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests start programs, wait, and print why they failed"
)]

pub mod books;
pub mod browse;
pub mod cgroup;
pub mod chains;
pub mod cluster;
pub mod csi;
pub mod evenness;
pub mod http;
pub mod images;
pub mod mount;
pub mod servers;
pub mod trees;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ionfs::patience::Retry;
use serde_json::Value;

/// The deadline of every wait: long enough for a busy machine of two cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The deadline of a command that may wait for a whole pipeline.
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);

/// The `ion` program under test.
pub const ION: &str = env!("CARGO_BIN_EXE_ion");

/// A private folder with a home's state, removed on drop.
pub struct Home {
    folder: tempfile::TempDir,
    /// Further environment variables of the home's commands, above all those that name the stores.
    pub env: Vec<(String, String)>,
    /// The file that lists the processes of the cgroup in which long-running commands start.
    pub cgroup: Option<PathBuf>,
}

impl Home {
    pub fn new() -> Self {
        // Not on /tmp, which may be a tmpfs: the tests are about durable disks.
        let folder = tempfile::Builder::new()
            .prefix("ion-test-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        Self { folder, env: vec![], cgroup: None }
    }

    /// Returns a home as on another host: it shares the stores of this one, and nothing else.
    pub fn on_another_host(&self) -> Self {
        let stores = |name: &str, scheme: &str, file: &str| {
            (name.to_owned(), format!("{scheme}://{}", self.state().join(file).display()))
        };
        let mut other = Self::new();
        other.env = vec![
            stores("ION_BLOBS", "file", "blobs"),
            stores("ION_DOCUMENTS", "sqlite", "ion.db"),
            stores("ION_BUS", "sqlite", "ion.db"),
        ];
        other
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the folder of Ion's state.
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Returns the `ion` command with this state.
    pub fn ion(&self) -> Command {
        self.command(Path::new(ION))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("ION_HOME", self.state())
            .env_remove("ION_LOG")
            .envs(self.env.iter().cloned())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `ion` with these arguments, and kills it at [`COMMAND_DEADLINE`].
    pub fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> CommandOutput {
        self.run_with(&[], words)
    }

    /// Runs `ion` like [`Home::run`], with further environment variables.
    pub fn run_with<S: AsRef<std::ffi::OsStr>>(
        &self,
        env: &[(&str, &str)],
        words: impl IntoIterator<Item = S>,
    ) -> CommandOutput {
        let mut command = self.ion();
        command.envs(env.iter().copied());
        let child =
            command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let (done, ended) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if ended.recv_timeout(COMMAND_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                signal(pid, "KILL");
            }
        });
        let ran = CommandOutput::of(child.wait_with_output().unwrap());
        drop(done);
        watch.join().unwrap();
        ran
    }

    /// Runs a shell script as a job of a module that may publish anything.
    pub fn script(&self, script: &str) -> CommandOutput {
        self.script_in("sh", script)
    }

    pub fn script_in(&self, shell: &str, script: &str) -> CommandOutput {
        self.run(["--json", "run", "--", shell, "-c", script])
    }

    /// Writes a file below the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Writes an executable script.
    pub fn program(&self, name: &str, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(name, script);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts `ion up` and waits until it is ready.
    pub fn up(&self, pipeline: &Path) -> RunningCommand {
        self.up_with(&[], pipeline)
    }

    /// Starts `ion up` with flags and waits until it is ready.
    pub fn up_with(&self, flags: &[&str], pipeline: &Path) -> RunningCommand {
        self.start("up", &[&[pipeline.to_str().unwrap()], flags].concat())
    }

    /// Starts a long-running `ion` command and waits until it says that it is ready.
    pub fn start(&self, command: &str, words: &[&str]) -> RunningCommand {
        let words: Vec<String> =
            [&[command], words].concat().iter().map(|&word| word.to_owned()).collect();
        self.start_program(Path::new(ION), command, &words)
    }

    /// Starts a program that becomes an `ion` command, and waits until it is ready.
    pub fn start_program(&self, program: &Path, command: &str, words: &[String]) -> RunningCommand {
        let log = self.path().join(format!("{command}-{}.log", std::process::id()));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let from = file.metadata().unwrap().len() as usize;
        let mut starter = match &self.cgroup {
            None => self.command(program),
            // A shell enters the group and becomes the program.
            Some(processes) => {
                let mut shell = self.command(Path::new("sh"));
                shell
                    .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
                    .args([processes.as_path(), program]);
                shell
            }
        };
        let child =
            starter.args(words).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut up = RunningCommand { child, log: log.clone() };
        wait_for(&format!("ion {command} to be ready"), || {
            let ended = up.child.try_wait().unwrap();
            assert!(ended.is_none(), "ion {command} ended: {}", up.log());
            up.log()[from..].contains("ready")
        });
        up
    }

    /// Returns the output of a long-running command.
    pub fn log_of(&self, command: &str) -> String {
        let log = self.path().join(format!("{command}-{}.log", std::process::id()));
        std::fs::read_to_string(log).unwrap()
    }

    /// Changes the plane's database by lines of Python, in which `c` is a connection to it.
    pub fn change_database(&self, lines: &str) {
        let connect = "import sqlite3\nc = sqlite3.connect('state/ion.db')\n";
        let program = format!("{connect}{lines}\nc.commit()\n");
        let mut python = Command::new("python3");
        let changed = python.args(["-c", &program]).current_dir(self.path()).status().unwrap();
        assert!(changed.success(), "{lines}");
    }

    /// Returns a document of the plane's database.
    pub fn document(&self, table: &str, id: &str) -> Value {
        let select = format!("SELECT document FROM {table} WHERE id = '{id}'");
        let program = "import sqlite3, sys\n\
                       c = sqlite3.connect('state/ion.db')\n\
                       print(c.execute(sys.argv[1]).fetchone()[0])";
        let mut python = Command::new("python3");
        let ran = python.args(["-c", program, &select]).current_dir(self.path()).output().unwrap();
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    /// Returns all jobs, as documents.
    pub fn jobs(&self) -> Vec<Value> {
        self.run(["--json", "job", "list", "--limit", "1000000"]).documents()
    }

    /// Returns the events of the latest correlation, as documents.
    pub fn trace(&self) -> Vec<Value> {
        self.run(["--json", "trace"]).documents()
    }
}

/// The output and the exit code of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    #[track_caller]
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn failed(self) -> Self {
        assert_eq!(self.code, Some(1), "{self:#?}");
        self
    }

    /// Returns the documents that a list printed, one in each line.
    #[track_caller]
    pub fn documents(&self) -> Vec<Value> {
        let read =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        self.stdout.lines().map(read).collect()
    }

    /// Returns the types of the printed events, sorted.
    #[track_caller]
    pub fn types(&self) -> Vec<String> {
        let mut types: Vec<String> =
            self.documents().iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect();
        types.sort();
        types
    }
}

/// A running `ion` command, such as `ion up`.
pub struct RunningCommand {
    child: Child,
    log: PathBuf,
}

impl RunningCommand {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, and returns the exit code.
    pub fn stop(mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        let code = self.child.wait().unwrap().code();
        std::mem::forget(self);
        code
    }

    /// Waits until the command ends by itself. Returns its exit code, or none if a signal killed
    /// it.
    pub fn wait(mut self) -> Option<i32> {
        let mut code = None;
        wait_for("the daemon to end", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let code = code.and_then(|status| status.code());
        std::mem::forget(self);
        code
    }

    /// Sends SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::forget(self);
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the output of the ion command\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
}

/// Returns the descendants of the process `pid`, with their names.
pub fn below(pid: u32) -> Vec<(u32, String)> {
    let mut found = vec![];
    let mut parents = HashSet::from([pid]);
    // A child usually has a larger pid than its parent, except after a wrap-around, so rounds are
    // repeated until nothing is new.
    loop {
        let before = found.len();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
            let parent: u32 = rest.split(' ').nth(1).unwrap().parse().unwrap();
            if parents.contains(&parent) && parents.insert(child) {
                found.push((child, name.split_once('(').unwrap().1.to_owned()));
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_up_to(DEADLINE, what, condition);
}

/// Returns the path of a real clip that scripts/setup-examples.sh downloaded.
pub fn example_clip() -> String {
    let cache = std::env::var("ION_EXAMPLES")
        .unwrap_or_else(|_| format!("{}/.cache/ion-examples", std::env::var("HOME").unwrap()));
    format!("{cache}/clips/bikes.mp4")
}

/// Waits until `condition` holds, with this deadline.
#[track_caller]
pub fn wait_up_to(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let holds = Retry::during(deadline)
        .waiting(Duration::from_millis(20))
        .run_blocking(|_| condition().then_some(()).ok_or(()), |_| true);
    assert!(holds.is_ok(), "waited for {what} in vain");
}

/// Runs the test `name` of this binary again, with further environment variables or through another
/// program. It must pass there.
#[track_caller]
pub fn passes_again(through: &[&str], name: &str, env: &[(String, String)]) {
    let binary = std::env::current_exe().unwrap();
    let mut command = match through {
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(binary);
            command
        }
        [] => Command::new(binary),
    };
    command.args([name, "--nocapture"]).envs(env.iter().cloned());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{name}, run again: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    assert!(text(&output.stdout).contains("ok. 1 passed"), "one test has the name {name:?}");
}

/// Returns whether this process may mount. If not, runs the test `name` of this binary as the root
/// of a new user namespace, where it may mount and must pass.
#[track_caller]
pub fn may_mount_or_runs_where_it_may(name: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    passes_again(&["unshare", "-Urm", "--"], name, &[]);
    false
}

/// Returns the path of the library that shows programs another time.
pub fn faketime() -> String {
    let library = Path::new("/usr/lib")
        .join(format!("{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH));
    assert!(
        library.exists(),
        "{} is missing; scripts/setup-tests.sh installs it",
        library.display()
    );
    library.display().to_string()
}
