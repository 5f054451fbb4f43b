//! The place of a job's control groups, and what is written to them.
//!
//! With version 2 they lie in `ion` at the top of the hierarchy: a group that has processes, such
//! as a service's own, cannot have groups with limits below it. With version 1 they lie below the
//! daemon's own groups, whose limits then hold for them too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ion_jobs::pipeline::Resources;
use ion_model::id::EventId;

use super::super::sandbox::{Cgroup, CgroupLimits, CgroupSetting};

/// The folder of the hierarchies.
const ROOT: &str = "/sys/fs/cgroup";

/// The file that names this process's own groups.
const OWN: &str = "/proc/self/cgroup";

/// The folder of all jobs' groups.
const OURS: &str = "ion";

/// The period in which the kernel counts a group's processor time, in microseconds: the kernel's
/// default.
const PERIOD: u64 = 100_000;

/// The smallest quota that the kernel accepts, in microseconds.
const QUOTA_LEAST: u64 = 1000;

/// The reason why this process may not make control groups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// This process's own groups are not known.
    #[error("{OWN} cannot be read")]
    Unreadable(#[source] io::Error),
    /// A hierarchy is missing, or this process has no group in it.
    #[error("there is no control group of {controller:?} in {}", .root.display())]
    Missing {
        /// What the hierarchy controls.
        controller: &'static str,
        /// The folder of the hierarchies.
        root: PathBuf,
    },
    /// A group cannot be made, or its file cannot be written.
    #[error("{} cannot be written", .path.display())]
    Unwritable {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The hierarchies of this machine, and the daemon's groups in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// Version 2: one hierarchy for all controllers.
    Unified { root: PathBuf, own: PathBuf },
    /// Version 1: one hierarchy for each controller.
    Separate { memory: PathBuf, cpu: PathBuf, pids: PathBuf },
}

impl Cgroups {
    /// Finds the hierarchies, if this process may make groups in them. Removes empty groups of
    /// earlier jobs.
    ///
    /// # Errors
    /// Why there are none that this process may use.
    pub(super) fn find() -> Result<Self, CgroupError> {
        let own = fs::read_to_string(OWN).map_err(CgroupError::Unreadable)?;
        let found = Self::find_below(Path::new(ROOT), &own)?;
        found.make_ready()?;
        found.sweep();
        Ok(found)
    }

    fn find_below(root: &Path, own: &str) -> Result<Self, CgroupError> {
        let place = |is: &dyn Fn(&str) -> bool| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                is(controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        if root.join("cgroup.controllers").exists() {
            let path = place(&|controllers| controllers.is_empty()).unwrap_or_default();
            return Ok(Self::Unified { root: root.to_owned(), own: root.join(path) });
        }
        let of = |controller: &'static str| {
            let path = place(&|controllers| controllers.split(',').any(|one| one == controller));
            let folder =
                path.map(|path| root.join(controller).join(path)).filter(|folder| folder.is_dir());
            folder.ok_or_else(|| CgroupError::Missing { controller, root: root.to_owned() })
        };
        Ok(Self::Separate { memory: of("memory")?, cpu: of("cpu")?, pids: of("pids")? })
    }

    fn make_ready(&self) -> Result<(), CgroupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CgroupError::Unwritable { path, source }
        };
        for ours in self.job_folders() {
            fs::create_dir_all(&ours).map_err(failed(&ours))?;
            // The folder may exist and belong to another user: so a group is made in it.
            let tried = ours.join(EventId::random().as_str());
            fs::create_dir(&tried).and_then(|()| fs::remove_dir(&tried)).map_err(failed(&ours))?;
        }
        if let Self::Unified { root, .. } = self {
            for folder in [root.clone(), root.join(OURS)] {
                let file = folder.join("cgroup.subtree_control");
                fs::write(&file, "+memory +cpu +pids").map_err(failed(&file))?;
            }
        }
        Ok(())
    }

    /// Returns the folders of all jobs' groups.
    fn job_folders(&self) -> Vec<PathBuf> {
        match self {
            Self::Unified { root, .. } => vec![root.join(OURS)],
            Self::Separate { memory, cpu, pids } => {
                [memory, cpu, pids].map(|own| own.join(OURS)).to_vec()
            }
        }
    }

    /// Removes the groups of `job-init`s that were killed. The kernel does not remove a group that
    /// still has processes.
    fn sweep(&self) {
        for group in
            self.job_folders().iter().filter_map(|ours| fs::read_dir(ours).ok()).flatten().flatten()
        {
            let _ = fs::remove_dir(group.path());
        }
    }

    /// Returns the groups of one job.
    pub(super) fn plan_limits(
        &self,
        name: &str,
        resources: Resources,
        processes: u64,
    ) -> CgroupLimits {
        let required = |file: &str, value: String| CgroupSetting {
            file: file.to_owned(),
            value,
            required: true,
        };
        let optional =
            |file: &str, value: String| CgroupSetting { required: false, ..required(file, value) };
        let quota = |millis: u64| (millis * PERIOD / 1000).max(QUOTA_LEAST);
        let Resources { cpu_millis, memory_bytes, .. } = resources;
        let mut settings = vec![required("pids.max", processes.to_string())];
        match self {
            Self::Unified { root, own } => {
                let folder = root.join(OURS).join(name);
                if let Some(bytes) = memory_bytes {
                    settings.push(required("memory.max", bytes.to_string()));
                    // Without swap the job cannot go on, slowly, on the disk. With the OOM group
                    // all its processes end together, as on a cluster.
                    settings.push(optional("memory.swap.max", "0".into()));
                    settings.push(optional("memory.oom.group", "1".into()));
                }
                settings.extend(
                    cpu_millis
                        .map(|millis| required("cpu.max", format!("{} {PERIOD}", quota(millis)))),
                );
                let memory = memory_bytes.map(|bytes| (folder.join("memory.events"), bytes));
                CgroupLimits {
                    groups: vec![Cgroup { home: own.clone(), folder, settings }],
                    memory,
                }
            }
            Self::Separate { memory: of_memory, cpu, pids: of_pids } => {
                let group = |own: &PathBuf, settings| Cgroup {
                    home: own.clone(),
                    folder: own.join(OURS).join(name),
                    settings,
                };
                let mut groups = vec![group(of_pids, settings)];
                if let Some(bytes) = memory_bytes {
                    let settings = vec![
                        required("memory.limit_in_bytes", bytes.to_string()),
                        optional("memory.memsw.limit_in_bytes", bytes.to_string()),
                    ];
                    groups.push(group(of_memory, settings));
                }
                if let Some(millis) = cpu_millis {
                    let settings = vec![
                        required("cpu.cfs_period_us", PERIOD.to_string()),
                        required("cpu.cfs_quota_us", quota(millis).to_string()),
                    ];
                    groups.push(group(cpu, settings));
                }
                let counter = of_memory.join(OURS).join(name).join("memory.oom_control");
                CgroupLimits { groups, memory: memory_bytes.map(|bytes| (counter, bytes)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCES: Resources =
        Resources { cpu_millis: Some(500), memory_bytes: Some(1 << 26), gpus: None };

    #[test]
    fn the_second_version_has_one_group_and_the_first_one_for_each() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for controller in ["memory", "cpu", "pids"] {
            fs::create_dir_all(root.join(controller).join("a")).unwrap();
        }
        let own = "4:memory:/a\n3:cpu,cpuacct:/a\n2:pids:/a\n0::/system.slice/ion.service\n";
        let separate = Cgroups::find_below(root, own).unwrap();
        let bounds = separate.plan_limits("j", RESOURCES, 9);
        let folders: Vec<_> = bounds.groups.iter().map(|group| group.folder.clone()).collect();
        assert_eq!(
            folders,
            ["pids/a/ion/j", "memory/a/ion/j", "cpu/a/ion/j"].map(|path| root.join(path))
        );
        assert_eq!(bounds.groups[2].settings[1].value, "50000");

        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let unified = Cgroups::find_below(root, own).unwrap();
        unified.make_ready().unwrap();
        assert_eq!(
            fs::read(root.join("ion/cgroup.subtree_control")).unwrap(),
            b"+memory +cpu +pids"
        );
        let bounds = unified.plan_limits("j", RESOURCES, 9);
        let group = &bounds.groups[0];
        assert_eq!(
            (&group.home, &group.folder),
            (&root.join("system.slice/ion.service"), &root.join("ion/j"))
        );
        let settings =
            group.settings.iter().map(|setting| format!("{}={}", setting.file, setting.value));
        let expected = "pids.max=9 memory.max=67108864 memory.swap.max=0 memory.oom.group=1 \
                        cpu.max=50000 100000";
        assert_eq!(settings.collect::<Vec<_>>().join(" "), expected);
        assert_eq!(unified.plan_limits("j", Resources::default(), 9).groups[0].settings.len(), 1);
    }
}
