//! One mount: a kernel device and the threads that answer it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{Config, Filesystem, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use tokio::runtime::Handle as Runtime;

use crate::Tree;
use crate::batch::BatchTree;
use crate::fuse::{BatchKernel, Kernel};

/// The number of threads that answer one mount. Each thread blocks only for local disk operations;
/// the rest runs in tasks. More threads gain nothing on few cores and cost a buffer each.
const THREADS: usize = 2;

/// A tree that is being served.
#[derive(Debug)]
pub struct ServedMount {
    served: tokio::task::JoinHandle<io::Result<()>>,
    /// The unmounter and the directory of a mount that [`mount_at`] made.
    unmounter: Option<(fuser::SessionUnmounter, PathBuf)>,
}

fn config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.mount_options = vec![
        MountOption::FSName("ion".into()),
        MountOption::Subtype("ion".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    config
}

/// What a mount shows.
#[derive(Clone, Debug)]
pub enum MountRoot {
    /// One tree.
    Tree(Arc<Tree>),
    /// The trees of the jobs of a batch.
    Batch(Arc<BatchTree>),
}

impl MountRoot {
    /// Ends the waits of jobs that are ended by force: see
    /// [`JobTree::stop`](crate::job::JobTree::stop).
    pub fn stop(&self) {
        match self {
            Self::Tree(tree) => tree.stop(),
            Self::Batch(batch) => batch.stop(),
        }
    }
}

impl From<Arc<Tree>> for MountRoot {
    fn from(tree: Arc<Tree>) -> Self {
        Self::Tree(tree)
    }
}

impl From<Arc<BatchTree>> for MountRoot {
    fn from(batch: Arc<BatchTree>) -> Self {
        Self::Batch(batch)
    }
}

/// Serves trees through a kernel device that is already mounted. Must be called inside a Tokio
/// runtime.
///
/// # Errors
/// If the FUSE handshake with the kernel fails.
pub async fn serve(device: OwnedFd, root: impl Into<MountRoot>) -> io::Result<ServedMount> {
    match root.into() {
        MountRoot::Tree(tree) => serve_kernel(device, Kernel::new(tree, Runtime::current())).await,
        MountRoot::Batch(batch) => {
            serve_kernel(device, BatchKernel::new(batch, Runtime::current())).await
        }
    }
}

async fn serve_kernel<K>(device: OwnedFd, kernel: K) -> io::Result<ServedMount>
where
    K: Filesystem + Send + Sync + 'static,
{
    let session = ion_system::run_blocking(move || {
        Session::from_fd(kernel, device, SessionACL::All, config(SessionACL::All))
    })
    .await?;
    Ok(ServedMount { served: run(session), unmounter: None })
}

/// Which users of the machine may enter a mount, where the tree's own permissions let them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitors {
    /// The user who mounts it and no other, not even root.
    Owner,
    /// All users.
    Everybody,
}

/// Mounts trees at `directory` in this process's own mount namespace and serves it. Must be called
/// inside a Tokio runtime.
///
/// # Errors
/// If mounting is refused: an ordinary user needs the `fusermount3` program of the package `fuse3`,
/// and for [`Visitors::Everybody`] the line `user_allow_other` in `/etc/fuse.conf`.
pub async fn mount_at(
    directory: &Path,
    root: impl Into<MountRoot>,
    visitors: Visitors,
) -> io::Result<ServedMount> {
    match root.into() {
        MountRoot::Tree(tree) => {
            mount_kernel(directory, Kernel::new(tree, Runtime::current()), visitors).await
        }
        MountRoot::Batch(batch) => {
            mount_kernel(directory, BatchKernel::new(batch, Runtime::current()), visitors).await
        }
    }
}

