//! A job's processes: in namespaces of their own, with the tree at `/ion` there and nowhere else.
//!
//! # How it works
//! The daemon starts its own program once as a fork server: a process of one thread that forks a
//! `job-init` for each job, which costs a third of starting a program as large as this one.
//! `job-init` is the first process of the job's namespaces; it mounts a FUSE device in them and
//! hands the device over a socket; the daemon serves it, says `go`, and `job-init` starts the
//! module. When the module ends, all it left behind is killed. The socket is also the leash: if the
//! daemon dies, however, `job-init` sees it close and ends everything, and the mount goes with the
//! namespace.
//!
//! # What it never does
//! Put anything of the module's environment on a command line; leave a mount or a process behind;
//! let a module see the daemon's processes, its state or its stores.

mod bounds;
mod cover;
mod init;
mod rights;
mod root;

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

pub(super) use self::bounds::{Bounds, Group};
pub use self::cover::{Cover, Covers};
pub use self::init::main as init_main;
pub use self::rights::Rights;
pub(super) use self::root::{MASKED, READ_ONLY};

/// The word that makes the `ion` program the fork server of its `job-init`s.
pub const INIT_WORD: &str = "job-init";

/// How long starting may take: namespaces, mount and exec are milliseconds; more means the machine
/// is stuck.
const START_WAIT: Duration = Duration::from_secs(20);

/// Bytes of one message on the socket: environment and arguments of a module fit well.
const MESSAGE_MAX: usize = 160 << 10;

/// Descriptors that come with one message: a socket, and a program's three streams.
const DESCRIPTORS_MAX: usize = 4;

/// Where a container's bundle lies, in its sandbox alone.
pub(super) const BUNDLE: &str = "/.container";

/// The root of its files there.
pub(super) const ROOTFS: &str = "/.container/rootfs";

/// What separates a job from the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Mount and PID namespaces, as root.
    Root,
    /// The same inside a user namespace, as an ordinary user.
    User,
    /// None: the daemon mounts the tree in a folder, and `ION_DIR` says where.
    Plain,
}

/// What to run and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working folder.
    pub cwd: PathBuf,
    /// Where the tree stands for the module: `/ion`; unused in [`Mode::Plain`]. None: it has no
    /// tree, and starts without [`Sandbox::go`].
    pub mount_at: Option<PathBuf>,
    /// What separates it.
    pub mode: Mode,
    /// What it keeps of the daemon's rights.
    pub rights: Rights,
    /// What it does not see of this machine.
    pub covers: Vec<Cover>,
    /// Processes and threads it may have at a time, where the kernel can bind it alone.
    pub processes: u64,
    /// Descriptors of one process that the module begins with: what the daemon had before it asked
    /// for more.
    pub open_files: Option<u64>,
    /// A container to run in place of the program, which then says nothing of argv, env and cwd.
    pub container: Option<Box<Container>>,
}

/// A container that a runtime is to make inside of the namespaces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// The program that makes it.
    pub(super) runtime: PathBuf,
    /// The bundle's `config.json`.
    pub(super) config: String,
    /// Other files of the bundle, each with its name.
    pub(super) files: Vec<(String, String)>,
    /// The files of its image.
    pub(super) rootfs: PathBuf,
    /// As whom it runs on this machine: its streams become theirs, so that it may open them by
    /// name. None: the same user.
    pub(super) owner: Option<(u32, u32)>,
    /// What asks it to end.
    pub(super) signal: i32,
    /// What bounds it.
    pub(super) bounds: Bounds,
    /// Its image's lock, held until it has ended.
    #[serde(skip)]
    pub(super) image: Option<Arc<File>>,
}

/// How a module's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed, as it needed more memory than these bytes.
    OutOfMemory(u64),
}

/// What is said of a job that needed more memory than it may take.
pub(crate) fn out_of_memory(bytes: u64) -> String {
    format!("out of memory: its limit is {}", bytes_in_words(bytes))
}

/// Why a sandbox could not be made or lost its module.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `job-init` itself could not be started.
    #[error("the job's first process cannot be started")]
    Spawn(#[source] io::Error),
    /// It said why it could not go on: a mount is refused, there is no memory.
    #[error("{0}")]
    Failed(String),
    /// It said why it can never go on: the program is missing, or is none.
    #[error("{0}")]
    CannotRun(String),
    /// It ended or was silent without saying anything.
    #[error("the job's first process ended without a word")]
    Silent,
}

/// From the daemon: the first to the fork server, with the socket for the others and the module's
/// streams.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Fork(Command),
    Go,
    Terminate,
    Kill,
}

/// From `job-init` to the daemon. The first one carries a descriptor of the process; `Mounted` the
/// device, too.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Mounted,
    Ready,
    Started,
    Failed(String),
    CannotRun(String),
    Exited(Exit),
}

/// A running job's processes. Dropped, they are killed.
#[derive(Debug)]
pub struct Sandbox {
    socket: UnixDatagram,
    /// The `job-init`, by a descriptor that no other process can come to stand behind.
    init: OwnedFd,
    /// How the module ended, once that was said.
    exit: Option<Exit>,
    /// Its `job-init` removes control groups when all is over, and must live until then.
    tidies_up: bool,
    _image: Option<Arc<File>>,
}

