//! The errors of both sides: of the daemon, which asks for a sandbox, and of the `job-init` that
//! makes it. The second kind goes to the daemon as text, in [`InitReport`](super::InitReport).

use std::io;
use std::path::{Path, PathBuf};

use super::MESSAGE_MAX;

/// The reason why a sandbox could not be made, or why it is not known how its module ended.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `job-init` itself could not be started.
    #[error("the job's first process cannot be started")]
    Spawn(#[source] io::Error),
    /// `job-init` reported why it could not go on: a mount is refused, or there is no memory.
    #[error("{0}")]
    Failed(String),
    /// `job-init` reported why no retry can help: the program is missing, or is not executable.
    #[error("{0}")]
    CannotRun(String),
    /// `job-init` ended, or sent no report in time.
    #[error("the job's first process ended, or did not answer in time, without saying why")]
    Silent,
    /// The order to start the module is too long for one message.
    #[error(
        "the module's arguments and environment take {0} bytes; at most {MESSAGE_MAX} are allowed"
    )]
    TooLong(usize),
    /// An order cannot be written, or a report cannot be read.
    #[error("a message to or from the job's first process is malformed")]
    Malformed(#[from] serde_json::Error),
}

/// The reason why a `job-init` could not make the sandbox, or start the module in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// A system call failed that concerns no path.
    #[error("{what}")]
    Act {
        /// What cannot be done.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Something could not be done with a path.
    #[error("{} {what}", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What cannot be done with it.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A mount, or a change of the root, failed.
    #[error("{what} {}", .at.display())]
    Mount {
        /// What cannot be done; the path follows.
        what: &'static str,
        /// The place of the mount.
        at: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The tree cannot be at this path.
    #[error("{} is not a folder directly below /", .0.display())]
    MountPoint(PathBuf),
    /// A covered folder was replaced.
    #[error(
        "{} is another folder than when the daemon started; move it back, or restart the daemon",
        .0.display()
    )]
    Replaced(PathBuf),
    /// A device cannot be made in the sandbox's `/dev`.
    #[error("a device cannot be made in {}", .at.display())]
    Device {
        /// The sandbox's `/dev`.
        at: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The FUSE device cannot be opened.
    #[error("/dev/fuse cannot be opened: {source}{way_out}")]
    Fuse {
        /// What helps.
        way_out: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file of the container's bundle cannot be written.
    #[error("the container's {name} cannot be written")]
    Bundle {
        /// The file's name.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The limits of a control group cannot be set.
    #[error("the limits in {} cannot be set", .folder.display())]
    Limits {
        /// The group's folder.
        folder: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The module would keep capabilities that it must not have.
    #[error(
        "the module's capabilities cannot be dropped: {0}; the daemon needs CAP_SETPCAP, or the \
         module \"privileged: true\""
    )]
    Capabilities(#[source] io::Error),
    /// The command names no program.
    #[error("there is no program to run")]
    NoProgram,
    /// The working folder does not exist.
    #[error("the folder {} is not there", .0.display())]
    NoFolder(PathBuf),
    /// The program does not exist.
    #[error("program {0:?} is not there (nor, for a script, the interpreter in its first line)")]
    Missing(String),
    /// The program may not be executed.
    #[error("program {0:?} is not executable; allow it with `chmod +x {0}`")]
    NotExecutable(String),
    /// The kernel cannot execute the program.
    #[error(
        "program {0:?} is not an executable file: a script needs a first line such as #!/bin/sh"
    )]
    NoFormat(String),
    /// The program cannot be started.
    #[error("program {program:?} cannot be started")]
    Start {
        /// The program.
        program: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The module's process has no id.
    #[error("the module has no process id")]
    NoPid,
}

impl InitError {
    /// Returns whether no retry can succeed: the command itself is wrong.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::NoProgram
                | Self::NoFolder(_)
                | Self::Missing(_)
                | Self::NotExecutable(_)
                | Self::NoFormat(_)
        )
    }

    /// Returns a function that makes [`InitError::Act`] of the system's error.
    pub(super) fn act<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Act { what, source: error.into() }
    }

    /// Returns a function that makes [`InitError::Path`] of the system's error.
    pub(super) fn path<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Path { path: path.to_owned(), what, source: error.into() }
    }

    /// Returns a function that makes [`InitError::Mount`] of the system's error.
    pub(super) fn mount<E: Into<io::Error>>(what: &'static str, at: &Path) -> impl Fn(E) -> Self {
        move |error| Self::Mount { what, at: at.to_owned(), source: error.into() }
    }
}
