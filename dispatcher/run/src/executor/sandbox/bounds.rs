//! Control groups of a job's processes: made, entered and removed by its `job-init`, as the daemon
//! planned them.
//!
//! `job-init` enters them, starts the program, and goes back: what it starts is in them from its
//! first instruction, and it stays out of the way of the kernel's search for whom to kill when
//! memory runs out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file by which a process enters a group.
const PROCESSES: &str = "cgroup.procs";

/// Tries to make and enter a group: somebody who sweeps empty ones may come between.
const TRIES: u32 = 3;

/// How long a group may be busy after its last process was reaped, in tries a millisecond apart.
const REMOVE_TRIES: u32 = 200;

/// One group, in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Group {
    /// Where `job-init` is before and after.
    pub(in super::super) home: PathBuf,
    /// The group.
    pub(in super::super) folder: PathBuf,
    /// Its files and what is written to them. Those with `false` may be missing.
    pub(in super::super) settings: Vec<(String, String, bool)>,
}

/// What bounds a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Bounds {
    pub(in super::super) groups: Vec<Group>,
    /// The file that counts whom the kernel killed for want of memory, and how many bytes there
    /// were.
    pub(in super::super) memory: Option<(PathBuf, u64)>,
}

impl Bounds {
    /// Makes the groups and brings this process into them.
    pub(super) fn enter(&self) -> Result<(), String> {
        self.groups.iter().try_for_each(|group| {
            let mut tries = 1;
            loop {
                match group.make().and_then(|()| enter(&group.folder)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                        tries += 1
                    }
                    entered => {
                        return entered.map_err(|error| {
                            format!(
                                "the limits in {} cannot be set: {error}",
                                group.folder.display()
                            )
                        });
                    }
                }
            }
        })
    }

    /// Brings this process back; what it started stays.
    pub(super) fn leave(&self) -> Result<(), String> {
        self.groups.iter().try_for_each(|group| {
            enter(&group.home)
                .map_err(|error| format!("{} cannot be left: {error}", group.folder.display()))
        })
    }

    /// The bytes of memory that were not enough, if that is what killed one of the job's processes.
    pub(super) fn out_of_memory(&self) -> Option<u64> {
        let (counter, limit) = self.memory.as_ref()?;
        let text = fs::read_to_string(counter).ok()?;
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        (killed.trim() != "0").then_some(*limit)
    }

    /// Removes the groups. Every process that was in them has been reaped.
    pub(super) fn remove(&self) {
        for group in &self.groups {
            for _ in 0..REMOVE_TRIES {
                match fs::remove_dir(&group.folder) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                        let _ = rustix::event::poll(&mut [], Some(&moment));
                    }
                    // What cannot be removed is swept at the next start.
                    _ => break,
                }
            }
        }
    }
}

impl Group {
    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        for (name, value, needed) in &self.settings {
            match fs::write(self.folder.join(name), value) {
                Err(error) if *needed => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn enter(folder: &Path) -> io::Result<()> {
    // The process that writes.
    fs::write(folder.join(PROCESSES), "0")
}
