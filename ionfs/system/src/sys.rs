//! Every `unsafe` line of Ion: what the kernel offers and no safe library wraps.
#![expect(unsafe_code, reason = "the one room where it is allowed")]

use std::ffi::CString;
use std::io;
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

/// Whether this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

static OPEN_FILES_BEFORE: OnceLock<u64> = OnceLock::new();

/// Allows this process as many descriptors as it may allow itself: every open file of every job
/// takes one. For the start of a process.
pub fn allow_all_descriptors() {
    let now = getrlimit(Resource::Nofile);
    if let Some(current) = now.current {
        let _ = OPEN_FILES_BEFORE.set(current);
    }
    // Refused, it goes on with what it has.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// What [`allow_all_descriptors`] found: what programs expect that this process starts.
pub fn open_files_before() -> Option<u64> {
    OPEN_FILES_BEFORE.get().copied()
}

/// Lets no program that this process starts have a descriptor that this process was started with,
/// beside its three streams: whoever started it may have left open what only they may read. For the
/// start of a process.
pub fn keep_descriptors_to_itself() {
    let (first, last, flags) = (3_u32, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call touches no memory of ours, and closes nothing now.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // Before Linux 5.11.
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok());
        if let Some(descriptor) = number.filter(|&number| number > 2) {
            // SAFETY: the call touches no memory of ours; the listing's own descriptor has the flag
            // already.
            let _ = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Lets no other process without capabilities look into this one, through `/proc` or as a debugger,
/// nor its memory be dumped: it holds credentials, and modules may be of the same user. For the
/// start of a process.
pub fn close_to_other_processes() {
    // It cannot be refused.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Takes a variable out of the environment, so that no trace of its value is left in what `/proc`
/// shows; its value, if it is there and is text. None from a process that has a second thread: it
/// might be reading.
pub fn take_variable(name: &str) -> Option<String> {
    if std::fs::read_dir("/proc/self/task").ok()?.count() != 1 {
        return None;
    }
    let value = std::env::var(name).ok()?;
    let known_as = CString::new(name).ok()?;
    // SAFETY: there is one thread, so nobody reads or changes the environment meanwhile. What
    // `getenv` points to is this process's own memory, up to a zero, and nobody else keeps a
    // pointer to it. The name stays, for the removal to find it.
    unsafe {
        let at = libc::getenv(known_as.as_ptr());
        if !at.is_null() {
            std::ptr::write_bytes(at, 0, libc::strlen(at));
        }
        std::env::remove_var(name);
    }
    Some(value)
}

/// Lets the kernel kill the program that `command` starts when the thread ends that starts it, so
/// at the latest with this process, however it ends. The thread has to wait for the program.
pub fn end_with_this_thread(command: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    let end_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Had the parent died before, nobody would send the signal.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    };
    // SAFETY: between fork and exec it makes two system calls, takes no lock and no memory.
    unsafe { command.pre_exec(end_with_parent) };
}

/// Lets this process hear the signals again that whoever started Ion had it ignore, as `nohup` and
/// a shell's `&` do: its children would ignore them too. All but SIGPIPE, which Rust ignores and
/// gives back to its children.
pub fn hear_ignored_signals() {
    (1..=libc::SIGRTMAX()).filter(|number| *number != libc::SIGPIPE).for_each(hear_if_ignored);
}

/// Lets this process hear of its children's ends: who ignores SIGCHLD, as whoever started Ion may,
/// cannot wait for any.
pub fn hear_of_children() {
    hear_if_ignored(libc::SIGCHLD);
}

fn hear_if_ignored(number: i32) {
    // SAFETY: it reads one structure, and takes no handler away. The C library refuses its own
    // signals.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(number, std::ptr::null(), &raw mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
        {
            libc::signal(number, libc::SIG_DFL);
        }
    }
}

/// A signal by its number, those of real time among them.
pub fn signal(number: i32) -> Option<Signal> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    // SAFETY: the C library leaves these numbers to programs.
    let other =
        || real_time.contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) });
    Signal::from_named_raw(number).or_else(other)
}

/// Makes the mount at `at` and all below it read-only.
///
/// # Errors
/// ENOSYS before Linux 5.12.
pub fn make_read_only(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    let wanted = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_RECURSIVE;
    // SAFETY: the path ends with a zero, and the kernel reads no more of the structure than the
    // size that it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which side of a fork runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The process that called, and the child's pid.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks a process that has one thread only, the child as the first process of these new
/// namespaces.
///
/// # Errors
/// When the process has more threads, or the kernel refuses: EPERM where it does not allow such
/// namespaces.
pub fn fork_single_threaded(namespaces: UnshareFlags) -> io::Result<Fork> {
    let allowed = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWUSER;
    assert!(allowed.contains(namespaces), "nothing but namespaces is made with a process");
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads must not fork"));
    }
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: checked above: there is one thread, so no lock can be held by another in the child.
    // Without CLONE_VM the child has a copy of everything, the stack too. The C library's fork()
    // cannot make namespaces; what it does besides (locks of other threads, handlers) is for
    // programs of several threads.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid).ok().filter(|&pid| pid >= 0).map(Pid::from_raw) {
        None => Err(io::Error::last_os_error()),
        Some(Some(pid)) => Ok(Fork::Parent(pid)),
        Some(None) => Ok(Fork::Child),
    }
}

/// Sends a signal to every process of this PID namespace but the caller, which must be its first
/// process: anywhere else it would reach strangers.
///
/// # Errors
/// ESRCH when there is no other process.
pub fn kill_namespace(signal: Signal) -> io::Result<()> {
    assert!(
        rustix::process::getpid().is_init(),
        "only the first process of a namespace may end all others"
    );
    // SAFETY: kill() touches no memory of ours.
    match unsafe { libc::kill(-1, signal.as_raw()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until this process has ended, given a descriptor of it (`pidfd_open`).
///
/// # Errors
/// When the runtime cannot watch the descriptor.
pub async fn process_end(process: &OwnedFd) -> io::Result<()> {
    let own = process.try_clone()?;
    // SAFETY: an `OwnedFd` is open, stays the same and is closed by nobody else while it lives,
    // which is here as long as the registration.
    let watched = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
    watched.readable().await.map(drop)
}

/// Whether the kernel could not write some of the file's pages to its disk, which nobody was told
/// of yet: what is read of them later need not be what was written. Writes nothing itself.
///
/// # Errors
/// What the disk said: EIO, ENOSPC.
pub fn check_writeback(file: &std::fs::File) -> io::Result<()> {
    // SAFETY: the call touches no memory of ours. Waiting without writing before is fdatawait,
    // which reports the error.
    match unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Begins to write the file's changed pages to its disk, and does not wait for it: a sync that
/// follows is shorter.
pub fn begin_writeback(file: &std::fs::File) {
    // SAFETY: the call touches no memory of ours. It is a hint; what fails is said by the sync.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Lets every allocation of a megabyte or more be a mapping of its own. The kernel gives such pages
/// when they are touched and takes them back at once; from the allocator's arenas, each mount's
/// read buffers (fuser makes them of 16 MiB, of which a request fills 1 MiB at most) would be
/// zeroed for every job and stay with the process. For the start of a process.
pub fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}
