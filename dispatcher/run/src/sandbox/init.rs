//! The fork server, and the `job-init`s that it forks: each makes a job's namespaces and is the
//! first process in them. Both have one thread and no async runtime.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use ion_model::errors::error_chain;
use ion_system::sys::{self, ChildUsage, Fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Uid};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus,
    getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::UnshareFlags;

use super::error::InitError;
use super::root::RootHandles;
use super::{
    BUNDLE, InitOrder, InitReport, ProcessExit, ProcessUsage, SandboxCommand, SandboxContainer,
    SandboxMode, receive, rights, root, send,
};

/// How often orphans that have ended are reaped while the module runs.
const REAP_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The runtime's log file, in the bundle's folder.
const RUNTIME_LOG: &str = "log";

/// The runtime's `PATH`. The runtime starts no other program but itself.
const RUNTIME_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs as the fork server: its standard input is the socket by which the daemon asks for a
/// `job-init`. It never returns, but exits the process.
pub fn run_fork_server() -> ! {
    let requests = rustix::stdio::stdin();
    let mut forked = false;
    loop {
        let mut events = [PollFd::new(&requests, PollFlags::IN)];
        let _ = poll(&mut events, forked.then_some(&REAP_EVERY));
        if !events[0].revents().is_empty() {
            match receive(requests) {
                Ok((text, descriptors)) if !text.is_empty() => {
                    if let Ok(InitOrder::Fork(command)) = serde_json::from_slice(&text) {
                        fork_with(descriptors, command);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The daemon is gone. Each `job-init` notices that by itself.
                _ => std::process::exit(0),
            }
        }
        forked = loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
    }
}

/// Forks a `job-init` for this command. The first descriptor is its socket, then come the module's
/// streams, and the last one has its secrets, if it has any.
fn fork_with(mut descriptors: Vec<OwnedFd>, mut command: SandboxCommand) {
    if !command.secrets.is_empty() {
        command.secrets.content = descriptors.pop().map(Arc::new);
    }
    let mut descriptors = descriptors.into_iter();
    if let Some(socket) = descriptors.next()
        && let Some(streams) = InitStreams::from_descriptors(descriptors.collect())
    {
        fork_init(socket, streams, command);
    }
}

/// The module's standard streams.
struct InitStreams {
    /// None: the module reads from `/dev/null`.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl InitStreams {
    fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(stdout), None, None) => Some(Self { stdin: None, stdout, stderr: None }),
            (stdin @ Some(_), Some(stdout), stderr @ Some(_)) => {
                Some(Self { stdin, stdout, stderr })
            }
            _ => None,
        }
    }
}

