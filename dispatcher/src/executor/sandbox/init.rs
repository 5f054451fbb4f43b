//! The fork server, and the `job-init`s that it forks: each makes a job's namespaces and is the first process in them. One
//! thread, no runtime.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ionfs::sys::{self, Fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Mode as Permissions, OFlags, Uid};
use rustix::mount::{self, MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getrlimit, setrlimit,
};
use rustix::thread::UnshareFlags;

use super::{BUNDLE, Command, Container, Exit, Mode, Order, ROOTFS, Report, receive, send};

/// How often orphans that ended are reaped while the module runs.
const REAP_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The runtime's own words, in the bundle's folder.
const RUNTIME_LOG: &str = "log";

/// Where the runtime finds what it starts: nothing but itself.
const RUNTIME_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs as the fork server: its standard input is the socket by which the daemon asks for a `job-init`. Ends the process.
pub fn main() -> ! {
    let requests = rustix::stdio::stdin();
    let mut forked = false;
    loop {
        let mut events = [PollFd::new(&requests, PollFlags::IN)];
        let _ = poll(&mut events, forked.then_some(&REAP_EVERY));
        if !events[0].revents().is_empty() {
            match receive(requests) {
                Ok((text, descriptors)) if !text.is_empty() => {
                    let mut descriptors = descriptors.into_iter();
                    if let Some(socket) = descriptors.next()
                        && let Some(streams) = Streams::from(descriptors.collect())
                        && let Ok(Order::Fork(command)) = serde_json::from_slice(&text)
                    {
                        fork(socket, streams, command);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The daemon is gone. Each `job-init` sees that by itself.
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

/// What the module writes to, and reads.
struct Streams {
    /// None: nothing is to be read.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Streams {
    fn from(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(stdout), None, None) => Some(Self { stdin: None, stdout, stderr: None }),
            (stdin @ Some(_), Some(stdout), stderr @ Some(_)) => Some(Self { stdin, stdout, stderr }),
            _ => None,
        }
    }
}

fn fork(socket: OwnedFd, streams: Streams, command: Command) {
    let mut namespaces = UnshareFlags::empty();
    if command.mode != Mode::Plain {
        namespaces |= UnshareFlags::NEWPID;
        if command.mount_at.is_some() || command.container.is_some() {
            namespaces |= UnshareFlags::NEWNS;
        }
    }
    if command.mode == Mode::User {
        namespaces |= UnshareFlags::NEWUSER;
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    match sys::fork_single_threaded(namespaces) {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => init(socket, streams, command, (uid, gid)),
        Err(error) => {
            let what = if namespaces.is_empty() { "the job's first process" } else { "its namespaces" };
            let reason = format!("{what} cannot be made: {error}");
            let _ = report(socket.as_fd(), &Report::Failed(reason), &[]);
        }
    }
}

/// Runs as `job-init`: its standard input becomes the socket to the daemon. Ends the process.
fn init(socket: OwnedFd, streams: Streams, command: Command, owner: (u32, u32)) -> ! {
    let Streams { stdin, stdout, stderr } = streams;
    let ready = || -> io::Result<OwnedFd> {
        rustix::stdio::dup2_stdin(&socket)?;
        rustix::stdio::dup2_stdout(&stdout)?;
        rustix::stdio::dup2_stderr(stderr.as_ref().unwrap_or(&stdout))?;
        rustix::process::setpgid(None, None)?;
        Ok(rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)
    };
    let ready = ready();
    drop((socket, stdout, stderr));
    let socket = rustix::stdio::stdin();
    let served =
        ready.map_err(|error| error.to_string()).and_then(|this| serve(socket, this, command, stdin, owner));
    let code = match served {
        Ok(()) => 0,
        Err(reason) => {
            let _ = report(socket, &Report::Failed(reason), &[]);
            1
        }
    };
    std::process::exit(code)
}

fn report(socket: BorrowedFd<'_>, report: &Report, descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
    send(socket, &serde_json::to_vec(report)?, &descriptors)
}

fn say(socket: BorrowedFd<'_>, what: &Report, descriptors: &[OwnedFd]) -> Result<(), String> {
    report(socket, what, descriptors).map_err(|error| format!("the daemon is gone: {error}"))
}

/// The next order; none when the daemon is gone.
fn order(socket: BorrowedFd<'_>) -> Option<Order> {
    let (text, _) = receive(socket).ok()?;
    serde_json::from_slice(&text).ok()
}

/// From here to the end of all that the module starts. The first thing said carries `this`, a descriptor of this process.
fn serve(
    socket: BorrowedFd<'_>,
    this: OwnedFd,
    command: Command,
    stdin: Option<OwnedFd>,
    owner: (u32, u32),
) -> Result<(), String> {
    // Now: while the root is made, there is no /dev.
    let nowhere = File::options().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|error| format!("/dev/null cannot be opened: {error}"))?;
    match command.mode {
        Mode::Plain => rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| error.to_string())?,
        Mode::User => stay(owner).map_err(|error| format!("the user namespace cannot be set up: {error}"))?,
        Mode::Root => {}
    }
    let plain = command.mode == Mode::Plain;
    let device = match command.mount_at.is_some() || command.container.is_some() {
        true if !plain => build_root(&command, owner)?,
        _ => None,
    };
    if !plain {
        bound_processes(&command);
    }
    let mut known_by = Some(this);
    if let Some(mount_at) = &command.mount_at {
        let prepared = if device.is_some() { Report::Mounted } else { Report::Ready };
        let descriptors: Vec<_> = known_by.take().into_iter().chain(device).collect();
        say(socket, &prepared, &descriptors)?;
        // The device, too: held here, the tree would not end with the daemon, and this process might wait for an answer.
        drop(descriptors);
        match order(socket) {
            Some(Order::Go) => {}
            // The daemon is gone, or gave up before it began.
            _ => return Ok(()),
        }
        ionfs::mount::widen_read_ahead(mount_at);
    }
    let child = match &command.container {
        Some(container) => start_container(container, &command, stdin)?,
        None => start_module(&command, stdin)?,
    };
    let said = let_go_of_output(&nowhere).and_then(|()| say(socket, &Report::Started, known_by.as_slice()));
    if said.is_err() {
        // The daemon died meanwhile: nothing may go on without it.
        end_all(&command, child);
        if let Some(container) = &command.container {
            container.bounds.remove();
        }
        return said;
    }
    drop(known_by);
    supervise(socket, &command, child)
}

/// Maps the user and the group to themselves: the module sees its own uid, and files keep their owner.
fn stay((uid, gid): (u32, u32)) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Bounds the processes of the job, where the kernel can bound them for this job alone; elsewhere nothing does.
fn bound_processes(command: &Command) {
    let kernel = rustix::system::uname();
    let version = version_of(&kernel.release().to_string_lossy());
    // Before, this file was the whole machine's.
    if version >= (6, 14) {
        let _ = std::fs::write(
            "/proc/sys/kernel/pid_max",
            (command.processes.saturating_add(PIDS_RESERVED)).to_string(),
        );
    }
    // Of a user in a user namespace; before, the user's processes in all namespaces counted. Root is never bound by it.
    if command.mode == Mode::User && version >= (5, 14) {
        let most = Some(command.processes);
        let _ = setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most });
    }
}

/// Major and minor number of a kernel's release; zeros if there are none.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What went wrong with a path, in words.
fn said(what: &str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> String {
    let text = format!("{what} {}", path.display());
    move |error| format!("{text}: {}", io::Error::from(error))
}

/// A small tmpfs that holds what this namespace alone sees.
fn tmpfs(at: &Path) -> Result<(), String> {
    mount::mount("ion", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755,size=1m"))
        .map_err(said("a tmpfs cannot be mounted at", at))
}

/// Makes a root of this mount namespace's own: everything that is in the host's, the tree where the command wants it, and its
/// container's bundle. The host's root is left as it is: nothing is made or mounted there. Gives the device that
/// serves the tree.
fn build_root(command: &Command, owner: (u32, u32)) -> Result<Option<OwnedFd>, String> {
    let name = match &command.mount_at {
        None => None,
        Some(mount_at) => match mount_at.strip_prefix("/").ok().and_then(|rest| rest.to_str()) {
            Some(name) if !name.is_empty() && !name.contains('/') => Some(name),
            _ => return Err(format!("{} is not a folder directly below /", mount_at.display())),
        },
    };
    let root = Path::new("/");
    // What is mounted from here on must not reach the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change(root, private).map_err(said("mounts cannot be made private at", root))?;
    let base = Path::new("/tmp");
    tmpfs(base)?;
    let made =
        |path: &str| std::fs::create_dir(path).map_err(|error| format!("{path} cannot be made: {error}"));
    made("/tmp/host")?;
    made("/tmp/new")?;
    tmpfs(Path::new("/tmp/new"))?;
    let enter = |path: &Path| rustix::process::chdir(path).map_err(said("cannot enter", path));
    enter(base)?;
    rustix::process::pivot_root(".", "host").map_err(said("the root cannot be changed to", base))?;
    enter(root)?;
    for entry in std::fs::read_dir("/host").map_err(|error| error.to_string())? {
        let entry = entry.map_err(|error| error.to_string())?;
        if name.is_none_or(|name| entry.file_name() != name) {
            carry_over(&entry.path(), &Path::new("/new").join(entry.file_name()))?;
        }
    }
    let device = name.map(|name| mount_tree(name, owner)).transpose()?;
    if let Some(container) = &command.container {
        lay_bundle(container)?;
    }
    // Processes of this namespace have numbers of their own. A locked /proc (in some containers) cannot be
    // replaced; then the host's numbers show, and all else works.
    let _ = mount::mount(
        "proc",
        "/new/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    );
    let read_only = MountFlags::RDONLY | MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    let _ = mount::mount_remount("/new", read_only, c"");
    enter(Path::new("/new"))?;
    rustix::process::pivot_root(".", ".")
        .map_err(said("the root cannot be changed to", Path::new("/new")))?;
    mount::unmount(".", UnmountFlags::DETACH).map_err(said("the host's root cannot be let go at", root))?;
    enter(root)?;
    Ok(device)
}

/// Mounts the tree below the new root. Gives the device that serves it.
fn mount_tree(name: &str, (uid, gid): (u32, u32)) -> Result<OwnedFd, String> {
    let tree = Path::new("/new").join(name);
    std::fs::create_dir(&tree).map_err(|error| format!("/{name} cannot be made: {error}"))?;
    let device = open_device()?;
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    mount::mount("ion", &tree, "fuse.ion", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .map_err(said("a FUSE filesystem cannot be mounted at", Path::new(&format!("/{name}"))))?;
    Ok(device)
}

/// Lays a container's bundle below the new root. The runtime keeps its state there, too.
fn lay_bundle(container: &Container) -> Result<(), String> {
    let below = |folder: &str, path: &Path| Path::new(folder).join(path.strip_prefix("/").unwrap_or(path));
    let (bundle, rootfs) = (below("/new", Path::new(BUNDLE)), below("/new", Path::new(ROOTFS)));
    let made = |path: &Path| {
        std::fs::create_dir(path).map_err(|error| format!("{} cannot be made: {error}", path.display()))
    };
    made(&bundle)?;
    // Not a part of the root, which becomes read-only.
    tmpfs(&bundle)?;
    made(&rootfs)?;
    let image = below("/host", &container.rootfs);
    mount::mount_bind(&image, &rootfs).map_err(said("the image cannot be shown:", &container.rootfs))?;
    let config = std::fs::write(bundle.join("config.json"), &container.config);
    config.map_err(|error| format!("the container's config.json cannot be written: {error}"))?;
    // A runtime may refuse a machine that has both versions of control groups: it has nothing to do with them here.
    let second = Path::new("/new/sys/fs/cgroup/unified");
    if second.is_dir() { tmpfs(second) } else { Ok(()) }
}

/// Makes one top-level entry of the host's root appear in the new one.
fn carry_over(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} cannot be shown to the module: {error}", from.display());
    let kind = std::fs::symlink_metadata(from).map_err(failed)?.file_type();
    if kind.is_symlink() {
        let target: PathBuf = std::fs::read_link(from).map_err(failed)?;
        return std::os::unix::fs::symlink(target, to).map_err(failed);
    }
    if kind.is_dir() {
        std::fs::create_dir(to).map_err(failed)?;
    } else {
        std::fs::write(to, b"").map_err(failed)?;
    }
    mount::mount_bind_recursive(from, to).map_err(|error| failed(error.into()))
}

fn open_device() -> Result<OwnedFd, String> {
    // Through the host's /dev as this namespace shows it.
    rustix::fs::open("/new/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Permissions::empty()).map_err(|error| {
        let way_out = match error {
            rustix::io::Errno::NOENT => "; load it with `modprobe fuse`",
            rustix::io::Errno::ACCESS => "; allow it with `chmod 666 /dev/fuse`, as distributions do",
            _ => "",
        };
        format!("/dev/fuse cannot be opened: {}{way_out}", io::Error::from(error))
    })
}

/// Numbers that the kernel gives to nobody once it has been through all.
const PIDS_RESERVED: u64 = 300;

/// Stays until the module and all it started have ended.
fn supervise(socket: BorrowedFd<'_>, command: &Command, child: Pid) -> Result<(), String> {
    let ended = rustix::process::pidfd_open(child, PidfdFlags::empty()).map_err(|error| error.to_string())?;
    let mut status = None;
    while status.is_none() {
        let mut events =
            [PollFd::new(&ended, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let _ = poll(&mut events, Some(&REAP_EVERY));
        if !events[1].revents().is_empty() {
            match order(socket) {
                Some(Order::Terminate) => terminate(command, child),
                Some(Order::Kill) => signal_all(command, child, Signal::KILL),
                Some(_) => {}
                None => {
                    // The daemon died: nothing may go on without it.
                    signal_all(command, child, Signal::KILL);
                    break;
                }
            }
        }
        status = reap(child);
    }
    end_all(command, child);
    let exit = status.map_or(Exit::Signal(Signal::KILL.as_raw()), exit_of);
    let ended = match &command.container {
        Some(container) => end_of(container, exit),
        None => Report::Exited(exit),
    };
    let _ = report(socket, &ended, &[]);
    if command.mount_at.is_none() && command.container.is_none() {
        stay_until_let_go(socket);
    }
    Ok(())
}

/// Waits until the daemon drops the sandbox. Nothing is left to be seen of a program without a tree, and the end of its
/// namespaces takes a processor from those that go on.
fn stay_until_let_go(socket: BorrowedFd<'_>) {
    while order(socket).is_some() {}
}

/// What is to be said of a container's end. Its control groups are removed.
fn end_of(container: &Container, exit: Exit) -> Report {
    let out_of_memory = container.bounds.out_of_memory();
    container.bounds.remove();
    match (exit, out_of_memory) {
        (Exit::Code(0), _) => Report::Exited(exit),
        (_, Some(bytes)) => Report::Exited(Exit::OutOfMemory(bytes)),
        (_, None) => match runtime_error() {
            Some(error) => Report::Failed(format!("the container cannot be started: {error}")),
            None => Report::Exited(exit),
        },
    }
}

/// What the runtime said in its log when it could not do its work.
fn runtime_error() -> Option<String> {
    let log = std::fs::read_to_string(Path::new(BUNDLE).join(RUNTIME_LOG)).ok()?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors = lines.filter(|line| line["level"] == "error");
    errors.filter_map(|line| line["msg"].as_str().map(str::to_owned)).next()
}

/// What the module writes to ends with the module, and not with those who wait for it.
fn let_go_of_output(nowhere: &File) -> Result<(), String> {
    rustix::stdio::dup2_stdout(nowhere).map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stderr(nowhere).map_err(|error| error.to_string())
}

/// Starts the runtime, which makes the container and stays as long as it does.
fn start_container(container: &Container, command: &Command, stdin: Option<OwnedFd>) -> Result<Pid, String> {
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
    let command = Command {
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

fn start_module(command: &Command, stdin: Option<OwnedFd>) -> Result<Pid, String> {
    if let Some(current) = command.open_files {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..getrlimit(Resource::Nofile) });
    }
    let program = command.argv.first().ok_or("there is no program to run")?;
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
            format!("the folder {} is not there", command.cwd.display())
        }
        io::ErrorKind::NotFound => {
            format!("program {program:?} is not there (nor, for a script, the interpreter in its first line)")
        }
        io::ErrorKind::PermissionDenied => {
            format!("program {program:?} is not executable; allow it with `chmod +x {program}`")
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            format!("program {program:?} is no executable: a script needs a first line such as #!/bin/sh")
        }
        _ => format!("program {program:?} cannot be started: {error}"),
    })?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| "the module has no process id".into())
}

/// Reaps whatever ended; the module's status when it was among them.
fn reap(module: Pid) -> Option<WaitStatus> {
    let mut found = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == module && !status.stopped() && !status.continued() {
            found = Some(status);
        }
    }
    found
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

/// Asks the job to end. In a container that is its first process's to hear, as on a cluster: the runtime passes it on.
fn terminate(command: &Command, module: Pid) {
    if command.container.is_some() {
        let _ = rustix::process::kill_process(module, Signal::TERM);
    } else {
        signal_all(command, module, Signal::TERM);
    }
}

/// Signals every process of the job.
fn signal_all(command: &Command, module: Pid, signal: Signal) {
    if command.mode == Mode::Plain {
        let _ = rustix::process::kill_process_group(module, signal);
        for pid in children() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    } else {
        let _ = sys::kill_namespace(signal);
    }
}

/// Kills what the module left behind and waits until it is gone.
fn end_all(command: &Command, module: Pid) {
    loop {
        signal_all(command, module, Signal::KILL);
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // No children left: whoever was orphaned came to us first.
            Err(_) => return,
        }
        // Each round of signals looks at every process of the machine: one for many that have died.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

/// This process's children: the module's orphans among them, as it is their subreaper.
fn children() -> Vec<Pid> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
