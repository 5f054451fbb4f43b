//! Every `unsafe` line of Ion: calls that the kernel offers and no safe library wraps.
#![expect(unsafe_code, reason = "the only module where it is allowed")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

static ORIGINAL_DESCRIPTOR_LIMIT: OnceLock<u64> = OnceLock::new();

/// Raises this process's limit of open descriptors as far as the system allows: every open file of
/// every job takes one. Call it at the start of a process.
pub fn raise_descriptor_limit() {
    let now = getrlimit(Resource::Nofile);
    if let Some(current) = now.current {
        let _ = ORIGINAL_DESCRIPTOR_LIMIT.set(current);
    }
    // If the kernel refuses, the process goes on with the limit that it has.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// Returns the limit of open descriptors before [`raise_descriptor_limit`] raised it. Programs that
/// this process starts expect this limit.
pub fn original_descriptor_limit() -> Option<u64> {
    ORIGINAL_DESCRIPTOR_LIMIT.get().copied()
}

/// Keeps the descriptors that this process was started with, other than its three streams, from the
/// programs that it starts: the process's parent may have left a file open that only the parent may
/// read. Call it at the start of a process.
pub fn close_descriptors_on_exec() {
    let (first, last, flags) = (3_u32, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call touches no memory of this process, and closes nothing now.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // Before Linux 5.11.
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok());
        if let Some(descriptor) = number.filter(|&number| number > 2) {
            // SAFETY: the call touches no memory of this process; the listing's own descriptor has
            // the flag already.
            let _ = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Forbids core dumps of this process, and forbids other processes without capabilities to look
/// into it through `/proc` or as a debugger: it holds credentials, and modules may run as the same
/// user. Call it at the start of a process.
pub fn forbid_inspection() {
    // The kernel never refuses this value.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Removes a variable from the environment, so that `/proc` shows no trace of its value. Returns
/// the value; `None` if the variable is not set or is not UTF-8, or if this process has a second
/// thread, which might read the environment at the same time.
pub fn take_variable(name: &str) -> Option<String> {
    if std::fs::read_dir("/proc/self/task").ok()?.count() != 1 {
        return None;
    }
    let value = std::env::var(name).ok()?;
    let c_name = CString::new(name).ok()?;
    // SAFETY: there is one thread, so no other code reads or changes the environment meanwhile.
    // `getenv` points to this process's own memory, up to a zero, and no other code keeps a pointer
    // to it. The name stays, so that the removal finds it.
    unsafe {
        let at = libc::getenv(c_name.as_ptr());
        if !at.is_null() {
            std::ptr::write_bytes(at, 0, libc::strlen(at));
        }
        std::env::remove_var(name);
    }
    Some(value)
}

/// Lets the kernel kill the program that `command` starts when the thread that starts it ends, so
/// at the latest when this process ends, however it ends. The thread has to wait for the program.
pub fn kill_when_thread_ends(command: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    let end_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // If the parent died before the call, the kernel would never send the signal.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls, takes no lock and allocates
    // no memory.
    unsafe { command.pre_exec(end_with_parent) };
}

/// Restores the default action of the signals that this process ignores because its parent did, as
/// `nohup` and a shell's `&` do: its children would ignore them too. Leaves SIGPIPE alone, which
/// Rust ignores itself and restores for its children.
pub fn restore_ignored_signals() {
    (1..=libc::SIGRTMAX()).filter(|number| *number != libc::SIGPIPE).for_each(restore_if_ignored);
}

/// Restores the default action of SIGCHLD, which the parent of this process may have set to be
/// ignored: a process that ignores it cannot wait for its children.
pub fn restore_child_signal() {
    restore_if_ignored(libc::SIGCHLD);
}

fn restore_if_ignored(number: i32) {
    // SAFETY: the calls read one structure and remove no handler. The C library refuses calls for
    // the signals that it uses itself.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(number, std::ptr::null(), &raw mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
        {
            libc::signal(number, libc::SIG_DFL);
        }
    }
}

/// Returns the signal with a number, including real-time signals; `None` if there is none.
pub fn signal(number: i32) -> Option<Signal> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    // SAFETY: the C library leaves the real-time signals to programs.
    let other =
        || real_time.contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) });
    Signal::from_named_raw(number).or_else(other)
}