fn fork_init(socket: OwnedFd, streams: InitStreams, command: SandboxCommand) {
    let mut namespaces = UnshareFlags::empty();
    if command.mode != SandboxMode::Plain {
        namespaces |= UnshareFlags::NEWPID | UnshareFlags::NEWNS;
    }
    if command.mode == SandboxMode::User {
        namespaces |= UnshareFlags::NEWUSER;
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    match sys::fork_single_threaded(namespaces) {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => run_job_init(socket, streams, command, (uid, gid)),
        Err(source) => {
            let what = if namespaces.is_empty() {
                "the job's first process cannot be made"
            } else {
                "its namespaces cannot be made"
            };
            let error = InitError::Act { what, source };
            let _ = send_report(socket.as_fd(), &InitReport::from_error(&error), &[]);
        }
    }
}

/// Runs as `job-init`: its standard input becomes the socket to the daemon. It never returns, but
/// exits the process.
fn run_job_init(
    socket: OwnedFd,
    streams: InitStreams,
    command: SandboxCommand,
    owner: (u32, u32),
) -> ! {
    let InitStreams { stdin, stdout, stderr } = streams;
    let ready = || -> io::Result<OwnedFd> {
        rustix::stdio::dup2_stdin(&socket)?;
        rustix::stdio::dup2_stdout(&stdout)?;
        rustix::stdio::dup2_stderr(stderr.as_ref().unwrap_or(&stdout))?;
        rustix::process::setpgid(None, None)?;
        // This process need not ignore any signal: it has a process group of its own, so the
        // signals sent to the daemon's group do not reach it.
        sys::restore_ignored_signals();
        Ok(rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)
    };
    let ready = ready();
    drop((socket, stdout, stderr));
    let socket = rustix::stdio::stdin();
    let served = ready
        .map_err(InitError::act("the job's first process cannot get its streams"))
        .and_then(|this| run_sandbox(socket, this, command, stdin, owner));
    let code = match served {
        Ok(()) => 0,
        Err(error) => {
            let _ = send_report(socket, &InitReport::from_error(&error), &[]);
            1
        }
    };
    std::process::exit(code)
}

impl InitReport {
    /// Returns the report of an error. The daemon is another process: it receives the text.
    fn from_error(error: &InitError) -> Self {
        let reason = error_chain(error);
        if error.is_lasting() { Self::CannotRun(reason) } else { Self::Failed(reason) }
    }
}

fn send_report(
    socket: BorrowedFd<'_>,
    report: &InitReport,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
    send(socket, &serde_json::to_vec(report)?, &descriptors)
}

fn report_or_fail(
    socket: BorrowedFd<'_>,
    what: &InitReport,
    descriptors: &[OwnedFd],
) -> Result<(), InitError> {
    send_report(socket, what, descriptors).map_err(InitError::act("the daemon is gone"))
}

/// Receives the next order; none when the daemon is gone.
fn receive_order(socket: BorrowedFd<'_>) -> Option<InitOrder> {
    let (text, _) = receive(socket).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Prepares the sandbox, starts the module and stays until everything that it started has ended.
/// The first report carries `this`, a descriptor of this process.
fn run_sandbox(
    socket: BorrowedFd<'_>,
    this: OwnedFd,
    mut command: SandboxCommand,
    stdin: Option<OwnedFd>,
    owner: (u32, u32),
) -> Result<(), InitError> {
    // Opened now, because there is no /dev while the root is made.
    let nowhere = File::options().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(InitError::path(Path::new("/dev/null"), "cannot be opened"))?;
    match command.mode {
        SandboxMode::Plain => rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(InitError::act("the module's orphans cannot be adopted"))?,
        SandboxMode::User => map_ids_to_themselves(owner)
            .map_err(InitError::act("the user namespace cannot be set up"))?,
        SandboxMode::Root => {}
    }
    // The module may have the same user, and must not read this process, which has rights and
    // secrets that the module must not have.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(InitError::act("the job's first process cannot be closed to the module"))?;
    let RootHandles { device, read_ahead } = match command.mode {
        SandboxMode::Plain => RootHandles { device: None, read_ahead: None },
        SandboxMode::Root | SandboxMode::User => root::build(&command, owner)?,
    };
    command.secrets.content = None;
    let mut known_by = Some(this);
    if let Some(mount_at) = &command.mount_at {
        let prepared = if device.is_some() { InitReport::Mounted } else { InitReport::Ready };
        let descriptors: Vec<_> = known_by.take().into_iter().chain(device).collect();
        report_or_fail(socket, &prepared, &descriptors)?;
        // The device is closed, too: if it stayed open here, the tree would not end with the
        // daemon, and this process might wait for an answer.
        drop(descriptors);
        match receive_order(socket) {
            Some(InitOrder::Go) => {}
            // The daemon is gone, or gave up before the start.
            _ => return Ok(()),
        }
        if let Some(settings) = &read_ahead {
            ion_fs::mount::widen_read_ahead(mount_at, settings);
        }
    }
    drop(read_ahead);
    let child = match &command.container {
        Some(container) => start_container(container, &command, stdin)?,
        None => {
            rights::give_up(&command)?;
            start_module(&command, stdin)?
        }
    };
    let reported = release_output(&nowhere)
        .and_then(|()| report_or_fail(socket, &InitReport::Started, known_by.as_slice()));
    if reported.is_err() {
        // The daemon died meanwhile: nothing may continue without it.
        kill_and_reap_all(&command, child);
        if let Some(container) = &command.container {
            container.bounds.remove();
        }
        return reported;
    }
    drop(known_by);
    supervise(socket, &command, child)
}

/// Maps the user and the group to themselves, so that the module sees its own uid, and files keep
/// their owner.
fn map_ids_to_themselves((uid, gid): (u32, u32)) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Waits until the module and every process it started have ended, and obeys the daemon's orders
/// meanwhile.
fn supervise(
    socket: BorrowedFd<'_>,
    command: &SandboxCommand,
    child: Pid,
) -> Result<(), InitError> {
    let ended = rustix::process::pidfd_open(child, PidfdFlags::empty())
        .map_err(InitError::act("the module's end cannot be watched"))?;
    let mut status = None;
    while status.is_none() {
        let mut events =
            [PollFd::new(&ended, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let _ = poll(&mut events, Some(&REAP_EVERY));
        if !events[1].revents().is_empty() {
            match receive_order(socket) {
                Some(InitOrder::Terminate) => terminate(command, child),
                Some(InitOrder::Kill) => signal_all(command, child, Signal::KILL),
                Some(_) => {}
                None => {
                    // The daemon died: nothing may continue without it.
                    signal_all(command, child, Signal::KILL);
                    break;
                }
            }
        }
        status = reap(child);
    }
    kill_and_reap_all(command, child);
    let exit = status.map_or(ProcessExit::Signal(Signal::KILL.as_raw()), to_process_exit);
    let usage = child_usage();
    let ended = match &command.container {
        Some(container) => report_container_end(container, exit, usage),
        None => InitReport::Exited { exit, usage },
    };
    let _ = send_report(socket, &ended, &[]);
    if command.mount_at.is_none() && command.container.is_none() {
        wait_until_dropped(socket);
    }
    Ok(())
}

/// Waits until the daemon drops the sandbox. A program without a tree leaves nothing visible
/// behind, and removing its namespaces now would take processor time from the processes that still
/// run.
fn wait_until_dropped(socket: BorrowedFd<'_>) {
    while receive_order(socket).is_some() {}
}

/// Returns what all processes of the job used. All of them have ended. Each was a child of this
/// process, or of another process of the job, whose usage includes that of its children.
fn child_usage() -> Option<ProcessUsage> {
    let ChildUsage { cpu_micros, peak_bytes } = sys::child_usage().ok()?;
    Some(ProcessUsage { cpu_micros, peak_bytes })
}

/// Returns the report of a container's end. Removes its control groups. `usage` is what this
/// process's children used, the runtime among them; the groups know it of the container alone.
fn report_container_end(
    container: &SandboxContainer,
    exit: ProcessExit,
    usage: Option<ProcessUsage>,
) -> InitReport {
    let out_of_memory = container.bounds.exceeded_memory_limit();
    let usage = container.bounds.usage(usage);
    container.bounds.remove();
    match (exit, out_of_memory) {
        (ProcessExit::Code(0), _) => InitReport::Exited { exit, usage },
        (_, Some(bytes)) => InitReport::Exited { exit: ProcessExit::OutOfMemory(bytes), usage },
        (_, None) => match read_runtime_error() {
            Some(error) => InitReport::Failed(format!("the container cannot be started: {error}")),
            None => InitReport::Exited { exit, usage },
        },
    }
}

/// Returns the first error in the runtime's log: why it could not do its work.
fn read_runtime_error() -> Option<String> {
    let log = std::fs::read_to_string(Path::new(BUNDLE).join(RUNTIME_LOG)).ok()?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors = lines.filter(|line| line["level"] == "error");
    errors.filter_map(|line| line["msg"].as_str().map(str::to_owned)).next()
}

/// Replaces this process's copies of the module's output by `nowhere`, so that the output ends with
/// the module, and not with the `job-init` that waits for it.
fn release_output(nowhere: &File) -> Result<(), InitError> {
    rustix::stdio::dup2_stdout(nowhere)
        .and_then(|()| rustix::stdio::dup2_stderr(nowhere))
        .map_err(InitError::act("the module's output cannot be let go"))
}

/// Starts the runtime, which makes the container and stays as long as the container does.
fn start_container(
    container: &SandboxContainer,
    command: &SandboxCommand,
    stdin: Option<OwnedFd>,
) -> Result<Pid, InitError> {
    if let Some((uid, gid)) = container.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let streams = [rustix::stdio::stdout(), rustix::stdio::stderr()];
        for stream in streams.into_iter().chain(stdin.as_ref().map(OwnedFd::as_fd)) {
            let _ = rustix::fs::fchown(stream, uid, gid);
        }
    }
    let state = format!("{BUNDLE}/state");
    let log = format!("{BUNDLE}/{RUNTIME_LOG}");
    let runtime = container.runtime.display().to_string();
    let words = [
        &*runtime,
        "--root",
        &state,
        "--log",
        &log,
        "--log-format=json",
        "--cgroup-manager=disabled",
        "run",
        "--bundle",
        BUNDLE,
        "job",
    ];
    let command = SandboxCommand {
        argv: words.map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), RUNTIME_PATH.into())],
        cwd: "/".into(),
        ..command.clone()
    };
    container.bounds.enter()?;
    let started = start_module(&command, stdin);
    container.bounds.leave()?;
    started
}

