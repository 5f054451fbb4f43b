//! The secrets of modules: where a dispatcher finds their values, and how they are kept out of what
//! it writes.
//!
//! # How it works
//! A pipeline file, a module's document and a source's document have names. Each attempt reads the
//! values anew from [`SecretFolders`], so a rotated value needs no restart. The sandbox makes files
//! of them that only the job's processes see; a [`SecretMask`] replaces them in the job's output.
//!
//! # What it never does
//! Put a value into a document, an environment, a command line, a span, a log or an error. The only
//! file that a value is ever written to is the one that its module reads.

mod mask;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ion_jobs::pipeline::{Module, ParameterKind};
use ion_model::event::Event;
use ion_model::secret::{SECRETS_FOLDER, SecretOrigin};
use ion_model::source::SourceDefinition;
use rustix::fs::{CWD, Mode as Permissions, OFlags};

pub use self::mask::SecretMask;
pub use self::values::{SecretValue, Secrets};

/// The most bytes of a secret: a private key with its certificates fits many times.
pub const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The permissions of users other than the owner.
const OTHERS: u32 = 0o077;

/// The permissions of users who are neither the owner nor in the group.
const STRANGERS: u32 = 0o007;

/// Why the values of secrets cannot be had. No text has a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No folder has it.
    #[error("secret {name:?} is not there: looked for {looked}; {way_out}")]
    Missing {
        /// The secret.
        name: String,
        /// The files that would have it.
        looked: String,
        /// What helps.
        way_out: &'static str,
    },
    /// The folder that the operator named is not there.
    #[error("{}, the folder of secrets (ION_SECRETS), cannot be used", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Users other than the owner may read the folder that the operator named.
    #[error(
        "{folder}, the folder of secrets (ION_SECRETS), can be entered by others than its owner (mode \
         {mode:o}); close it with `chmod 700 {folder}`"
    )]
    FolderOpen {
        /// The folder.
        folder: String,
        /// Its permissions.
        mode: u32,
    },
    /// Another user owns the folder that the operator named.
    #[error(
        "{folder}, the folder of secrets (ION_SECRETS), belongs to user {uid}; give it to the user \
         of this process with `chown`"
    )]
    FolderOfOther {
        /// The folder.
        folder: String,
        /// Its owner.
        uid: u32,
    },
    /// The folder is a part of the home that modules may see.
    #[error(
        "{}, the folder of secrets (ION_SECRETS), is in the home, where a program that lies in the \
         home would see it; name a folder outside of {}", .folder.display(), .home.display()
    )]
    FolderInHome {
        /// The folder.
        folder: PathBuf,
        /// The home.
        home: PathBuf,
    },
    /// Every user of the machine may read the file.
    #[error(
        "secret {name:?}: every user of this machine may read {path}; close it with `chmod o= {path}`"
    )]
    FileOpen {
        /// The secret.
        name: String,
        /// The file.
        path: String,
    },
    /// The file cannot be read.
    #[error("secret {name:?}: {} cannot be read", .path.display())]
    Unreadable {
        /// The secret.
        name: String,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is no file.
    #[error("secret {name:?}: {} is no file", .path.display())]
    NoFile {
        /// The secret.
        name: String,
        /// What stands in the place of the file.
        path: PathBuf,
    },
    /// It is too long.
    #[error(
        "secret {name:?}: {} has more than {SECRET_BYTES_MAX} bytes, which is the most of a secret",
        .path.display()
    )]
    TooLong {
        /// The secret.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Jobs have no namespaces of their own, and a link has no folder.
    #[error(
        "a link can have secrets only where it has namespaces of its own; `ion doctor` says why it \
         has none"
    )]
    NoNamespaces,
}

/// What helps when no folder has a secret, if the operator named a folder, and if not.
const WAY_OUT_OWN: &str = "write its value into this file (mode 0600)";
const WAY_OUT: &str = "write its value into a file of that name in a folder of your own (mode \
                       0700), and name the folder with ION_SECRETS or --secrets";

/// One secret that a job needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NeededSecret {
    /// The name of the file that the module reads.
    pub(crate) name: String,
    /// Where its value is.
    pub(crate) origin: SecretOrigin,
}

impl NeededSecret {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), origin: SecretOrigin::Named(name.to_owned()) }
    }
}

/// Returns the secrets that a job of this module on this event needs: those that the module names,
/// and the secret parameters of the source that the event is a run of.
pub(crate) fn needed_by(module: &Module, event: &Event) -> Vec<NeededSecret> {
    let tick = event.tick.as_deref();
    let of_source = secret_parameters(module).filter_map(|parameter| {
        let origin = tick?.secrets.get(parameter)?.clone();
        Some(NeededSecret { name: parameter.clone(), origin })
    });
    module.secrets.iter().map(|name| NeededSecret::named(name)).chain(of_source).collect()
}

