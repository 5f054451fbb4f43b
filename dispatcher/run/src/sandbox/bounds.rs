//! The control groups of a job's processes, as the daemon planned them: its `job-init` makes,
//! enters and removes them.
//!
//! `job-init` enters the groups, starts the program, and leaves them again. So the program is in
//! them from its first instruction, and `job-init` stays outside: the kernel does not consider it
//! when memory runs out and it looks for a process to kill.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ion_system::patience::Retry;
use serde::{Deserialize, Serialize};

use super::ProcessUsage;
use super::error::InitError;

/// The file that a process writes to enter a group.
const PROCESSES: &str = "cgroup.procs";

/// The tries to make and enter a group: another process that sweeps empty groups may remove it in
/// between.
const ENTER: Retry = Retry::times(3);

/// The tries to remove a group: it may be busy after its last process was reaped.
const REMOVE: Retry = Retry::times(200).waiting(Duration::from_millis(1));

/// One group, in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// The group that `job-init` is in before and after.
    pub(crate) home: PathBuf,
    /// The folder of the job's group.
    pub(crate) folder: PathBuf,
    /// The group's files, and what is written to them.
    pub(crate) settings: Vec<CgroupSetting>,
}

/// One setting of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupSetting {
    /// The name of the group's file.
    pub(crate) file: String,
    /// What is written to the file.
    pub(crate) value: String,
    /// Whether the group cannot be made if the file cannot be written. Some kernels lack the files
    /// of the other settings.
    pub(crate) required: bool,
}

/// The control groups that limit a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupLimits {
    pub(crate) groups: Vec<Cgroup>,
    /// The file that counts the processes that the kernel killed for lack of memory, and the memory
    /// limit in bytes.
    pub(crate) memory: Option<(PathBuf, u64)>,
}

impl CgroupLimits {
    /// Makes the groups and moves this process into them.
    pub(super) fn enter(&self) -> Result<(), InitError> {
        self.groups.iter().try_for_each(|group| {
            let entered = ENTER.run_blocking(
                |_| group.make().and_then(|()| enter_group(&group.folder)),
                |failed| failed.error.kind() == io::ErrorKind::NotFound,
            );
            entered.map_err(|source| InitError::Limits { folder: group.folder.clone(), source })
        })
    }

    /// Moves this process back; the processes that it started stay.
    pub(super) fn leave(&self) -> Result<(), InitError> {
        self.groups.iter().try_for_each(|group| {
            enter_group(&group.home).map_err(InitError::path(&group.folder, "cannot be left"))
        })
    }

    /// Returns the memory limit in bytes, if the kernel killed one of the job's processes for
    /// exceeding it.
    pub(super) fn exceeded_memory_limit(&self) -> Option<u64> {
        let (counter, limit) = self.memory.as_ref()?;
        let text = fs::read_to_string(counter).ok()?;
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        (killed.trim() != "0").then_some(*limit)
    }

    /// Returns what the processes of the groups used. A value that no group has is that of
    /// `children`.
    pub(super) fn usage(&self, children: Option<ProcessUsage>) -> Option<ProcessUsage> {
        let number = |name: &str, from: fn(&str) -> Option<&str>| {
            self.groups.iter().find_map(|group| {
                let text = fs::read_to_string(group.folder.join(name)).ok()?;
                from(&text)?.trim().parse::<u64>().ok()
            })
        };
        let cpu_micros = number("cpu.stat", |text| {
            text.lines().find_map(|line| line.strip_prefix("usage_usec "))
        });
        // The first version counts in nanoseconds.
        let cpu_micros =
            cpu_micros.or_else(|| Some(number("cpuacct.usage", |text| Some(text))? / 1000));
        let peak_bytes = number("memory.peak", |text| Some(text))
            .or_else(|| number("memory.max_usage_in_bytes", |text| Some(text)));
        Some(ProcessUsage {
            cpu_micros: cpu_micros.or(children.map(|children| children.cpu_micros))?,
            peak_bytes: peak_bytes.or(children.map(|children| children.peak_bytes))?,
        })
    }

    /// Removes the groups. Every process in them must have been reaped.
    pub(super) fn remove(&self) {
        for group in &self.groups {
            // A group that cannot be removed is swept at the daemon's next start.
            let _ = REMOVE.run_blocking(
                |_| fs::remove_dir(&group.folder),
                |failed| failed.error.kind() == io::ErrorKind::ResourceBusy,
            );
        }
    }
}

impl Cgroup {
    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        for CgroupSetting { file, value, required } in &self.settings {
            match fs::write(self.folder.join(file), value) {
                Err(error) if *required => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn enter_group(folder: &Path) -> io::Result<()> {
    // 0 stands for the process that writes.
    fs::write(folder.join(PROCESSES), "0")
}