fn start_module(command: &SandboxCommand, stdin: Option<OwnedFd>) -> Result<Pid, InitError> {
    if let Some(current) = command.open_files {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit { current: Some(current), ..getrlimit(Resource::Nofile) },
        );
    }
    let program = command.argv.first().ok_or(InitError::NoProgram)?;
    #[expect(clippy::disallowed_methods, reason = "the door for starting modules")]
    let child = std::process::Command::new(program)
        .args(&command.argv[1..])
        .env_clear()
        .envs(command.env.iter().map(|(key, value)| (key, value)))
        .current_dir(&command.cwd)
        .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
        .process_group(0)
        .spawn();
    let child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !command.cwd.is_dir() => {
            InitError::NoFolder(command.cwd.clone())
        }
        io::ErrorKind::NotFound => InitError::Missing(program.clone()),
        io::ErrorKind::PermissionDenied => InitError::NotExecutable(program.clone()),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            InitError::NoFormat(program.clone())
        }
        _ => InitError::Start { program: program.clone(), source: error },
    })?;
    Pid::from_raw(child.id().cast_signed()).ok_or(InitError::NoPid)
}

/// Reaps every process that has ended; returns the module's status if it was among them.
fn reap(module: Pid) -> Option<WaitStatus> {
    let mut found = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == module && !status.stopped() && !status.continued() {
            found = Some(status);
        }
    }
    found
}

