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
use rustix::fs::{Mode as Permissions, OFlags};
use rustix::mount::{self, MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getrlimit, setrlimit,
};
use rustix::thread::UnshareFlags;

use super::{Command, Exit, Mode, Order, Report, receive, send};

/// How often orphans that ended are reaped while the module runs.
const REAP_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

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
                    {
                        fork(socket, streams);
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

fn fork(socket: OwnedFd, streams: Streams) {
    match sys::fork_single_threaded() {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => init(socket, streams),
        Err(error) => {
            let reason = format!("the job's first process cannot be forked: {error}");
            let _ = report(socket.as_fd(), &Report::Failed(reason), None);
        }
    }
}

/// Runs as `job-init`: its standard input becomes the socket to the daemon. Ends the process.
fn init(socket: OwnedFd, streams: Streams) -> ! {
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
    let served = ready.map_err(|error| error.to_string()).and_then(|this| {
        say(socket, &Report::Born, Some(&this))?;
        drop(this);
        serve(socket, stdin)
    });
    let code = match served {
        Ok(()) => 0,
        Err(reason) => {
            let _ = report(socket, &Report::Failed(reason), None);
            1
        }
    };
    std::process::exit(code)
}

fn report(socket: BorrowedFd<'_>, report: &Report, device: Option<&OwnedFd>) -> io::Result<()> {
    let device = device.map(OwnedFd::as_fd);
    send(socket, &serde_json::to_vec(report)?, device.as_slice())
}

/// The next order; none when the daemon is gone.
fn order(socket: BorrowedFd<'_>) -> Option<Order> {
    let (text, _) = receive(socket).ok()?;
    serde_json::from_slice(&text).ok()
}

fn serve(socket: BorrowedFd<'_>, stdin: Option<OwnedFd>) -> Result<(), String> {
    let Some(Order::Prepare(command)) = order(socket) else { return Err("no order came".into()) };
    // Now: while the first process of the namespace makes its root, there is no /dev for anybody in there.
    let nowhere = File::options().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|error| format!("/dev/null cannot be opened: {error}"))?;
    match command.mode {
        Mode::Plain => {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .map_err(|error| error.to_string())?;
            say(socket, &Report::Ready, None)?;
            supervise(socket, command, stdin, &nowhere)
        }
        Mode::Root | Mode::User => {
            let said = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
            let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
            let mut flags = UnshareFlags::NEWPID;
            if command.mount_at.is_some() {
                flags |= UnshareFlags::NEWNS;
            }
            if command.mode == Mode::User {
                flags |= UnshareFlags::NEWUSER;
            }
            sys::unshare(flags).map_err(said("namespaces are refused"))?;
            if command.mode == Mode::User {
                // Itself to itself: the module sees its own uid, and files keep their owner.
                let map = |id: u32| format!("{id} {id} 1");
                std::fs::write("/proc/self/setgroups", "deny")
                    .map_err(said("the user namespace cannot be set up"))?;
                std::fs::write("/proc/self/uid_map", map(uid.as_raw()))
                    .map_err(said("the user namespace cannot be set up"))?;
                std::fs::write("/proc/self/gid_map", map(gid.as_raw()))
                    .map_err(said("the user namespace cannot be set up"))?;
            }
            match sys::fork_single_threaded().map_err(said("the first process cannot be forked"))? {
                Fork::Child => {
                    let outcome =
                        first_process(socket, command, stdin, &nowhere, (uid.as_raw(), gid.as_raw()));
                    if let Err(reason) = outcome {
                        let _ = report(socket, &Report::Failed(reason), None);
                    }
                    std::process::exit(0)
                }
                Fork::Parent(child) => {
                    drop(stdin);
                    let_go_of_output(&nowhere)?;
                    // Killed with its child's parent-death signal set, so nothing outlives either of them.
                    let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
                    Ok(())
                }
            }
        }
    }
}

fn say(socket: BorrowedFd<'_>, what: &Report, device: Option<&OwnedFd>) -> Result<(), String> {
    report(socket, what, device).map_err(|error| format!("the daemon is gone: {error}"))
}

