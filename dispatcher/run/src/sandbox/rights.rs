//! The privileges of a module's processes beyond those of its user: as few as its work needs.
//!
//! A module that runs as root keeps root's access to files. What root could do to the machine
//! without a file (mount, load modules, look into other processes) is taken away, and no program
//! that the module starts can get it back.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use super::error::InitError;
use super::{SandboxCommand, SandboxMode};

/// How many of the daemon's rights a module keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rights {
    /// The rights of [`KEPT`], which programs need to handle files and users.
    #[default]
    Few,
    /// All of them, for a module that says `privileged: true`.
    All,
}

/// The capabilities that a module of root keeps: those by which root differs from other users in
/// its dealings with files, users and its own processes. The set follows what container runtimes
/// leave. None of them reaches another job or the daemon: these are protected by namespaces and
/// covers, which take `CAP_SYS_ADMIN` to undo, and by file handles, which take
/// `CAP_DAC_READ_SEARCH`.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// The lowest process id that the kernel assigns again once it has used all ids. The ids below stay
/// unassigned from then on.
const PIDS_RESERVED: u64 = 300;

/// Gives up the rights that the module must not have, for every process that this one starts from
/// now on. This process keeps its own rights, because it has to end every process that the module
/// leaves, also those of other users.
pub(super) fn give_up(command: &SandboxCommand) -> Result<(), InitError> {
    match (command.rights, command.mode) {
        (Rights::All, _) => Ok(()),
        // No program of this namespace can gain anything by its owner, as no other user is mapped.
        // But a program with file capabilities could, and would be able to remove the covers.
        (Rights::Few, SandboxMode::User) => {
            set_no_new_privs(true).map_err(InitError::act("the module's rights cannot be bounded"))
        }
        (Rights::Few, SandboxMode::Root | SandboxMode::Plain) if ion_system::sys::is_root() => {
            drop_capabilities().map_err(|error| InitError::Capabilities(error.into()))
        }
        (Rights::Few, _) => Ok(()),
    }
}

fn drop_capabilities() -> Result<(), Errno> {
    let now = capabilities(None)?;
    set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..now })?;
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel has no capability of this number, nor a higher one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Limits the number of the job's processes, where the kernel can limit them for this job alone;
/// elsewhere nothing limits them. The job's own `/proc` is at `proc`.
pub(super) fn limit_processes(command: &SandboxCommand, proc: &Path) {
    let kernel = rustix::system::uname();
    let version = parse_kernel_version(&kernel.release().to_string_lossy());
    // On older kernels this file applies to the whole machine.
    if version >= (6, 14) {
        let settings = proc.join("sys/kernel");
        let most = command.processes.saturating_add(PIDS_RESERVED);
        let _ = std::fs::write(settings.join("pid_max"), most.to_string());
        // At first the kernel would also assign the reserved ids, and allow that many more
        // processes: so it is made to begin behind them.
        let _ = std::fs::write(settings.join("ns_last_pid"), (PIDS_RESERVED - 1).to_string());
    }
    // This limit counts a user's processes in its user namespace; older kernels counted the user's
    // processes in all namespaces. It never limits root.
    if command.mode == SandboxMode::User && version >= (5, 14) {
        // The limit counts this process, too.
        let most = Some(command.processes.saturating_add(1));
        let _ = setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most });
    }
}

/// Returns the major and minor number of a kernel's release; zeros if there are none.
fn parse_kernel_version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
