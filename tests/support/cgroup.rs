//! A memory cgroup for a daemon: it limits the daemon's memory, and counts the processes that the
//! kernel killed for exceeding it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A memory cgroup below the one of this process (version 1), or below the root (version 2, where
/// only the root may have both groups and processes). It is removed on drop.
pub struct MemoryGroup {
    at: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryGroup {
    /// Creates a group that is limited to this many bytes.
    ///
    /// # Errors
    /// The reason a group cannot be created here.
    pub fn new(bytes: u64) -> Result<Self, Box<dyn Error>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err("only root makes memory cgroups".into());
        }
        let name =
            format!("ion-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (parent, version) = parent()?;
        let group = Self { at: parent.join(name), version };
        fs::create_dir(&group.at).map_err(|error| format!("{}: {error}", group.at.display()))?;
        let (limit, swap) = match version {
            Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
            Version::Two => ("memory.max", "memory.swap.max"),
        };
        fs::write(group.at.join(limit), bytes.to_string())
            .map_err(|error| format!("{limit}: {error}"))?;
        // A kernel without swap has no such file.
        let no_swap = if version == Version::One { bytes } else { 0 };
        let _ = fs::write(group.at.join(swap), no_swap.to_string());
        Ok(group)
    }

    /// Returns the file that lists the group's processes: a process that writes its pid there
    /// joins.
    pub fn processes(&self) -> PathBuf {
        self.at.join("cgroup.procs")
    }

    /// Returns how many processes the kernel killed because the group was full.
    pub fn killed(&self) -> u64 {
        let file =
            if self.version == Version::One { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.at.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel counts the processes that it kills").parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.at).is_ok() || !self.at.exists();
        if std::thread::panicking() {
            gone();
            return;
        }
        super::wait_for("the processes of the cgroup to be gone", gone);
    }
}

fn parent() -> Result<(PathBuf, Version), Box<dyn Error>> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounted = |kind: &str, option: &str| {
        let mut found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        found
            .find(|words| words[2] == kind && words[3].split(',').any(|word| word == option))
            .map(|words| words[1])
    };
    if let Some(root) = mounted("cgroup", "memory") {
        let own = groups
            .lines()
            .find_map(|line| line.split_once(":memory:"))
            .ok_or("no memory cgroup")?
            .1;
        let at = Path::new(root).join(own.trim_start_matches('/'));
        // In another cgroup namespace the path may begin elsewhere.
        return Ok((if at.exists() { at } else { root.into() }, Version::One));
    }
    let root = mounted("cgroup2", "rw").ok_or("no cgroup filesystem is mounted")?;
    let root = Path::new(root);
    fs::write(root.join("cgroup.subtree_control"), "+memory")
        .map_err(|error| format!("memory cannot be bound below {}: {error}", root.display()))?;
    Ok((root.to_owned(), Version::Two))
}

/// Returns the peak memory of a process, in MiB.
pub fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