async fn mount_kernel<K>(directory: &Path, kernel: K, visitors: Visitors) -> io::Result<ServedMount>
where
    K: Filesystem + Send + Sync + 'static,
{
    let directory = directory.to_owned();
    let at = directory.clone();
    let acl = match visitors {
        Visitors::Owner => SessionACL::Owner,
        Visitors::Everybody => SessionACL::All,
    };
    let mut session =
        ion_system::run_blocking(move || Session::new(kernel, &directory, &config(acl))).await?;
    if let Ok(settings) = std::fs::File::open("/sys/class/bdi") {
        widen_read_ahead(&at, settings);
    }
    let unmounter = session.unmount_callable();
    Ok(ServedMount { served: run(session), unmounter: Some((unmounter, at)) })
}

/// KiB that the kernel reads ahead in one request: one block. By default it reads an eighth of
/// that, and makes eight times as many requests.
const READ_AHEAD_KIB: &str = "1024";

/// Lets the kernel read further ahead in the mount at `directory`, which must already be served.
/// `settings` is the open folder `/sys/class/bdi`. Only root may do this; reads are just as correct
/// without it.
pub fn widen_read_ahead(directory: &Path, settings: impl AsFd) {
    // Not by stat(), which would send a request to the filesystem.
    let found = rustix::fs::statx(CWD, directory, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
    if let Ok(found) = found {
        let file = format!("{}:{}/read_ahead_kb", found.stx_dev_major, found.stx_dev_minor);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(settings, file, flags, Mode::empty()) {
            let _ = rustix::io::write(file, READ_AHEAD_KIB.as_bytes());
        }
    }
}

/// Runs the session on a blocking thread, because the session waits for its workers until the mount
/// is gone.
fn run<K>(session: Session<K>) -> tokio::task::JoinHandle<io::Result<()>>
where
    K: Filesystem + Send + Sync + 'static,
{
    tokio::task::spawn_blocking(move || session.run())
}

impl ServedMount {
    /// Waits until the mount is gone and every request was answered.
    ///
    /// # Errors
    /// The error that ended the session, if it was not an unmount.
    pub async fn wait_for_end(&mut self) -> io::Result<()> {
        match (&mut self.served).await {
            Ok(outcome) => outcome,
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Unmounts and waits until every request was answered. Only for a mount that [`mount_at`]
    /// made; the mount of a job's own namespace goes with the namespace.
    ///
    /// If processes still use the mount, it is detached from the directory tree all the same:
    /// nothing is left mounted. Those processes get errors once this process has ended.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn unmount(mut self) -> io::Result<UnmountOutcome> {
        if let Some((mut unmounter, at)) = self.unmounter.take() {
            let in_use = ion_system::run_blocking(move || match unmounter.unmount() {
                Ok(()) => Ok::<_, io::Error>(false),
                Err(_) => detach(&at).map(|()| true),
            });
            if in_use.await? {
                return Ok(UnmountOutcome::InUse);
            }
        }
        self.wait_for_end().await.map(|()| UnmountOutcome::Whole)
    }
}

/// The outcome of an unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountOutcome {
    /// No process used the mount.
    Whole,
    /// Processes have files of the mount open, or one of its folders as their working directory.
    InUse,
}

/// Unmounts what a daemon that was killed left mounted at `directory`. Blocks: call it at the start
/// of a process.
///
/// # Errors
/// If nothing is mounted there, or this user may not unmount it.
pub fn unmount_stale(directory: &Path) -> io::Result<()> {
    // A mount whose daemon is gone answers every call with ENOTCONN, but for what the kernel has
    // kept of it, as attributes. A mount that answers belongs to a running daemon.
    match rustix::fs::statvfs(directory) {
        Err(rustix::io::Errno::NOTCONN) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(io::Error::other("it is not a stale mount")),
    }
    detach(directory)
}

/// Detaches a mount from the directory tree, even while processes use it.
#[expect(
    clippy::disallowed_methods,
    reason = "fusermount3 is not a module: it undoes the mount that it made for an ordinary user"
)]
fn detach(directory: &Path) -> io::Result<()> {
    match rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH) {
        // This setuid program made the ordinary user's mount, and only it may undo it.
        Err(rustix::io::Errno::PERM) => {
            let status =
                Command::new("fusermount3").args(["-u", "-z", "--"]).arg(directory).status()?;
            if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("fusermount3: {status}")))
            }
        }
        done => Ok(done?),
    }
}
