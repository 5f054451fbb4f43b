//! What the kernel shows of another process: whether it ends, and how, and what it has open.
//!
//! All of it is read from `/proc`, where a thread's number stands for its process as well.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// The flag of a thread that is ending (`PF_EXITING`).
const EXITING: u64 = 0x4;

/// The flag of a thread that a signal has ended (`PF_SIGNALED`).
const SIGNALED: u64 = 0x400;

/// Where the flags and the exit code stand in `/proc/<id>/stat`, counted from the field that
/// follows the name of the program.
const FLAGS_FIELD: usize = 6;
const EXIT_CODE_FIELD: usize = 49;

/// The bits of an exit code that are the number of the signal.
const SIGNAL_BITS: i64 = 0x7f;

/// How many descendants of a process are looked at. A process with more is taken for one that may
/// have given a descriptor away.
const DESCENDANTS_MAX: usize = 1000;

/// A thread of another process, as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenThread {
    /// The number of its process.
    pub process: u32,
    /// How far it is.
    pub course: ProcessCourse,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessCourse {
    /// It runs.
    Running,
    /// It is ending, and has said that it did what it was to do.
    EndingWell,
    /// It is ending in this way.
    EndingBadly(BadEnd),
}

/// How a process ended that did not do what it was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadEnd {
    /// A signal killed it. The number is none where the kernel does not tell it.
    Signal(Option<i32>),
    /// It ended with this exit status.
    Status(i32),
}

impl fmt::Display for BadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(Some(number)) => write!(f, "was killed by signal {number}"),
            Self::Signal(None) => f.write_str("was killed by a signal"),
            Self::Status(status) => write!(f, "ended with exit status {status}"),
        }
    }
}

/// Looks at a thread, given its number. Returns none if it is not visible from here: it is gone, or
/// it belongs to a namespace of process numbers that this process does not see.
pub fn look_at_thread(thread: u32) -> Option<SeenThread> {
    if thread == 0 {
        return None;
    }
    let folder = PathBuf::from(format!("/proc/{thread}"));
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let own = rustix::process::geteuid();
    let is_code_shown = own.is_root() || std::fs::metadata(&folder).ok()?.uid() == own.as_raw();
    let course = parse_course(&stat, is_code_shown)?;
    Some(SeenThread { process: process_of_thread(thread)?, course })
}

