//! What a module's process may do beside what its user may: as little as its work needs.
//!
//! Root's files stay root's, also for a module that runs as root; what root could do to the machine
//! without a file (mount, load modules, look into other processes) is gone, and no program that the
//! module starts brings it back.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use super::{Command, Mode};

/// What a module keeps of the daemon's rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rights {
    /// Those that programs need which handle files and users: [`KEPT`].
    #[default]
    Few,
    /// All of them, for a module that says `privileged: true`.
    All,
}

/// The capabilities that a module of root keeps: those by which root differs from its users in its
/// dealings with files, users and its own processes. It is what container runtimes leave. None of
/// them reaches another job or the daemon: these lie behind namespaces and covers, which take
/// `CAP_SYS_ADMIN` to undo, and file handles, which take `CAP_DAC_READ_SEARCH`.
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

/// Numbers that the kernel gives to nobody once it has been through all.
const PIDS_RESERVED: u64 = 300;

/// Gives up, for all that this process starts from now on, what the module is not to have. This
/// process keeps its own rights: it has to end whatever the module leaves, whoever owns it.
pub(super) fn give_up(command: &Command) -> Result<(), String> {
    match (command.rights, command.mode) {
        (Rights::All, _) => Ok(()),
        // No program of this namespace could gain anything by its owner, as no other user is
        // mapped; but one with capabilities of its own could, and would be able to uncover what is
        // covered.
        (Rights::Few, Mode::User) => set_no_new_privs(true).map_err(|error| error.to_string()),
        (Rights::Few, Mode::Root | Mode::Plain) if ion_system::sys::is_root() => drop_capabilities().map_err(|error| {
            format!(
                "the module's capabilities cannot be dropped: {error}; the daemon needs CAP_SETPCAP, or the module \"privileged: true\""
            )
        }),
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
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bounds the processes of the job, where the kernel can bound them for this job alone; elsewhere
/// nothing does. Its own `/proc` stands at `proc`.
pub(super) fn bound_processes(command: &Command, proc: &Path) {
    let kernel = rustix::system::uname();
    let version = version_of(&kernel.release().to_string_lossy());
    // Before, this file was the whole machine's.
    if version >= (6, 14) {
        let settings = proc.join("sys/kernel");
        let most = command.processes.saturating_add(PIDS_RESERVED);
        let _ = std::fs::write(settings.join("pid_max"), most.to_string());
        // The first time round the kernel gives the reserved numbers, too, and so many processes
        // more: it begins behind them.
        let _ = std::fs::write(settings.join("ns_last_pid"), (PIDS_RESERVED - 1).to_string());
    }
    // Of a user in a user namespace; before, the user's processes in all namespaces counted. Root
    // is never bound by it.
    if command.mode == Mode::User && version >= (5, 14) {
        // This process counts, too.
        let most = Some(command.processes.saturating_add(1));
        let _ = setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most });
    }
}

/// Major and minor number of a kernel's release; zeros if there are none.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