/// Returns whether a job of this module on this event needs secrets.
#[cfg(feature = "kubernetes")]
pub(crate) fn are_needed_by(module: &Module, event: &Event) -> bool {
    !needed_by(module, event).is_empty()
}

/// The folders of this machine where a process finds the values of secrets.
#[derive(Clone, Debug, Default)]
pub struct SecretFolders {
    /// The folder that the operator named. Then no other is looked into.
    own: Option<PathBuf>,
    /// The folders that a service manager or a container runtime has made for this process. They
    /// are looked into if the operator named none.
    provided: Vec<PathBuf>,
    /// Values that a command was given.
    given: BTreeMap<String, SecretValue>,
}

impl SecretFolders {
    /// Returns the folders: `own`, which the operator named, or else `credentials`, which systemd
    /// has made for this service, and `/run/secrets`. A folder of the operator's own must be outside
    /// of `home`, and closed to other users.
    ///
    /// # Errors
    /// Why the operator's own folder cannot be used.
    pub fn new(
        own: Option<PathBuf>,
        credentials: Option<PathBuf>,
        home: &Path,
    ) -> Result<Self, SecretError> {
        let provided = credentials.into_iter().chain([PathBuf::from(SECRETS_FOLDER)]).collect();
        let Some(own) = own else { return Ok(Self { provided, ..Self::default() }) };
        open_own_folder(&own)?;
        let is_in_home = match (own.canonicalize(), home.canonicalize()) {
            (Ok(folder), Ok(home)) => folder.starts_with(home),
            _ => false,
        };
        match is_in_home {
            true => Err(SecretError::FolderInHome { folder: own, home: home.to_owned() }),
            false => Ok(Self { own: Some(own), provided, ..Self::default() }),
        }
    }

    /// Adds a value that a command was given. It comes before every folder.
    pub fn give(&mut self, name: &str, value: SecretValue) {
        self.given.insert(name.to_owned(), value);
    }

    /// Returns the folders that are looked into, in this order.
    pub fn searched(&self) -> Vec<PathBuf> {
        match &self.own {
            Some(own) => vec![own.clone()],
            None => self.provided.clone(),
        }
    }

    /// Returns the folders that exist. No job may see them: a module has only the secrets that it
    /// names.
    pub fn existing(&self) -> Vec<PathBuf> {
        let all = self.own.iter().chain(&self.provided);
        all.filter(|folder| folder.is_dir()).cloned().collect()
    }

    /// Returns whether a job of this module on this event needs any.
    pub fn are_needed(&self, module: &Module, event: &Event) -> bool {
        !self.needed_by_job(module, event).is_empty()
    }

    /// Reads the secrets of a job of this module on this event.
    ///
    /// # Errors
    /// Which secret cannot be had, where it was looked for, and what helps.
    pub fn read(&self, module: &Module, event: &Event) -> Result<Secrets, SecretError> {
        let needed = self.needed_by_job(module, event);
        let read = |needed: &NeededSecret| Ok((needed.name.clone(), self.find(needed)?));
        Ok(Secrets::new(needed.iter().map(read).collect::<Result<_, SecretError>>()?))
    }

    /// Reads those secrets of a job that this machine has. A pod's secrets are its cluster's; what
    /// this machine has of them can be kept out of logs.
    pub fn read_present(&self, module: &Module, event: &Event) -> Secrets {
        let needed = self.needed_by_job(module, event);
        let read = |needed: &NeededSecret| Some((needed.name.clone(), self.find(needed).ok()?));
        Secrets::new(needed.iter().filter_map(read).collect())
    }

    /// Reads the secrets that the module itself names: those of a link, which may start before its
    /// event is there.
    ///
    /// # Errors
    /// As [`SecretFolders::read`].
    pub fn read_named(&self, names: &[String]) -> Result<Secrets, SecretError> {
        let read = |name: &String| Ok((name.clone(), self.find(&NeededSecret::named(name))?));
        Ok(Secrets::new(names.iter().map(read).collect::<Result<_, SecretError>>()?))
    }

    /// Checks that the secret parameters of a source can be read here.
    ///
    /// # Errors
    /// As [`SecretFolders::read`].
    pub fn check_source(&self, source: &SourceDefinition) -> Result<(), SecretError> {
        let mut needed = source
            .secrets
            .iter()
            .map(|(name, origin)| NeededSecret { name: name.clone(), origin: origin.clone() });
        needed.try_for_each(|needed| self.find(&needed).map(drop))
    }

    fn needed_by_job(&self, module: &Module, event: &Event) -> Vec<NeededSecret> {
        let mut needed = needed_by(module, event);
        // A command that runs the module once may give its secret parameters; no source says where
        // they are then.
        let given = secret_parameters(module)
            .filter(|parameter| event.tick.is_none() && self.given.contains_key(*parameter));
        needed.extend(given.map(|name| NeededSecret::named(name)));
        needed
    }