/// The first process of the PID namespace.
fn first_process(
    socket: BorrowedFd<'_>,
    command: Command,
    stdin: Option<OwnedFd>,
    nowhere: &File,
    (uid, gid): (u32, u32),
) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| error.to_string())?;
    let device = command.mount_at.as_deref().map(|mount_at| build_root(mount_at, uid, gid)).transpose()?;
    bound_processes(&command);
    let prepared = if device.is_some() { Report::Mounted } else { Report::Ready };
    say(socket, &prepared, device.as_ref())?;
    drop(device);
    supervise(socket, command, stdin, nowhere)
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

/// Makes a root of this mount namespace's own: everything that is in the host's, and the tree at `mount_at`. The
/// host's root is left as it is: nothing is made or mounted there. Gives the device that serves the tree.
fn build_root(mount_at: &Path, uid: u32, gid: u32) -> Result<OwnedFd, String> {
    let said = |what: &str, path: &Path| {
        let text = format!("{what} {}", path.display());
        move |error: rustix::io::Errno| format!("{text}: {}", io::Error::from(error))
    };
    let name = match mount_at.strip_prefix("/").ok().and_then(|rest| rest.to_str()) {
        Some(name) if !name.is_empty() && !name.contains('/') => name.to_owned(),
        _ => return Err(format!("{} is not a folder directly below /", mount_at.display())),
    };
    let root = Path::new("/");
    // What is mounted from here on must not reach the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change(root, private).map_err(said("mounts cannot be made private at", root))?;
    let base = Path::new("/tmp");
    let tmpfs = |at: &Path| {
        mount::mount("ion", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755,size=1m"))
            .map_err(said("a tmpfs cannot be mounted at", at))
    };
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
        if entry.file_name() != name.as_str() {
            carry_over(&entry.path(), &Path::new("/new").join(entry.file_name()))?;
        }
    }
    let tree = Path::new("/new").join(&name);
    std::fs::create_dir(&tree).map_err(|error| format!("{} cannot be made: {error}", mount_at.display()))?;
    let device = open_device()?;
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    mount::mount("ion", &tree, "fuse.ion", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .map_err(said("a FUSE filesystem cannot be mounted at", mount_at))?;
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

/// Starts the module when told to, and stays until it and all it started have ended.
fn supervise(
    socket: BorrowedFd<'_>,
    command: Command,
    stdin: Option<OwnedFd>,
    nowhere: &File,
) -> Result<(), String> {
    match order(socket) {
        Some(Order::Go) => {}
        // The daemon is gone, or gave up before it began.
        _ => return Ok(()),
    }
    if let Some(mount_at) = &command.mount_at {
        ionfs::mount::widen_read_ahead(mount_at);
    }
    let child = start_module(&command, stdin)?;
    let_go_of_output(nowhere)?;
    say(socket, &Report::Started, None)?;
    let ended = rustix::process::pidfd_open(child, PidfdFlags::empty()).map_err(|error| error.to_string())?;
    let mut status = None;
    while status.is_none() {
        let mut events =
            [PollFd::new(&ended, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let _ = poll(&mut events, Some(&REAP_EVERY));
        if !events[1].revents().is_empty() {
            match order(socket) {
                Some(Order::Terminate) => signal_all(&command, child, Signal::TERM),
                Some(Order::Kill) => signal_all(&command, child, Signal::KILL),
                Some(_) => {}
                None => {
                    // The daemon died: nothing may go on without it.
                    signal_all(&command, child, Signal::KILL);
                    break;
                }
            }
        }
        status = reap(child);
    }
    end_all(&command, child);
    let exit = status.map_or(Exit::Signal(Signal::KILL.as_raw()), exit_of);
    let _ = report(socket, &Report::Exited(exit), None);
    Ok(())
}

/// What the module writes to ends with the module, and not with those who wait for it.
fn let_go_of_output(nowhere: &File) -> Result<(), String> {
    rustix::stdio::dup2_stdout(nowhere).map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stderr(nowhere).map_err(|error| error.to_string())
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
