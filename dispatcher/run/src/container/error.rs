//! The errors of containers: of their programs on this machine, of their images and of their users.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ion_model::errors::error_chain;

use super::cgroups::CgroupError;
use super::users::UserError;
use crate::image::ImageError;

/// The reason why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Its image cannot be fetched or unpacked.
    #[error("its image cannot be used")]
    Image(#[from] ImageError),
    /// Jobs have no namespaces here.
    #[error(
        "an image needs namespaces of its own, which this machine does not allow; `ion doctor` \
         says why"
    )]
    NoNamespaces,
    /// This machine has no runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Its image names a signal that does not exist.
    #[error(
        "its image says STOPSIGNAL {0:?}; allowed: names such as SIGINT or SIGRTMIN+3, and numbers"
    )]
    StopSignal(String),
    /// Its memory and processors cannot be limited.
    #[error(
        "its \"resources\" cannot be bound here: {}; run the daemon as root with writable control \
         groups, or leave \"resources\" out",
        error_chain(.0)
    )]
    Resources(#[source] Arc<CgroupError>),
    /// The user that it is to run as is not one of its image.
    #[error(transparent)]
    User(#[from] UserError),
    /// Neither the module nor the image names a program.
    #[error("its image does not say what to run; say it with \"run\"")]
    NoProgram,
    /// The program cannot be started, on whatever machine.
    #[error("program {program:?} of its image cannot be started: {why}")]
    Program {
        /// The program.
        program: String,
        /// Why it cannot be started, and the way out.
        why: String,
    },
    /// The whole root would be writable.
    #[error(
        "its image says VOLUME /, but a container's root is read-only; name the folders that it \
         writes to"
    )]
    WritableRoot,
    /// A folder that it may write to cannot be opened in the image.
    #[error("its folder {} cannot be opened in the image", .at.display())]
    Folder {
        /// The folder.
        at: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl ContainerError {
    /// Returns whether no retry can succeed, on whatever machine: the module or its image is wrong.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::User(_)
            | Self::NoProgram
            | Self::Program { .. }
            | Self::WritableRoot
            | Self::Folder { .. } => true,
            Self::Image(_)
            | Self::NoNamespaces
            | Self::Runtime(_)
            | Self::StopSignal(_)
            | Self::Resources(_) => false,
        }
    }
}

/// The reason why a program that containers need is missing, or does not work.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no container runtime.
    #[error("an image needs crun, which is not there; install it with `apt-get install crun`")]
    NoRuntime,
    /// The runtime cannot be started.
    #[error("{} cannot be started", .runtime.display())]
    Start {
        /// The runtime.
        runtime: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The runtime is not one.
    #[error("{} does not report its version", .0.display())]
    NoVersion(PathBuf),
    /// There is no program that fetches images.
    #[error(
        "there is no skopeo: images come from folders and archives alone; for registries `apt-get \
         install skopeo`"
    )]
    NoFetcher,
}
