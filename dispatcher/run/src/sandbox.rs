//! A job's processes: in namespaces of their own, with the tree at `/ion` there and nowhere else.
//!
//! # How it works
//! The daemon starts its own program once as a fork server: a process of one thread that forks a
//! `job-init` for each job, which costs a third of starting a program as large as this one.
//! `job-init` is the first process of the job's namespaces. It mounts a FUSE device in them and
//! sends the device over a socket; the daemon serves the device and sends `Go`, and `job-init`
//! starts the module. When the module ends, `job-init` kills every process that the module left
//! behind. The socket is also the leash: if the daemon dies, for whatever reason, `job-init` sees
//! the socket close and ends everything, and the mount goes with the namespace.
//!
//! # What it never does
//! Put anything of the module's environment or a secret on a command line; leave a mount or a process behind;
//! let a module see the daemon's processes, its state or its stores.

mod bounds;
mod cover;
mod error;
mod init;
mod rights;
mod root;
mod secrets;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ion_model::limits::bytes_in_words;
use ion_model::usage::AttemptUsage;
use ion_system::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::{Child, Command as TokioCommand};

pub(super) use self::bounds::{Cgroup, CgroupLimits, CgroupSetting};
pub use self::cover::{Cover, Covers};
pub use self::error::SandboxError;
pub use self::init::run_fork_server;
pub use self::rights::Rights;
pub(super) use self::root::{MASKED, READ_ONLY};
pub use self::secrets::SandboxSecrets;
pub(crate) use self::secrets::SecretFile;

/// The argument that makes the `ion` program run as the fork server of its `job-init`s.
pub const INIT_WORD: &str = "job-init";

/// How long starting a job may take: namespaces, mount and exec take milliseconds; more means that
/// the machine is stuck.
const START_WAIT: Duration = Duration::from_secs(20);

/// The most bytes of one message on the socket: a module's environment and arguments fit well.
const MESSAGE_MAX: usize = 160 << 10;

/// The most descriptors of one message: a socket, a program's three streams, and its secrets.
const DESCRIPTORS_MAX: usize = 5;

/// Where a container's bundle lies, visible in its sandbox alone.
pub(super) const BUNDLE: &str = "/.container";

/// Where a container's secrets lie beside its bundle: the runtime binds them into its root.
pub(super) const CONTAINER_SECRETS: &str = "/.container/secrets";

/// The root of the container's files in the bundle.
pub(super) const ROOTFS: &str = "/.container/rootfs";

/// How a job is separated from the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxMode {
    /// Mount and PID namespaces, made by root.
    Root,
    /// The same inside a user namespace, made by an ordinary user.
    User,
    /// No namespaces: the daemon mounts the tree in a folder, and `ION_DIR` says where.
    Plain,
}

/// The program of a sandbox, and how to run it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxCommand {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working folder.
    pub cwd: PathBuf,
    /// Where the module sees the tree: `/ion`; unused in [`SandboxMode::Plain`]. None: it has no
    /// tree, and starts without [`Sandbox::start_module`].
    pub mount_at: Option<PathBuf>,
    /// How it is separated from the machine.
    pub mode: SandboxMode,
    /// What it keeps of the daemon's rights.
    pub rights: Rights,
    /// The places of this machine that it must not see.
    pub covers: Vec<Cover>,
    /// The most processes and threads it may have, where the kernel can limit this job alone.
    pub processes: u64,
    /// The limit of open descriptors that the module begins with: the daemon's own limit before it
    /// raised it.
    pub open_files: Option<u64>,
    /// The secrets that it finds in `/run/secrets`; none in [`SandboxMode::Plain`].
    pub secrets: SandboxSecrets,
    /// A container to run instead of the program; `argv`, `env` and `cwd` are unused then.
    pub container: Option<Box<SandboxContainer>>,
}

/// A container that a runtime makes inside the sandbox's namespaces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxContainer {
    /// The runtime, which makes the container.
    pub(super) runtime: PathBuf,
    /// The bundle's `config.json`.
    pub(super) config: String,
    /// Other files of the bundle, each with its name.
    pub(super) files: Vec<(String, String)>,
    /// The files of its image.
    pub(super) rootfs: PathBuf,
    /// The user and group that it runs as on this machine: its streams become theirs, so that it
    /// may open them by name. None: the daemon's own.
    pub(super) owner: Option<(u32, u32)>,
    /// The signal that asks it to end.
    pub(super) signal: i32,
    /// Its control groups.
    pub(super) bounds: CgroupLimits,
    /// The lock of its image, held until the container has ended.
    #[serde(skip)]
    pub(super) image: Option<Arc<File>>,
}