/// Where `job-init`s are forked. Started when the first is needed, and again if it was killed.
#[derive(Debug)]
pub struct ForkServer {
    program: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    requests: Arc<UnixDatagram>,
    _process: Child,
}

/// What [`spawn`] gives: the sandbox, the device to serve (none in [`Mode::Plain`]), and the
/// module's output.
#[derive(Debug)]
pub struct Spawned {
    /// The processes, waiting for [`Sandbox::go`].
    pub sandbox: Sandbox,
    /// The FUSE device that is mounted for the module and not served yet.
    pub device: Option<OwnedFd>,
    /// Where its stdout and stderr arrive, in the order written.
    pub output: Receiver,
}

/// What [`spawn_piped`] gives: a program that runs, and its streams.
#[derive(Debug)]
pub struct Piped {
    /// The processes.
    pub sandbox: Sandbox,
    /// What it reads.
    pub stdin: Sender,
    /// What it writes.
    pub stdout: Receiver,
    /// What it says beside that.
    pub stderr: Receiver,
}

/// Forks a `job-init` and lets it prepare; the module starts at [`Sandbox::go`].
pub async fn spawn(server: &ForkServer, command: Command) -> Result<Spawned, SandboxError> {
    let plain = command.mode == Mode::Plain;
    let (output, output_end) = pipe()?;
    let forked = server.fork(command, &[output_end]).await?;
    let output = Receiver::from_owned_fd(output).map_err(SandboxError::Spawn)?;
    match forked {
        (sandbox, Report::Mounted, device @ Some(_)) => Ok(Spawned { sandbox, device, output }),
        (sandbox, Report::Ready, None) if plain => Ok(Spawned { sandbox, device: None, output }),
        _ => Err(SandboxError::Silent),
    }
}

/// Starts a program that has no tree, between three pipes.
pub async fn spawn_piped(server: &ForkServer, command: Command) -> Result<Piped, SandboxError> {
    let ((stdin_end, stdin), (stdout, stdout_end), (stderr, stderr_end)) =
        (pipe()?, pipe()?, pipe()?);
    let command = Command { mount_at: None, ..command };
    let (sandbox, Report::Started, _) =
        server.fork(command, &[stdin_end, stdout_end, stderr_end]).await?
    else {
        return Err(SandboxError::Silent);
    };
    Ok(Piped {
        sandbox,
        stdin: Sender::from_owned_fd(stdin).map_err(SandboxError::Spawn)?,
        stdout: Receiver::from_owned_fd(stdout).map_err(SandboxError::Spawn)?,
        stderr: Receiver::from_owned_fd(stderr).map_err(SandboxError::Spawn)?,
    })
}

/// The end to read from and the one to write to.
fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| SandboxError::Spawn(error.into()))
}

/// Two ends of a socket. A packet socket keeps messages apart, so that a descriptor cannot come
/// with half of one. The first end is the daemon's and never blocks.
fn socket_pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    // It answers to the same calls as a datagram socket.
    Ok((UnixDatagram::from_std(ours.into())?, theirs))
}

