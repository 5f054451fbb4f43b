//! The tree of a batch: a directory for each of its jobs, named by the job's number, and in it the
//! job's own tree (DESIGN.md section 10).
//!
//! A batch may hold very many small events, so a job's tree is made when the module first looks at
//! its directory. A job at which the module never looks costs no tree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::{StreamExt as _, stream};
use ion_model::errors::error_chain;
use ion_model::limits::Limits;
use ion_plane::node::Node as Daemon;
use tokio::sync::OnceCell;

use super::job::{JobSpec, JobTree, OpenError, TreeOutcome, TreeUsers};
use super::{Attr, Errno, FOREVER, FileKind, ROOT, Result, Tree};

/// How many trees are finished at the same time. Each waits for its own commits and uploads.
const FINISHED_AT_ONCE: usize = 16;

/// The trees of the jobs of one batch.
#[derive(Debug)]
pub struct BatchTree {
    daemon: Arc<Daemon>,
    limits: Limits,
    jobs: Vec<BatchJob>,
    users: TreeUsers,
    made: SystemTime,
}

#[derive(Debug)]
struct BatchJob {
    spec: JobSpec,
    tree: OnceCell<JobTree>,
    /// Why its tree could not be made, when that was tried last.
    failure: Mutex<Option<OpenError>>,
    /// Whether the job was ended by force.
    is_stopped: AtomicBool,
}

/// The end of one job of a batch.
#[derive(Debug)]
pub enum BatchJobEnd {
    /// The module never looked at its directory.
    Untouched,
    /// Its tree could not be made.
    Unopened(OpenError),
    /// The outcome of what the module did in its tree.
    Ended(TreeOutcome),
}

impl BatchTree {
    /// Makes the tree of these jobs, in the order of their numbers, each with these limits.
    pub fn new(daemon: Arc<Daemon>, specs: Vec<JobSpec>, limits: Limits) -> Self {
        let users = specs.first().map_or(TreeUsers::Owner, |spec| spec.users);
        let job = |spec| BatchJob {
            spec,
            tree: OnceCell::new(),
            failure: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        };
        let jobs = specs.into_iter().map(job).collect();
        Self { daemon, limits, jobs, users, made: SystemTime::now() }
    }

    /// Returns how many jobs it has.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Returns whether it has no job.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(crate) fn daemon(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Returns the tree of the job with this number. Makes it if nobody has looked at it before.
    pub(crate) async fn open(&self, number: usize) -> Result<Arc<Tree>> {
        let job = self.jobs.get(number).ok_or(Errno::NOENT)?;
        let make = async || {
            if job.is_stopped.load(Ordering::Acquire) {
                return Err(Errno::IO);
            }
            let tree = JobTree::open(&self.daemon, job.spec.clone(), self.limits).await;
            let tree = tree.map_err(|error| job.note_failure(error))?;
            // It may have been stopped while its tree was made.
            if job.is_stopped.load(Ordering::Acquire) {
                tree.stop();
            }
            Ok(tree)
        };
        Ok(job.tree.get_or_try_init(make).await?.tree())
    }

    /// Ends the waits of one job that is ended by force, as [`JobTree::stop`] does.
    pub fn stop_job(&self, number: usize) {
        let Some(job) = self.jobs.get(number) else { return };
        job.is_stopped.store(true, Ordering::Release);
        if let Some(tree) = job.tree.get() {
            tree.stop();
        }
    }

    /// Ends the waits of all jobs.
    pub fn stop(&self) {
        (0..self.jobs.len()).for_each(|number| self.stop_job(number));
    }

    /// Decides what is left in each job's tree, removes the staging folders, and returns the ends in
    /// the order of the jobs. Called when the module has ended, as [`JobTree::finish`] is.
    pub async fn finish(&self) -> Vec<BatchJobEnd> {
        let finish = async |job: &BatchJob| match job.tree.get() {
            Some(tree) => BatchJobEnd::Ended(tree.finish().await),
            None => match job.lock_failure().take() {
                Some(error) => BatchJobEnd::Unopened(error),
                None => BatchJobEnd::Untouched,
            },
        };
        // Each may have commits and uploads to wait for.
        stream::iter(&self.jobs).map(finish).buffered(FINISHED_AT_ONCE).collect().await
    }

    /// Returns the attributes of the directory that holds the jobs' directories.
    pub(crate) fn root_attr(&self) -> Attr {
        let writable = match self.users {
            TreeUsers::Owner => 0,
            TreeUsers::AnyUser => 0o022,
        };
        Attr {
            ino: ROOT,
            shown_ino: ROOT,
            kind: FileKind::Directory,
            size: 0,
            blocks: 0,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            perm: 0o755 | writable,
            nlink: u32::try_from(self.jobs.len() + 2).unwrap_or(u32::MAX),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            ttl: FOREVER,
        }
    }
}

impl BatchJob {
    fn lock_failure(&self) -> MutexGuard<'_, Option<OpenError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records why the job's tree could not be made. Returns the errno for the module.
    fn note_failure(&self, error: OpenError) -> Errno {
        let job = &self.spec.origin.job_id;
        tracing::error!(%job, error = error_chain(&error), "its tree cannot be made");
        *self.lock_failure() = Some(error);
        Errno::IO
    }
}