/// How a module's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessExit {
    /// It ended by itself, with this status.
    Code(i32),
    /// A signal of this number killed it.
    Signal(i32),
    /// It was killed, because it needed more memory than this limit in bytes.
    OutOfMemory(u64),
}

/// Returns the reason of a job that needed more memory than its limit of `bytes`.
pub(crate) fn out_of_memory_words(bytes: u64) -> String {
    format!("out of memory: its limit is {}", bytes_in_words(bytes))
}

/// A message from the daemon. `Fork` goes to the fork server, with the socket for the other
/// messages and the module's streams.
#[derive(Debug, Serialize, Deserialize)]
enum InitOrder {
    Fork(SandboxCommand),
    Go,
    Terminate,
    Kill,
}

/// A message from `job-init` to the daemon. The first one carries a descriptor of its process;
/// `Mounted` carries the device, too.
#[derive(Debug, Serialize, Deserialize)]
enum InitReport {
    Mounted,
    Ready,
    Started,
    Failed(String),
    CannotRun(String),
    Exited { exit: ProcessExit, usage: Option<ProcessUsage> },
}

/// What a job's processes used, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessUsage {
    /// Their processor time, in microseconds.
    pub(crate) cpu_micros: u64,
    /// Their most memory, in bytes, as [`AttemptUsage::peak_bytes`] counts it.
    pub(crate) peak_bytes: u64,
}

impl ProcessUsage {
    /// Returns it as a part of an attempt's usage.
    pub(crate) fn to_attempt_usage(self) -> AttemptUsage {
        AttemptUsage {
            cpu_ms: Some((self.cpu_micros + 500) / 1000),
            peak_bytes: Some(self.peak_bytes),
            ..AttemptUsage::default()
        }
    }
}

/// A running job's processes. Dropping it kills them.
#[derive(Debug)]
pub struct Sandbox {
    socket: UnixDatagram,
    /// A pidfd of the `job-init`: unlike a pid, it can never name another process.
    init: OwnedFd,
    /// How the module ended, once `job-init` has reported it.
    exit: Option<ProcessExit>,
    /// What its processes used, if `job-init` has reported it.
    usage: Option<ProcessUsage>,
    /// Its `job-init` removes control groups at the end, and must live until then.
    tidies_up: bool,
    _image: Option<Arc<File>>,
}

/// The fork server of `job-init`s. It is started when the first one is needed, and again if it was
/// killed.
#[derive(Debug)]
pub struct ForkServer {
    program: PathBuf,
    running: Mutex<Option<ForkServerProcess>>,
}

#[derive(Debug)]
struct ForkServerProcess {
    requests: Arc<UnixDatagram>,
    _process: Child,
}

/// The result of [`spawn`]: the sandbox, the device to serve (none in [`SandboxMode::Plain`]), and
/// the module's output.
#[derive(Debug)]
pub struct SpawnedProcess {
    /// The processes, waiting for [`Sandbox::start_module`].
    pub sandbox: Sandbox,
    /// The FUSE device that is mounted for the module but not served yet.
    pub device: Option<OwnedFd>,
    /// The pipe of its stdout and stderr, in the order written.
    pub output: Receiver,
}

/// The result of [`spawn_piped`]: a running program, and its streams.
#[derive(Debug)]
pub struct PipedStreams {
    /// The processes.
    pub sandbox: Sandbox,
    /// The pipe to its stdin.
    pub stdin: Sender,
    /// The pipe of its stdout.
    pub stdout: Receiver,
    /// The pipe of its stderr.
    pub stderr: Receiver,
}

/// Forks a `job-init`, which prepares the namespaces; the module starts at
/// [`Sandbox::start_module`].
pub async fn spawn(
    server: &ForkServer,
    command: SandboxCommand,
) -> Result<SpawnedProcess, SandboxError> {
    let plain = command.mode == SandboxMode::Plain;
    let (output, output_end) = pipe()?;
    let forked = server.fork(command, &[output_end]).await?;
    let output = Receiver::from_owned_fd(output).map_err(SandboxError::Spawn)?;
    match forked {
        (sandbox, InitReport::Mounted, device @ Some(_)) => {
            Ok(SpawnedProcess { sandbox, device, output })
        }
        (sandbox, InitReport::Ready, None) if plain => {
            Ok(SpawnedProcess { sandbox, device: None, output })
        }
        _ => Err(SandboxError::Silent),
    }
}