fn to_process_exit(status: WaitStatus) -> ProcessExit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ProcessExit::Code(code),
        (None, signal) => ProcessExit::Signal(signal.unwrap_or_default()),
    }
}

/// Asks the job to end. In a container only the first process receives the signal, as on a cluster:
/// the runtime passes it on.
fn terminate(command: &SandboxCommand, module: Pid) {
    if let Some(container) = &command.container {
        let signal = sys::signal(container.signal).unwrap_or(Signal::TERM);
        let _ = rustix::process::kill_process(module, signal);
    } else {
        signal_all(command, module, Signal::TERM);
    }
}

/// Sends a signal to every process of the job.
fn signal_all(command: &SandboxCommand, module: Pid, signal: Signal) {
    if command.mode == SandboxMode::Plain {
        let _ = rustix::process::kill_process_group(module, signal);
        for pid in child_pids() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    } else {
        let _ = sys::kill_namespace(signal);
    }
}

/// Kills the processes that the module left behind and waits until they are gone.
fn kill_and_reap_all(command: &SandboxCommand, module: Pid) {
    loop {
        signal_all(command, module, Signal::KILL);
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // No children are left: every orphan had become a child of this process before.
            Err(_) => return,
        }
        // Each round of signals walks all processes of the machine: one round serves many that have
        // died.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

/// Returns this process's children. The module's orphans are among them, as this process is their
/// subreaper.
fn child_pids() -> Vec<Pid> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