impl ForkServer {
    /// A server that runs `program`, which is `ion`.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), running: Mutex::default() }
    }

    /// A new `job-init`, the first it said, and the device if it has mounted one. Its module has
    /// these streams: one for all it writes, or stdin, stdout and stderr.
    async fn fork(
        &self,
        command: Command,
        streams: &[OwnedFd],
    ) -> Result<(Sandbox, Report, Option<OwnedFd>), SandboxError> {
        let tidies_up = command.container.is_some();
        let image = command.container.as_ref().and_then(|container| container.image.clone());
        let order = encode(&Order::Fork(command))?;
        let (socket, theirs) = socket_pair().map_err(SandboxError::Spawn)?;
        let fork = async |requests: &UnixDatagram| {
            let descriptors: Vec<_> =
                iter::once(&theirs).chain(streams).map(OwnedFd::as_fd).collect();
            let sent =
                requests.async_io(Interest::WRITABLE, || send(requests, &order, &descriptors));
            tokio::time::timeout(START_WAIT, sent)
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        };
        let requests = self.requests().map_err(SandboxError::Spawn)?;
        if fork(&requests).await.is_err() {
            // It was killed: another one.
            self.forget(&requests);
            let requests = self.requests().map_err(SandboxError::Spawn)?;
            fork(&requests).await.map_err(SandboxError::Spawn)?;
        }
        // Else this end would never see that nobody has the other.
        drop(theirs);
        let (said, descriptors) = report_soon(&socket).await?;
        let mut descriptors = descriptors.into_iter();
        match (said, descriptors.next()) {
            (Report::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (Report::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            (said, Some(init)) => {
                let sandbox = Sandbox { socket, init, exit: None, tidies_up, _image: image };
                Ok((sandbox, said, descriptors.next()))
            }
            _ => Err(SandboxError::Silent),
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> io::Result<Arc<UnixDatagram>> {
        let mut running = self.running();
        if let Some(running) = &*running {
            return Ok(running.requests.clone());
        }
        let (ours, theirs) = socket_pair()?;
        #[expect(clippy::disallowed_methods, reason = "the door for starting job-init")]
        let process = TokioCommand::new(&self.program)
            .arg(INIT_WORD)
            // A module can read its first process's environment in /proc, and the daemon's holds
            // what opens the stores.
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its own group: Ctrl-C on the terminal reaches the daemon alone, which stops its jobs
            // in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let requests = Arc::new(ours);
        *running = Some(Running { requests: requests.clone(), _process: process });
        Ok(requests)
    }

    fn forget(&self, requests: &Arc<UnixDatagram>) {
        let mut running = self.running();
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(&running.requests, requests)) {
            *running = None;
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.tidies_up {
            // It sees the socket close, and kills all others.
            return;
        }
        // Gone already: that is what was asked for.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
    }
}

impl Sandbox {
    /// Starts the module.
    pub async fn go(&mut self) -> Result<(), SandboxError> {
        self.order(&Order::Go).await?;
        match report_soon(&self.socket).await? {
            (Report::Started, _) => Ok(()),
            (Report::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (Report::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            _ => Err(SandboxError::Silent),
        }
    }

    /// Waits until the module has ended and all it started was killed. May be called again, also
    /// after it was dropped.
    pub async fn exit(&mut self) -> Result<Exit, SandboxError> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        match report(&self.socket).await? {
            (Report::Exited(exit), _) => Ok(*self.exit.insert(exit)),
            (Report::Failed(reason), _) => Err(SandboxError::Failed(reason)),
            (Report::CannotRun(reason), _) => Err(SandboxError::CannotRun(reason)),
            _ => Err(SandboxError::Silent),
        }
    }

    /// The same, until its mount is gone as well.
    pub async fn wait(&mut self) -> Result<Exit, SandboxError> {
        let exit = self.exit().await?;
        // The namespaces go with their first process, before it counts as ended.
        let _ = tokio::time::timeout(START_WAIT, sys::process_end(&self.init)).await;
        Ok(exit)
    }

    /// Whether the program, which has no tree, has ended, without waiting.
    pub fn has_ended(&self) -> bool {
        // Once it has started, the only word is that of its end.
        let mut events =
            [PollFd::new(&self.init, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut events, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Asks every process of the job to end: by SIGTERM, a container by the signal that its image
    /// says.
    pub async fn terminate(&self) {
        // Gone already: that is what was asked for.
        let _ = self.order(&Order::Terminate).await;
    }

    /// Ends every process of the job (SIGKILL).
    pub async fn kill(&self) {
        let _ = self.order(&Order::Kill).await;
    }

    async fn order(&self, order: &Order) -> Result<(), SandboxError> {
        let text = encode(order)?;
        let sent = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, &text, &[]));
        match tokio::time::timeout(START_WAIT, sent).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(SandboxError::Silent),
        }
    }
}

fn encode(order: &Order) -> Result<Vec<u8>, SandboxError> {
    let text =
        serde_json::to_vec(order).map_err(|error| SandboxError::Failed(error.to_string()))?;
    if text.len() > MESSAGE_MAX {
        return Err(SandboxError::Failed(format!(
            "the module's arguments and environment take {} bytes; at most {MESSAGE_MAX} are allowed",
            text.len()
        )));
    }
    Ok(text)
}

async fn report(socket: &UnixDatagram) -> Result<(Report, Vec<OwnedFd>), SandboxError> {
    let received = socket.async_io(Interest::READABLE, || receive(socket)).await;
    match received {
        Ok((text, descriptors)) if !text.is_empty() => Ok((
            serde_json::from_slice(&text)
                .map_err(|error| SandboxError::Failed(error.to_string()))?,
            descriptors,
        )),
        _ => Err(SandboxError::Silent),
    }
}

async fn report_soon(socket: &UnixDatagram) -> Result<(Report, Vec<OwnedFd>), SandboxError> {
    tokio::time::timeout(START_WAIT, report(socket)).await.unwrap_or(Err(SandboxError::Silent))
}

/// Tries out, in a process of its own, whether jobs can have `mode`; the reason if not.
pub async fn probe(server: &ForkServer, mode: Mode) -> Result<(), String> {
    let nothing = Command {
        argv: vec![],
        env: vec![],
        cwd: "/".into(),
        mount_at: Some("/ion".into()),
        mode,
        rights: Rights::Few,
        covers: vec![],
        processes: 1000,
        open_files: None,
        container: None,
    };
    match spawn(server, nothing).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The strongest mode that works here, and why the stronger ones do not.
pub async fn best_mode(server: &ForkServer) -> (Mode, Vec<(Mode, String)>) {
    let mut refused = Vec::new();
    let first = if rustix::process::geteuid().is_root() { Mode::Root } else { Mode::User };
    match probe(server, first).await {
        Ok(()) => return (first, refused),
        Err(reason) => refused.push((first, reason)),
    }
    (Mode::Plain, refused)
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

/// Receives one message and the descriptors that came with it. Nothing: the other end is closed.
fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // Its length first: most are a few bytes, and room for the longest would be cleared for each.
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