    fn find(&self, needed: &NeededSecret) -> Result<SecretValue, SecretError> {
        let NeededSecret { name, origin } = needed;
        if let Some(given) = self.given.get(name) {
            return Ok(given.clone());
        }
        let key = match origin {
            SecretOrigin::File(path) => return read_named_file(name, path),
            SecretOrigin::Named(key) => key,
        };
        if let Some(own) = &self.own {
            // Its permissions may have changed since the start.
            let folder = open_own_folder(own)?;
            let found = read_file(name, folder, Path::new(key), &own.join(key))?;
            return found.ok_or_else(|| self.missing(key));
        }
        for folder in &self.provided {
            let path = folder.join(key);
            if let Some(value) = read_file(name, CWD, &path, &path)? {
                return Ok(value);
            }
        }
        Err(self.missing(key))
    }

    fn missing(&self, name: &str) -> SecretError {
        let looked = self.searched();
        let looked: Vec<_> =
            looked.iter().map(|folder| folder.join(name).display().to_string()).collect();
        let way_out = if self.own.is_some() { WAY_OUT_OWN } else { WAY_OUT };
        SecretError::Missing { name: name.to_owned(), looked: looked.join(" and "), way_out }
    }
}

/// Returns the parameters of a module that are secrets.
pub fn secret_parameters(module: &Module) -> impl Iterator<Item = &String> {
    let all = module.params.iter().flatten();
    all.filter(|(_, parameter)| parameter.kind == ParameterKind::Secret).map(|(name, _)| name)
}

/// Opens the folder that the operator named, if only its owner may use it.
fn open_own_folder(folder: &Path) -> Result<File, SecretError> {
    let unusable = |source| SecretError::Folder { folder: folder.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Permissions::empty());
    let opened = File::from(opened.map_err(|error| unusable(error.into()))?);
    let metadata = opened.metadata().map_err(unusable)?;
    let named = folder.display().to_string();
    let own = rustix::process::geteuid().as_raw();
    match (metadata.mode() & 0o7777, metadata.uid()) {
        (mode, _) if mode & OTHERS != 0 => Err(SecretError::FolderOpen { folder: named, mode }),
        (_, uid) if uid != own => Err(SecretError::FolderOfOther { folder: named, uid }),
        _ => Ok(opened),
    }
}

/// Reads the file that a source names, if not every user may read it.
fn read_named_file(name: &str, path: &Path) -> Result<SecretValue, SecretError> {
    let opened = open_file(CWD, path);
    let unreadable =
        |source| SecretError::Unreadable { name: name.to_owned(), path: path.to_owned(), source };
    let file = opened.map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    if mode & STRANGERS != 0 {
        let path = path.display().to_string();
        return Err(SecretError::FileOpen { name: name.to_owned(), path });
    }
    read_value(name, file, path)
}

/// Reads a file of a folder; none if it is not there.
fn read_file(
    name: &str,
    folder: impl AsFd,
    at: &Path,
    path: &Path,
) -> Result<Option<SecretValue>, SecretError> {
    match open_file(folder, at) {
        Ok(file) => read_value(name, file, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            Err(SecretError::Unreadable { name: name.to_owned(), path: path.to_owned(), source })
        }
    }
}

fn open_file(folder: impl AsFd, at: &Path) -> io::Result<File> {
    // Without NONBLOCK a pipe in the place of the file would hold up the attempt.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, at, flags, Permissions::empty())?.into())
}

fn read_value(name: &str, file: File, path: &Path) -> Result<SecretValue, SecretError> {
    let unreadable =
        |source| SecretError::Unreadable { name: name.to_owned(), path: path.to_owned(), source };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(SecretError::NoFile { name: name.to_owned(), path: path.to_owned() });
    }
    read_bounded(name, file, path)
}

fn read_bounded(name: &str, file: File, path: &Path) -> Result<SecretValue, SecretError> {
    let (name, path) = (name.to_owned(), path.to_owned());
    let mut value = Vec::new();
    match file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut value) {
        Ok(length) if length as u64 > SECRET_BYTES_MAX => Err(SecretError::TooLong { name, path }),
        Ok(_) => Ok(SecretValue::new(value)),
        Err(source) => Err(SecretError::Unreadable { name, path, source }),
    }
}

/// Reads the file that a command was given as the value of a secret. It may be a pipe, as in
/// `--secret TOKEN=<(pass show token)`.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn read_given(name: &str, path: &Path) -> Result<SecretValue, SecretError> {
    let unreadable =
        |source| SecretError::Unreadable { name: name.to_owned(), path: path.to_owned(), source };
    read_bounded(name, File::open(path).map_err(unreadable)?, path)
}

#[cfg(test)]
mod tests;