/// Returns the process of a thread, if it is visible.
pub fn process_of_thread(thread: u32) -> Option<u32> {
    if thread == 0 {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// Reads how far a thread is from its `stat`. The name of its program may have any characters. Of
/// another user's process the kernel shows no exit code, but the number 0 in its place.
fn parse_course(stat: &str, is_code_shown: bool) -> Option<ProcessCourse> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let flags: u64 = fields.get(FLAGS_FIELD)?.parse().ok()?;
    if flags & EXITING == 0 {
        return Some(ProcessCourse::Running);
    }
    let code: i64 = fields.get(EXIT_CODE_FIELD)?.parse().ok()?;
    if !is_code_shown {
        // A thread that ends because another thread has ended the process has the flag too. It is
        // not told apart, and counts as killed.
        return Some(match flags & SIGNALED {
            0 => ProcessCourse::EndingWell,
            _ => ProcessCourse::EndingBadly(BadEnd::Signal(None)),
        });
    }
    let signal = i32::try_from(code & SIGNAL_BITS).ok()?;
    let status = i32::try_from((code >> 8) & 0xff).ok()?;
    Some(match (signal, status) {
        (0, 0) => ProcessCourse::EndingWell,
        (0, status) => ProcessCourse::EndingBadly(BadEnd::Status(status)),
        (signal, _) => ProcessCourse::EndingBadly(BadEnd::Signal(Some(signal))),
    })
}

/// Returns whether a process, or one of its descendants, has a file open with this inode number.
/// Descriptors that a process may have given to others in other ways are not found. Returns true
/// where the kernel does not let this process look.
pub fn has_open(process: u32, inode: u64) -> bool {
    let mut seen = HashSet::new();
    let mut left = vec![process];
    while let Some(process) = left.pop() {
        if !seen.insert(process) {
            continue;
        }
        if seen.len() > DESCENDANTS_MAX || has_itself_open(process, inode) {
            return true;
        }
        left.extend(children(process));
    }
    false
}

fn has_itself_open(process: u32, inode: u64) -> bool {
    let folder = PathBuf::from(format!("/proc/{process}/fdinfo"));
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // A child that has ended meanwhile has nothing open.
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    entries.flatten().any(|entry| {
        // A descriptor that was closed meanwhile is none.
        let Ok(info) = std::fs::read_to_string(entry.path()) else { return false };
        let number = info.lines().find_map(|line| line.strip_prefix("ino:"));
        number.and_then(|number| number.trim().parse().ok()) == Some(inode)
    })
}

/// Returns the children of a process.
fn children(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    for thread in threads.flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(list.split_ascii_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    found
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests look at processes that they start")]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Returns a `stat` with these flags and this exit code.
    fn stat(flags: u64, code: i64) -> String {
        let mut fields = vec!["0".to_owned(); 50];
        fields[0] = "R".to_owned();
        fields[FLAGS_FIELD] = flags.to_string();
        fields[EXIT_CODE_FIELD] = code.to_string();
        format!("4711 (a) b (c) {}\n", fields.join(" "))
    }

    #[test]
    fn the_end_of_a_process_is_told_from_its_flags_and_its_exit_code() {
        let course = |flags, code| parse_course(&stat(flags, code), true).unwrap();
        assert_eq!(course(0x40_0000, 0), ProcessCourse::Running);
        assert_eq!(course(SIGNALED, 9), ProcessCourse::Running, "it has not begun to end");
        assert_eq!(course(EXITING, 0), ProcessCourse::EndingWell);
        let killed = |number| ProcessCourse::EndingBadly(BadEnd::Signal(number));
        assert_eq!(course(EXITING | SIGNALED, 9), killed(Some(9)));
        assert_eq!(course(EXITING | SIGNALED, 0x80 | 11), killed(Some(11)), "with a core");
        let status = ProcessCourse::EndingBadly(BadEnd::Status(3));
        assert_eq!(course(EXITING, 3 << 8), status);
        // The last thread of a process that another of its threads has ended with status 3.
        assert_eq!(course(EXITING | SIGNALED, 3 << 8), status);
        for broken in ["", "1 (x", "1 (x) R 1 2"] {
            assert_eq!(parse_course(broken, true), None, "{broken:?}");
        }
        let unseen = |flags| parse_course(&stat(flags, 0), false).unwrap();
        assert_eq!(unseen(EXITING), ProcessCourse::EndingWell);
        assert_eq!(unseen(EXITING | SIGNALED), killed(None));
    }

    #[test]
    fn this_process_is_seen_as_running() {
        let own = std::process::id();
        let seen = look_at_thread(own).unwrap();
        assert_eq!(seen, SeenThread { process: own, course: ProcessCourse::Running });
        let own_thread = || rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let other = std::thread::spawn(move || process_of_thread(own_thread()));
        assert_eq!(other.join().unwrap(), Some(own), "a thread belongs to its process");
        assert_eq!((look_at_thread(0), process_of_thread(0)), (None, None));
    }

    #[test]
    fn a_file_that_a_process_or_its_child_has_open_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let file = std::fs::File::create(&path).unwrap();
        let inode = file.metadata().unwrap().ino();
        let own = std::process::id();
        assert!(has_open(own, inode));
        let mut child = Command::new("cat");
        child.stdin(Stdio::piped()).stdout(file);
        let mut child_runs = child.spawn().unwrap();
        // The command holds a descriptor of its own until it is dropped.
        drop(child);
        assert!(has_open(own, inode), "the child has it");
        drop(child_runs.stdin.take());
        child_runs.wait().unwrap();
        assert!(!has_open(own, inode));
    }
}
