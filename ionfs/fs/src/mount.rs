//! One mount: a kernel device and the threads that answer it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use tokio::runtime::Handle as Runtime;

use crate::Tree;
use crate::fuse::Kernel;

/// Threads that answer one mount. Each blocks for a local disk operation at most; the rest is
/// tasks. More win nothing on few cores and cost a buffer each.
const THREADS: usize = 2;

/// A tree being served.
#[derive(Debug)]
pub struct Mounted {
    served: tokio::task::JoinHandle<io::Result<()>>,
    /// What unmounts what [`mount_at`] mounted, and where.
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

/// Serves a tree through a kernel device that somebody else mounted. Must be called inside a Tokio
/// runtime.
///
/// # Errors
/// When the kernel does not shake hands.
pub async fn serve(device: OwnedFd, tree: Arc<Tree>) -> io::Result<Mounted> {
    let kernel = Kernel::new(tree, Runtime::current());
    let session = ion_system::run_blocking(move || {
        Session::from_fd(kernel, device, SessionACL::All, config(SessionACL::All))
    })
    .await?;
    Ok(Mounted { served: run(session), unmounter: None })
}

/// Which users of the machine may enter a mount, where the tree's own permissions let them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitors {
    /// Whoever mounts it, and nobody else, root neither.
    Owner,
    /// All of them.
    Everybody,
}

/// Mounts a tree at `directory` in this process's own mount namespace and serves it. Must be called
/// inside a Tokio runtime.
///
/// # Errors
/// When mounting is refused: an ordinary user needs the `fusermount3` program of the package
/// `fuse3`, and for [`Visitors::Everybody`] the line `user_allow_other` in `/etc/fuse.conf`.
pub async fn mount_at(
    directory: &Path,
    tree: Arc<Tree>,
    visitors: Visitors,
) -> io::Result<Mounted> {
    let kernel = Kernel::new(tree, Runtime::current());
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
    Ok(Mounted { served: run(session), unmounter: Some((unmounter, at)) })
}

/// KiB that the kernel reads ahead in one request: a block. By itself it takes an eighth, and as
/// many more requests.
const READ_AHEAD_KIB: &str = "1024";

/// Lets the kernel read further ahead in what is mounted at `directory` and served already, by its
/// settings in `/sys/class/bdi`, which is open. Only root may; reads are as right without it.
pub fn widen_read_ahead(directory: &Path, settings: impl AsFd) {
    // Not by stat(), which would ask the filesystem.
    let found = rustix::fs::statx(CWD, directory, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
    if let Ok(found) = found {
        let file = format!("{}:{}/read_ahead_kb", found.stx_dev_major, found.stx_dev_minor);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(settings, file, flags, Mode::empty()) {
            let _ = rustix::io::write(file, READ_AHEAD_KIB.as_bytes());
        }
    }
}

/// The session's own thread is a blocking one: it waits for its workers until the mount is gone.
fn run(session: Session<Kernel>) -> tokio::task::JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || session.run())
}

impl Mounted {
    /// Waits until the mount is gone and every request was answered.
    ///
    /// # Errors
    /// What ended the session, if not an unmount.
    pub async fn ended(&mut self) -> io::Result<()> {
        match (&mut self.served).await {
            Ok(outcome) => outcome,
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Unmounts and waits until every request was answered. Only for what [`mount_at`] mounted; the
    /// mount of a job's own namespace goes with the namespace.
    ///
    /// Where somebody is still in there, it is taken out of the tree of files all the same: nothing
    /// is left mounted. Those who are in there get errors once this process has ended.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn unmount(mut self) -> io::Result<Unmounted> {
        if let Some((mut unmounter, at)) = self.unmounter.take() {
            let in_use = ion_system::run_blocking(move || match unmounter.unmount() {
                Ok(()) => Ok::<_, io::Error>(false),
                Err(_) => detach(&at).map(|()| true),
            });
            if in_use.await? {
                return Ok(Unmounted::InUse);
            }
        }
        self.ended().await.map(|()| Unmounted::Whole)
    }
}

/// What an unmounting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody was in there.
    Whole,
    /// Programs have files of it open, or stand in one of its folders.
    InUse,
}

/// Unmounts what a daemon that was killed left mounted at `directory`.
///
/// # Errors
/// When nothing is mounted there, or this user may not unmount it. Blocks; for the start of a
/// process.
pub fn unmount_stale(directory: &Path) -> io::Result<()> {
    // A mount whose daemon is gone answers every call so; one that is alive is somebody's.
    match std::fs::metadata(directory) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {}
        Err(error) => return Err(error),
        Ok(_) => return Err(io::Error::other("it is not a stale mount")),
    }
    detach(directory)
}

/// Takes a mount out of the tree of files, whoever is in there.
#[expect(
    clippy::disallowed_methods,
    reason = "fusermount3 is no module: it undoes what it did for an ordinary user"
)]
fn detach(directory: &Path) -> io::Result<()> {
    match rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH) {
        // An ordinary user's mount was made by this setuid program, and only it may undo it.
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