/// Makes the mount at `at` and all mounts below it read-only.
///
/// # Errors
/// Returns the kernel's error: ENOSYS before Linux 5.12.
pub fn make_read_only(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_RECURSIVE;
    // SAFETY: the path ends with a zero, and the kernel reads no more of the structure than the
    // given size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The side of a fork on which the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The call returns in the process that called, with the child's pid.
    Parent(Pid),
    /// The call returns in the new process.
    Child,
}

/// Forks this process, which must have only one thread. The child is the first process of the new
/// `namespaces`.
///
/// # Errors
/// Returns an error when the process has more threads, or when the kernel refuses: EPERM where it
/// does not allow such namespaces.
pub fn fork_single_threaded(namespaces: UnshareFlags) -> io::Result<Fork> {
    let allowed = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUSER;
    assert!(allowed.contains(namespaces), "nothing but namespaces is made with a process");
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads must not fork"));
    }
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: as checked above, there is one thread, so no other thread can hold a lock that the
    // child needs. Without CLONE_VM the child has a copy of everything, including the stack. The C
    // library's fork() cannot make namespaces; what else it does (locks of other threads, handlers)
    // is for programs with several threads.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid).ok().filter(|&pid| pid >= 0).map(Pid::from_raw) {
        None => Err(io::Error::last_os_error()),
        Some(Some(pid)) => Ok(Fork::Parent(pid)),
        Some(None) => Ok(Fork::Child),
    }
}

/// Sends a signal to every process of this PID namespace except the caller, which must be its first
/// process: outside such a namespace the signal would reach processes that are not Ion's.
///
/// # Errors
/// Returns the kernel's error: ESRCH when there is no other process.
pub fn kill_namespace(signal: Signal) -> io::Result<()> {
    assert!(
        rustix::process::getpid().is_init(),
        "only the first process of a namespace may end all others"
    );
    // SAFETY: kill() touches no memory of this process.
    match unsafe { libc::kill(-1, signal.as_raw()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What this process's children used that have ended and were waited for, with their own such
/// children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildUsage {
    /// Their processor time, in user and in kernel mode, in microseconds.
    pub cpu_micros: u64,
    /// The resident memory of the largest of them at its largest, in bytes. A new process counts
    /// what it shares with its parent until it runs its own program.
    pub peak_bytes: u64,
}

/// Returns what this process's children used so far.
///
/// # Errors
/// Returns the kernel's error; it has no reason for one.
pub fn child_usage() -> io::Result<ChildUsage> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes one `rusage` to memory of that size, and nothing else.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the memory was zeroed, which is a valid `rusage`, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    let number = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    let micros = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(number(time.tv_usec))
    };
    Ok(ChildUsage {
        cpu_micros: micros(usage.ru_utime).saturating_add(micros(usage.ru_stime)),
        // The kernel counts in KiB.
        peak_bytes: number(usage.ru_maxrss).saturating_mul(1024),
    })
}

/// Waits until a process has ended, given a descriptor of that process (`pidfd_open`).
///
/// # Errors
/// Returns an error when the runtime cannot watch the descriptor.
pub async fn wait_for_exit(process: &OwnedFd) -> io::Result<()> {
    let own = process.try_clone()?;
    // SAFETY: an `OwnedFd` is open, stays the same and is closed by no other code while it lives.
    // Here it lives as long as the registration.
    let watched = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
    watched.readable().await.map(drop)
}

/// Checks whether the kernel failed to write some of the file's pages to its disk and has not
/// reported it yet. After such a failure, a later read may return other bytes than were written.
/// Writes nothing itself.
///
/// # Errors
/// Returns the disk's error: EIO or ENOSPC.
pub fn check_writeback(file: &std::fs::File) -> io::Result<()> {
    // SAFETY: the call touches no memory of this process. With this flag alone the kernel waits for
    // the writes in progress (fdatawait) and reports their error.
    match unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Begins to write the file's changed pages to its disk, and does not wait for the end: a sync that
/// follows is shorter.
pub fn begin_writeback(file: &std::fs::File) {
    // SAFETY: the call touches no memory of this process. It is a hint; the later sync reports an
    // error.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Lets the allocator give every allocation of a megabyte or more a memory mapping of its own. The
/// kernel provides the pages of a mapping when they are touched, and takes them back when it is
/// freed. In the allocator's arenas, the read buffers of each mount (fuser makes them of 16 MiB, of
/// which a request fills 1 MiB at most) would be zeroed for every job and stay with the process.
/// Call it at the start of a process.
pub fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}