/// Starts a program that has no tree, between three pipes.
pub async fn spawn_piped(
    server: &ForkServer,
    command: SandboxCommand,
) -> Result<PipedStreams, SandboxError> {
    let ((stdin_end, stdin), (stdout, stdout_end), (stderr, stderr_end)) =
        (pipe()?, pipe()?, pipe()?);
    let command = SandboxCommand { mount_at: None, ..command };
    let (sandbox, InitReport::Started, _) =
        server.fork(command, &[stdin_end, stdout_end, stderr_end]).await?
    else {
        return Err(SandboxError::Silent);
    };
    Ok(PipedStreams {
        sandbox,
        stdin: Sender::from_owned_fd(stdin).map_err(SandboxError::Spawn)?,
        stdout: Receiver::from_owned_fd(stdout).map_err(SandboxError::Spawn)?,
        stderr: Receiver::from_owned_fd(stderr).map_err(SandboxError::Spawn)?,
    })
}

/// Returns a pipe's read end and write end.
fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| SandboxError::Spawn(error.into()))
}

/// Returns the two ends of a socket pair. A packet socket keeps messages apart, so that a
/// descriptor cannot arrive with half of a message. The first end is the daemon's and never blocks.
fn socket_pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (daemon_end, init_end) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&daemon_end, true)?;
    // A packet socket takes the same calls as a datagram socket.
    Ok((UnixDatagram::from_std(daemon_end.into())?, init_end))
}

impl ForkServer {
    /// Returns a fork server that runs `program`, which is `ion`.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), running: Mutex::default() }
    }

    /// Forks a `job-init`. Returns its sandbox, its first report, and the device if it has mounted
    /// one. `streams` are the module's: one for all its output, or stdin, stdout and stderr.
    async fn fork(
        &self,
        command: SandboxCommand,
        streams: &[OwnedFd],
    ) -> Result<(Sandbox, InitReport, Option<OwnedFd>), SandboxError> {
        let tidies_up = command.container.is_some();
        let image = command.container.as_ref().and_then(|container| container.image.clone());
        let secrets = command.secrets.content.clone();
        let order = encode_order(&InitOrder::Fork(command))?;
        let (socket, init_end) = socket_pair().map_err(SandboxError::Spawn)?;
        let fork = async |requests: &UnixDatagram| {
            let secrets = secrets.as_deref();
            let all = iter::once(&init_end).chain(streams).chain(secrets);
            let descriptors: Vec<_> = all.map(OwnedFd::as_fd).collect();
            let sent =
                requests.async_io(Interest::WRITABLE, || send(requests, &order, &descriptors));
            tokio::time::timeout(START_WAIT, sent)
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        };
        let requests = self.start_if_needed().map_err(SandboxError::Spawn)?;
        if fork(&requests).await.is_err() {
            // The server was killed: start another one.
            self.forget_if_current(&requests);
            let requests = self.start_if_needed().map_err(SandboxError::Spawn)?;
            fork(&requests).await.map_err(SandboxError::Spawn)?;
        }
        // If it stayed open here, this process would never see the other end close.
        drop(init_end);
        let (report, descriptors) = receive_report_in_time(&socket).await?;
        let mut descriptors = descriptors.into_iter();
        match (report, descriptors.next()) {
            (InitReport::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (InitReport::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            (report, Some(init)) => {
                let sandbox =
                    Sandbox { socket, init, exit: None, usage: None, tidies_up, _image: image };
                Ok((sandbox, report, descriptors.next()))
            }
            _ => Err(SandboxError::Silent),
        }
    }

    fn lock_running(&self) -> std::sync::MutexGuard<'_, Option<ForkServerProcess>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_if_needed(&self) -> io::Result<Arc<UnixDatagram>> {
        let mut running = self.lock_running();
        if let Some(running) = &*running {
            return Ok(running.requests.clone());
        }
        let (requests, server_end) = socket_pair()?;
        #[expect(clippy::disallowed_methods, reason = "the door for starting job-init")]
        let process = TokioCommand::new(&self.program)
            .arg(INIT_WORD)
            // A module can read the environment of its namespace's first process in /proc, and the
            // daemon's environment holds the stores' credentials.
            .env_clear()
            .stdin(Stdio::from(server_end))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A process group of its own: Ctrl-C on the terminal then reaches the daemon alone,
            // which stops its jobs in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let requests = Arc::new(requests);
        *running = Some(ForkServerProcess { requests: requests.clone(), _process: process });
        Ok(requests)
    }

    fn forget_if_current(&self, requests: &Arc<UnixDatagram>) {
        let mut running = self.lock_running();
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(&running.requests, requests)) {
            *running = None;
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.tidies_up {
            // The `job-init` sees the socket close, and kills all other processes.
            return;
        }
        // An error means that the process has ended already, which is what the signal was to bring
        // about.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
    }
}

impl Sandbox {
    /// Starts the module, whose tree is served now.
    pub async fn start_module(&mut self) -> Result<(), SandboxError> {
        self.send_order(&InitOrder::Go).await?;
        match receive_report_in_time(&self.socket).await? {
            (InitReport::Started, _) => Ok(()),
            (InitReport::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (InitReport::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            _ => Err(SandboxError::Silent),
        }
    }

    /// Waits until the module has ended and every process it started is killed. Cancel safe: the
    /// caller may drop the future and call this again.
    pub async fn wait_for_exit(&mut self) -> Result<ProcessExit, SandboxError> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        match receive_report(&self.socket).await? {
            (InitReport::Exited { exit, usage }, _) => {
                self.usage = usage;
                Ok(*self.exit.insert(exit))
            }
            (InitReport::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (InitReport::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            _ => Err(SandboxError::Silent),
        }
    }

    /// Does the same as [`Self::wait_for_exit`], and waits until the mount is gone as well.
    pub async fn wait_until_unmounted(&mut self) -> Result<ProcessExit, SandboxError> {
        let exit = self.wait_for_exit().await?;
        // The kernel removes the namespaces with their first process, before it reports that
        // process as ended.
        let _ = tokio::time::timeout(START_WAIT, sys::wait_for_exit(&self.init)).await;
        Ok(exit)
    }

    /// Returns what the job's processes used. It is known once they have ended, if their `job-init`
    /// was not killed before.
    pub(crate) fn usage(&self) -> Option<ProcessUsage> {
        self.usage
    }

    /// Returns, without waiting, whether the program has ended. Only for a program without a tree.
    pub fn has_ended(&self) -> bool {
        // After its start, `job-init` sends only one more report: the program's end.
        let mut events =
            [PollFd::new(&self.init, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut events, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Asks every process of the job to end: by SIGTERM, or a container by the signal that its
    /// image names.
    pub async fn terminate(&self) {
        // An error means that the job has ended already, which is what the order was to bring
        // about.
        let _ = self.send_order(&InitOrder::Terminate).await;
    }

    /// Ends every process of the job (SIGKILL).
    pub async fn kill(&self) {
        let _ = self.send_order(&InitOrder::Kill).await;
    }

    async fn send_order(&self, order: &InitOrder) -> Result<(), SandboxError> {
        let text = encode_order(order)?;
        let sent = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, &text, &[]));
        match tokio::time::timeout(START_WAIT, sent).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(SandboxError::Silent),
        }
    }
}

fn encode_order(order: &InitOrder) -> Result<Vec<u8>, SandboxError> {
    let text = serde_json::to_vec(order)?;
    if text.len() > MESSAGE_MAX { Err(SandboxError::TooLong(text.len())) } else { Ok(text) }
}

async fn receive_report(socket: &UnixDatagram) -> Result<(InitReport, Vec<OwnedFd>), SandboxError> {
    let received = socket.async_io(Interest::READABLE, || receive(socket)).await;
    match received {
        Ok((text, descriptors)) if !text.is_empty() => {
            Ok((serde_json::from_slice(&text)?, descriptors))
        }
        _ => Err(SandboxError::Silent),
    }
}

async fn receive_report_in_time(
    socket: &UnixDatagram,
) -> Result<(InitReport, Vec<OwnedFd>), SandboxError> {
    tokio::time::timeout(START_WAIT, receive_report(socket))
        .await
        .unwrap_or(Err(SandboxError::Silent))
}

/// Tries, in a separate process, whether jobs can have `mode`.
///
/// # Errors
/// Why they cannot.
pub async fn probe(server: &ForkServer, mode: SandboxMode) -> Result<(), SandboxError> {
    let nothing = SandboxCommand {
        argv: vec![],
        env: vec![],
        cwd: "/".into(),
        mount_at: Some("/ion".into()),
        mode,
        rights: Rights::Few,
        covers: vec![],
        processes: 1000,
        open_files: None,
        secrets: SandboxSecrets::default(),
        container: None,
    };
    spawn(server, nothing).await.map(drop)
}

/// Returns the strongest mode that works here, and why the stronger ones do not.
pub async fn find_best_mode(
    server: &ForkServer,
) -> (SandboxMode, Vec<(SandboxMode, SandboxError)>) {
    let mut refused = Vec::new();
    let first =
        if rustix::process::geteuid().is_root() { SandboxMode::Root } else { SandboxMode::User };
    match probe(server, first).await {
        Ok(()) => return (first, refused),
        Err(error) => refused.push((first, error)),
    }
    (SandboxMode::Plain, refused)
}

/// Sends one message, with descriptors or without.
fn send(socket: impl AsFd, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and the descriptors that came with it. An empty message means that the
/// other end is closed.
fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // The message's length is read first: most messages are a few bytes, and a buffer for the
    // longest would have to be cleared for each.
    let (_, length) =
        rustix::net::recv(&socket, &mut [0_u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    let mut text = vec![0; length.min(MESSAGE_MAX)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    text.truncate(received.bytes);
    let mut came = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            came.extend(descriptors);
        }
    }
    Ok((text, came))
}
