//! The executor for jobs in pods of a Kubernetes cluster, whose nodes mount the tree.
//!
//! An attempt is one Kubernetes Job of one pod, whose name is derived from the attempt. The node's
//! driver ([`ion_csi`]) mounts the pod's volume. The driver reads in the attempt's
//! [`Ticket`] what to mount, and writes there how the attempt's tree ended.
//!
//! # What is promised
//! - A dispatcher that adopts the job asks for the same Job again: there is no second pod. Another
//!   Job of the same name is never touched.
//! - Nothing in the cluster is removed before the attempt's end is in the ledger.
//! - A pod that the cluster removes (an eviction, a lost node, a person who deletes it) is not a
//!   failure of the module: another attempt follows.
//! - No credential of a store is in a spec. The token in it opens one attempt's tree, once, in one
//!   namespace, for a limited time.

mod phase;
mod spec;
mod watched;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ion_csi::ticket::{Ticket, TicketGathered, TicketKey, TicketKeyError, TokenContent, TreeEnd};
use ion_fs::job::TreeOutcome;
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::Module;
use ion_model::clock::{self, millis};
use ion_model::errors::error_chain;
use ion_model::event::{Context, Event};
use ion_model::record::{AttemptEnd, CommitMode, JobRecord};
use ion_plane::commit::Fence;
use ion_plane::node::{Node, job_dir};
use ion_system::patience::{FailedTry, Retry};
use ion_system::run_blocking;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::{Api, Client, Config, ResourceExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::task::AbortOnDropHandle;

use self::phase::{Phase, PodEnd, derive_phase};
use self::watched::{JobStates, PodJobState};
use super::attempt::{
    ProcessEnd, decide_outcome, older_conventions, origin, stopped_outcome, wait_for_stop,
};
use super::log::{JobLog, OutputNotifier, keep_output, no_log_outcome};
use super::{AttemptStart, Executor, OutputWatcher, RunResult, StopReason};
use crate::sandbox::{ProcessExit, out_of_memory_words};
use crate::secrets::{SecretFolders, SecretMask};

/// The wait between two tries to reach the API server or a store.
const TRY_WAIT: Duration = Duration::from_secs(1);

/// The tries to write an attempt's ticket, and to create its Job.
const BEGIN: Retry = Retry::during(Duration::from_secs(600)).waiting(TRY_WAIT);

/// How often an attempt's ticket is read while it runs.
const LOOK: Duration = Duration::from_secs(5);

/// How long a container may be in a state that waiting seldom ends: an image may still be being
/// pushed, or a registry may restart.
const STUCK_MAX: Duration = Duration::from_secs(30);

/// The looks for a node's report of how an ended pod's tree ended: the kubelet unmounts it within
/// seconds.
const REPORT: Retry = Retry::during(Duration::from_secs(180))
    .doubling(Duration::from_millis(100), Duration::from_secs(2));

/// How long beyond its grace a deleted pod may take to be gone; after that its node counts as lost.
const GONE_WAIT: Duration = Duration::from_secs(60);

/// The tries to delete a Job.
const REMOVE: Retry = Retry::during(GONE_WAIT).waiting(TRY_WAIT);

/// How long the rest of the output may take to arrive after the pod's end.
const LOG_WAIT: Duration = Duration::from_secs(30);

/// How long the stream of an ended pod's output may send nothing before it is opened again.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// How long a token is valid beyond its attempt's timeout.
const TOKEN_SLACK: Duration = Duration::from_secs(300);

/// How long one request to the API server may take.
const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// The most bytes of output in transit from the API server to the disk.
const PIPE: usize = 64 << 10;

/// The reason why there is no cluster to run pods in.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// There is neither a kubeconfig nor a pod's service account.
    #[error("no cluster is configured (KUBECONFIG, ~/.kube/config, or a pod's service account)")]
    Config(#[from] kube::config::InferConfigError),
    /// There is no key to sign its tokens.
    #[error(transparent)]
    Key(#[from] TicketKeyError),
    /// The client cannot be made.
    #[error("the cluster's client cannot be made")]
    Client(#[from] kube::Error),
}

/// The executor that runs jobs as pods.
pub struct Kubernetes {
    node: Arc<Node>,
    key: TicketKey,
    namespace: String,
    jobs: Api<Job>,
    pods: Api<Pod>,
    watched: JobStates,
    output: Option<Arc<dyn OutputWatcher>>,
    /// What this machine has of the pods' secrets is replaced in their output.
    secrets: SecretFolders,
    _watching: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Returns an executor for the cluster that the environment names, in this namespace or in the
    /// cluster's default one. `secrets` are the values to replace in what pods write. It does not wait for a connection.
    ///
    /// # Errors
    /// If no cluster is configured.
    pub async fn new(
        node: Arc<Node>,
        key: TicketKey,
        namespace: Option<String>,
        output: Option<Arc<dyn OutputWatcher>>,
        secrets: SecretFolders,
    ) -> Result<Self, KubernetesError> {
        let config = Config::infer().await?;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        let (jobs, pods) =
            (Api::namespaced(client.clone(), &namespace), Api::namespaced(client, &namespace));
        let watched = JobStates::default();
        let watching = tokio::spawn(watched.clone().watch_cluster(jobs.clone(), pods.clone()));
        Ok(Self {
            node,
            key,
            namespace,
            jobs,
            pods,
            watched,
            output,
            secrets,
            _watching: AbortOnDropHandle::new(watching),
        })
    }

    async fn run_attempt(
        &self,
        start: AttemptStart,
        name: &str,
        log: &JobLog,
        mut stop: watch::Receiver<Option<StopReason>>,
    ) -> RunResult {
        let ticket = ticket_of(&start);
        let mut known = self.watched.receiver_for(name);
        let begun = tokio::select! {
            begun = self.offer_and_create(&start, &ticket, name) => begun,
            why = wait_for_stop(&mut stop) => return self.handle_stop(why, name, &mut known).await,
        };
        if let Err(ended) = begun {
            return RunResult::Ended(ended);
        }
        let commit = start.module.commit;
        let AttemptStart { job, module, event, running, .. } = start;
        let mask = self.mask_for(&module, event).await;
        // Reported now, and not when its container runs: what the container commits counts only if
        // the ledger says that the job runs.
        let _ = running.send(());
        let news =
            self.output.clone().map(|watcher| OutputNotifier::new(watcher, &module.name, &job.id));
        let mut output = PodOutput::new(self.pods.clone(), log.path().to_owned(), news, mask);
        let end = tokio::select! {
            end = self.wait_for_pod_end(&mut known, &ticket.id, &mut output) => end,
            why = wait_for_stop(&mut stop) => return self.handle_stop(why, name, &mut known).await,
        };
        output.finish().await;
        let ended = match PodProcess::from_pod_end(end, &module) {
            Ok(ended) => ended,
            Err(PodLost(reason)) => {
                self.delete_job(name).await;
                return RunResult::Ended(lost_outcome(reason));
            }
        };
        if !matches!(ended.process, ProcessEnd::Exited(_)) {
            // Its pod may still be there.
            self.delete_job(name).await;
        }
        // A pod that never ran has written nothing, whatever became of its tree.
        let has_run = ended.never_ran.is_none();
        let outcome = tokio::select! {
            outcome = self.wait_for_outcome(&ticket.id), if has_run => outcome,
            why = wait_for_stop(&mut stop), if has_run => {
                return self.handle_stop(why, name, &mut known).await;
            }
            else => Ok(TreeOutcome::default()),
        };
        RunResult::Ended(match outcome {
            Ok(outcome) => ended.into_outcome(&outcome, commit),
            Err(loss) => lost_outcome(loss.to_string()),
        })
    }

    /// Returns what replaces the module's secrets in the pod's output, as far as this machine has
    /// their values. The pod has them from its cluster.
    async fn mask_for(&self, module: &Module, event: Event) -> Option<SecretMask> {
        if !self.secrets.are_needed(module, &event) {
            return None;
        }
        let (folders, module) = (self.secrets.clone(), module.clone());
        run_blocking(move || folders.read_present(&module, &event).mask()).await
    }

    /// Writes the ticket and creates the Job, or finds both.
    async fn offer_and_create(
        &self,
        start: &AttemptStart,
        ticket: &Ticket,
        name: &str,
    ) -> Result<(), AttemptOutcome> {
        let released = |reason: String| AttemptOutcome {
            end: AttemptEnd::Released,
            ..AttemptOutcome::failed(reason)
        };
        let offered = BEGIN.run(
            async |_| ticket.offer(&self.node.plane).await,
            |failed| {
                let error = error_chain(failed.error);
                tracing::warn!(job = name, error, "a ticket cannot be written yet");
                true
            },
        );
        offered.await.map_err(|error| {
            released(format!("its ticket cannot be written: {}", error_chain(&error)))
        })?;
        let expires = clock::now() + millis(start.module.timeout + TOKEN_SLACK);
        let token = self.key.sign(&TokenContent {
            job: start.job.id.clone(),
            attempt: start.job.attempt,
            namespace: self.namespace.clone(),
            expires,
        });
        let job = spec::build_job(start, &token)
            .map_err(|error| AttemptOutcome::failed(error_chain(&error)))?;
        let made = BEGIN.run(
            async |_| self.create_or_find(name, &job).await,
            |failed| {
                let CreateFailure::NotYet(why) = failed.error else { return false };
                tracing::warn!(job = name, why, "a Job cannot be made yet");
                true
            },
        );
        made.await.map_err(|failure| match failure {
            CreateFailure::Final(reason) => AttemptOutcome::failed(reason),
            CreateFailure::NotYet(why) => released(format!("its Job cannot be made: {why}")),
        })
    }

    /// Tries once to create the Job, or to find it.
    async fn create_or_find(&self, name: &str, job: &Job) -> Result<(), CreateFailure> {
        match with_timeout(self.jobs.create(&PostParams::default(), job)).await {
            Ok(_) => Ok(()),
            Err(ApiFailure::Answered(status)) if status.code == 409 => {
                match self.compare_existing(name, job).await {
                    Ok(JobMatch::Yes) => Ok(()),
                    Ok(JobMatch::No) => Err(CreateFailure::Final(format!(
                        "a Job {name} exists that Ion did not make for this attempt; delete it"
                    ))),
                    Ok(JobMatch::Going) => Err(CreateFailure::NotYet(
                        "an earlier Job of its name is still being deleted".to_owned(),
                    )),
                    Err(trouble) => Err(CreateFailure::NotYet(error_chain(&trouble))),
                }
            }
            // Waiting does not help, except for a quota that others use up.
            Err(ApiFailure::Answered(status))
                if [400, 401, 403, 404, 405, 422].contains(&status.code)
                    && !status.message.contains("exceeded quota") =>
            {
                Err(CreateFailure::Final(format!(
                    "the cluster refuses its Job: {}",
                    status.message
                )))
            }
            Err(trouble) => Err(CreateFailure::NotYet(error_chain(&trouble))),
        }
    }

    /// Returns whether the existing Job is this attempt's: it asks for the same, or has a valid
    /// token for this attempt, whatever else it asks for. Its module, or Ion, may have changed
    /// since it was made; what runs is adopted as it is.
    async fn compare_existing(&self, name: &str, job: &Job) -> Result<JobMatch, ApiFailure> {
        Ok(match with_timeout(self.jobs.get_opt(name)).await? {
            None => JobMatch::Going,
            Some(found) if found.metadata.deletion_timestamp.is_some() => JobMatch::Going,
            Some(found) => {
                let of = |job: &Job| job.annotations().get(spec::FINGERPRINT).cloned();
                // A token counts even when it has expired.
                let claims =
                    |job: &Job| self.key.verify(spec::find_token(job)?, &self.namespace, 0).ok();
                let attempt = |job: &Job| claims(job).map(|claims| (claims.job, claims.attempt));
                let ours = attempt(&found).is_some() && attempt(&found) == attempt(job);
                if of(&found) == of(job) || ours { JobMatch::Yes } else { JobMatch::No }
            }
        })
    }

    /// Waits for the pod's end.
    async fn wait_for_pod_end(
        &self,
        known: &mut watch::Receiver<PodJobState>,
        ticket: &str,
        output: &mut PodOutput,
    ) -> PodEnd {
        let (mut stuck, mut leaving, mut complete) = (None, None, None);
        let longer = |since: &mut Option<Instant>, most| {
            since.get_or_insert_with(Instant::now).elapsed() > most
        };
        let mut logged = None;
        loop {
            let (phase, pod) = {
                let known = known.borrow_and_update();
                (
                    derive_phase(&known),
                    known.pod().and_then(|pod| Some((pod.uid()?, pod.name_any()))),
                )
            };
            match &phase {
                Phase::Ended(end) => {
                    if let (PodEnd::Exited(_) | PodEnd::OutOfMemory(_), Some((_, name))) =
                        (end, &pod)
                    {
                        output.follow(name);
                    }
                    return end.clone();
                }
                Phase::Running(pod) => {
                    stuck = None;
                    output.follow(pod);
                }
                Phase::Stuck(words) => {
                    if longer(&mut stuck, STUCK_MAX) {
                        return PodEnd::Refused(words.clone());
                    }
                }
                Phase::Leaving(pod, grace) => {
                    if let Some(pod) = pod {
                        output.follow(pod);
                    }
                    if longer(&mut leaving, *grace + GONE_WAIT) {
                        return PodEnd::Lost(
                            "its node was lost: its pod was to end, and does not".into(),
                        );
                    }
                }
                // Its pod was removed before it was seen, or is not listed yet.
                Phase::Complete => {
                    if longer(&mut complete, STUCK_MAX) {
                        return PodEnd::Exited(0);
                    }
                }
                Phase::Waiting(_) => {}
            }
            if logged.as_ref() != Some(&phase) {
                tracing::debug!(ticket, ?phase, "an attempt's pod");
                logged = Some(phase);
            }
            if timeout(LOOK, known.changed()).await.is_err()
                && let Some(reason) =
                    self.find_loss_reason(ticket, pod.as_ref().map(|(uid, _)| uid.as_str())).await
            {
                return PodEnd::Lost(reason);
            }
        }
    }

    /// Returns why the attempt has lost its tree, if its ticket says so.
    async fn find_loss_reason(&self, ticket: &str, pod: Option<&str>) -> Option<String> {
        let ticket = Ticket::find(&self.node.plane, ticket).await.ok()??;
        match (ticket.ended, ticket.pod) {
            (Some(TreeEnd::Lost(reason)), _) => Some(reason),
            // A pod that the Job controller made as a replacement gets no tree.
            (_, Some(first)) if pod.is_some_and(|uid| uid != first.uid) => {
                Some(format!("its pod {} was deleted", first.name))
            }
            _ => None,
        }
    }

    /// Waits until the node has reported how the attempt's tree ended, and returns that outcome.
    async fn wait_for_outcome(&self, id: &str) -> Result<TreeOutcome, TreeLoss> {
        REPORT
            .run(
                async |_| self.read_outcome(id).await,
                |failed| matches!(failed.error, TreeLoss::Unreported),
            )
            .await
    }

    /// Looks once for the node's report.
    async fn read_outcome(&self, id: &str) -> Result<TreeOutcome, TreeLoss> {
        match Ticket::find(&self.node.plane, id).await {
            Ok(Some(Ticket { ended: Some(TreeEnd::Outcome(outcome)), .. })) => Ok(outcome),
            Ok(Some(Ticket { ended: Some(TreeEnd::Lost(reason)), .. })) => {
                Err(TreeLoss::Reported(reason))
            }
            // The attempt never had a tree.
            Ok(Some(Ticket { pod: None, .. })) => Ok(TreeOutcome::default()),
            Ok(None) => Err(TreeLoss::NoTicket),
            Ok(Some(_)) => Err(TreeLoss::Unreported),
            Err(error) => {
                tracing::warn!(id, error = error_chain(&error), "a ticket cannot be read yet");
                Err(TreeLoss::Unreported)
            }
        }
    }

    /// Handles a stop: a cancelled Job is deleted; on shutdown or a lost lease the Job is left for
    /// another dispatcher.
    async fn handle_stop(
        &self,
        why: StopReason,
        name: &str,
        known: &mut watch::Receiver<PodJobState>,
    ) -> RunResult {
        match why {
            StopReason::Shutdown | StopReason::LostLease => RunResult::Left,
            StopReason::Cancel => {
                self.delete_job(name).await;
                let gone = known.wait_for(|known| known.pods.is_empty());
                if timeout(GONE_WAIT, gone).await.is_err() {
                    tracing::warn!(job = name, "a cancelled pod has not ended yet");
                }
                RunResult::Ended(stopped_outcome(why))
            }
        }
    }

    /// Deletes the Job and its pod.
    async fn delete_job(&self, name: &str) {
        let delete =
            async |_| match with_timeout(self.jobs.delete(name, &DeleteParams::background())).await
            {
                Ok(_) => Ok(()),
                Err(ApiFailure::Answered(status)) if status.code == 404 => Ok(()),
                Err(trouble) => Err(trouble),
            };
        let again = |failed: FailedTry<'_, ApiFailure>| {
            tracing::warn!(
                job = name,
                trouble = error_chain(failed.error),
                "a Job cannot be deleted yet"
            );
            true
        };
        if let Err(trouble) = REMOVE.run(delete, again).await {
            // The Job's deadline ends it, and the cluster removes it some time after its end.
            let trouble = error_chain(&trouble);
            tracing::error!(job = name, trouble, "a Job could not be deleted");
        }
    }
}

/// Adds to what a pod waited for that it cannot start without its Secret.
fn with_secret_words(waited: String, module: &Module) -> String {
    match &*module.secrets {
        [] => waited,
        names => format!(
            "{waited} (it needs the Secret {:?} in its namespace, with the keys {})",
            module.kubernetes.secret_name(),
            names.join(", ")
        ),
    }
}

/// Why a Job could not be created.
enum CreateFailure {
    /// Waiting does not help.
    Final(String),
    /// A later try may succeed.
    NotYet(String),
}

/// Returns the ticket of an attempt, which its pod's node finds in the plane.
fn ticket_of(start: &AttemptStart) -> Ticket {
    Ticket {
        id: Ticket::id(&start.job.id, start.job.attempt),
        version: 1,
        offered: clock::now(),
        origin: origin(&start.job, &start.module, &start.event, Fence::Running),
        event_id: start.event.id.clone(),
        gathered: start.gathered.as_ref().map(TicketGathered::of),
        older: older_conventions(&start.module),
        limits: start.module.limits.clone(),
        pod: None,
        ended: None,
    }
}

/// Returns the outcome of an attempt that is lost with its pod or its tree.
fn lost_outcome(reason: String) -> AttemptOutcome {
    AttemptOutcome { end: AttemptEnd::Lost, ..AttemptOutcome::failed(reason) }
}

/// The attempt is lost with its pod, for this reason.
struct PodLost(String);

/// How the process of a pod ended.
struct PodProcess {
    process: ProcessEnd,
    /// Why it did not get the memory that it needed.
    out_of_memory: Option<String>,
    /// What the pod waited for, if it never ran.
    never_ran: Option<String>,
}

impl PodProcess {
    /// Returns how the process ended, unless the attempt is lost with its pod.
    fn from_pod_end(end: PodEnd, module: &Module) -> Result<Self, PodLost> {
        let exited = |code| ProcessEnd::Exited(ProcessExit::Code(code));
        let ended = |process| Self { process, out_of_memory: None, never_ran: None };
        Ok(match end {
            PodEnd::Exited(code) => ended(exited(code)),
            PodEnd::OutOfMemory(code) => {
                let container = module.container.as_ref();
                let limit = container.and_then(|container| container.resources.memory_bytes);
                let words = limit
                    .map_or("out of memory, as its node had no more".into(), out_of_memory_words);
                Self { out_of_memory: Some(words), ..ended(exited(code)) }
            }
            PodEnd::Deadline(never_ran) => {
                let never_ran = never_ran.map(|waited| with_secret_words(waited, module));
                Self { never_ran, ..ended(ProcessEnd::TimedOut(module.timeout)) }
            }
            PodEnd::Refused(reason) => ended(ProcessEnd::NotStarted(reason)),
            PodEnd::Lost(reason) => return Err(PodLost(reason)),
        })
    }

    /// Returns the outcome of the attempt, whose tree ended like this.
    fn into_outcome(self, tree: &TreeOutcome, commit: CommitMode) -> AttemptOutcome {
        let mut outcome = decide_outcome(self.process, tree, commit);
        if let Some(words) = self.out_of_memory {
            // The container's shell may have gone on and exited with status 0: still the module did
            // not get the memory that it asked for.
            outcome.end = AttemptEnd::Failed;
            outcome.reason = Some(words);
            outcome.staged = false;
        }
        if let Some(waited) = self.never_ran {
            let with_cause = |reason| format!("{reason}; its pod never ran: {waited}");
            outcome.reason = outcome.reason.map(with_cause);
        }
        outcome
    }
}

#[async_trait]
impl Executor for Kubernetes {
    async fn run(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
    ) -> RunResult {
        let (job, attempt) = (start.job.id.clone(), start.job.attempt);
        let context = Context { name: start.module.name.clone(), ..start.event.context.clone() };
        let home = &self.node.settings.home;
        let log = match JobLog::begin(home, &job, attempt) {
            Ok(log) => log,
            Err(error) => return RunResult::Ended(no_log_outcome(&error)),
        };
        let name = spec::job_name(job.as_str(), attempt);
        let fate = self.run_attempt(start, &name, &log, stop).await;
        self.watched.forget_unused(&name);
        let fate = match fate {
            RunResult::Left => RunResult::Left,
            RunResult::Ended(mut ended) => {
                if let Some(reason) = &ended.reason {
                    log.note(reason);
                }
                let well = ended.end == AttemptEnd::Succeeded;
                ended.log = log.store(&self.node.plane, &context, well).await;
                RunResult::Ended(ended)
            }
        };
        if let Err(error) = tokio::fs::remove_dir_all(job_dir(home, &job, attempt)).await {
            tracing::warn!(%job, %error, "a job's folder could not be removed");
        }
        fate
    }

    async fn clean_up(&self, _: &Module, job: &JobRecord) {
        self.delete_job(&spec::job_name(job.id.as_str(), job.attempt)).await;
        let id = Ticket::id(&job.id, job.attempt);
        if let Err(error) = Ticket::withdraw(&self.node.plane, &id).await {
            tracing::warn!(id, error = error_chain(&error), "a ticket could not be removed");
        }
    }
}

/// Whether an existing Job is the one that is asked for.
enum JobMatch {
    Yes,
    No,
    /// It is being deleted, or was deleted just now.
    Going,
}

/// The reason why it is not known what an attempt's tree has committed.
#[derive(Debug, thiserror::Error)]
enum TreeLoss {
    /// The node reported that the tree is lost. The text is the node's.
    #[error("{0}")]
    Reported(String),
    /// The attempt's ticket was removed.
    #[error("its ticket is gone")]
    NoTicket,
    /// The node has not reported, or the ticket cannot be read.
    #[error("its node did not report how its tree ended")]
    Unreported,
}

/// The reason why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
enum ApiFailure {
    /// The server answered with an error.
    #[error("{}", .0.message)]
    Answered(Box<kube::core::Status>),
    /// The request did not reach the server, or its answer cannot be read.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    /// The server did not answer in time.
    #[error("the API server cannot be reached: no answer for {} s", REQUEST_WAIT.as_secs())]
    NoAnswer,
}

async fn with_timeout<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiFailure> {
    match timeout(REQUEST_WAIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(ApiFailure::Answered(status)),
        Ok(Err(error)) => Err(ApiFailure::Unreachable(error.into())),
        Err(_) => Err(ApiFailure::NoAnswer),
    }
}

/// The reader of a pod's output, which it copies to the log as it comes.
struct PodOutput {
    pods: Api<Pod>,
    path: PathBuf,
    news: Option<OutputNotifier>,
    mask: Option<SecretMask>,
    following: Option<PodLogStream>,
}

struct PodLogStream {
    /// Dropped when the pod has ended: the first stream that is opened after that and read to its
    /// end is the last one.
    ended: Option<oneshot::Sender<()>>,
    fetching: AbortOnDropHandle<()>,
    keeping: AbortOnDropHandle<()>,
}

impl PodOutput {
    fn new(
        pods: Api<Pod>,
        path: PathBuf,
        news: Option<OutputNotifier>,
        mask: Option<SecretMask>,
    ) -> Self {
        Self { pods, path, news, mask, following: None }
    }

    /// Begins to read a pod's output, unless it has begun.
    fn follow(&mut self, pod: &str) {
        if self.following.is_some() {
            return;
        }
        let (from, to) = duplex(PIPE);
        let (ended, has_ended) = oneshot::channel();
        let fetching =
            tokio::spawn(copy_pod_output(self.pods.clone(), pod.to_owned(), from, has_ended));
        let (news, mask) = (self.news.take(), self.mask.take());
        let keeping = tokio::spawn(keep_output(to, self.path.clone(), news, mask));
        self.following = Some(PodLogStream {
            ended: Some(ended),
            fetching: AbortOnDropHandle::new(fetching),
            keeping: AbortOnDropHandle::new(keeping),
        });
    }

    /// Waits for the rest of the output, after the pod has ended.
    async fn finish(&mut self) {
        let Some(PodLogStream { ended, fetching, keeping }) = self.following.take() else { return };
        drop(ended);
        if !matches!(timeout(LOG_WAIT, fetching).await, Ok(Ok(()))) {
            tracing::warn!(log = %self.path.display(), "the end of a pod's output did not come");
        }
        let _ = timeout(LOG_WAIT, keeping).await;
    }
}

/// Reads a pod's output to its end. A stream that breaks off before its end is opened again, and
/// the output that has arrived already is skipped.
async fn copy_pod_output(
    pods: Api<Pod>,
    pod: String,
    mut into: DuplexStream,
    mut ended: oneshot::Receiver<()>,
) {
    let asked =
        LogParams { follow: true, container: Some(spec::CONTAINER.into()), ..LogParams::default() };
    let (mut had, mut over) = (0, false);
    loop {
        // Checked before the stream is opened: if the pod has ended by now, this stream has all of
        // the output.
        let last = over || !matches!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        over = last;
        match pods.log_stream(&pod, &asked).await {
            Ok(stream) => {
                let mut stream = stream.compat();
                let mut buffer = vec![0; PIPE];
                let mut left_out = had;
                let whole = loop {
                    let read = stream.read(&mut buffer);
                    // A connection may break without an error: once the pod has ended, the stream
                    // must not be silent for long.
                    let read = match over {
                        true => timeout(QUIET_MAX, read)
                            .await
                            .unwrap_or(Err(io::ErrorKind::TimedOut.into())),
                        false => tokio::select! {
                            biased;
                            read = read => read,
                            _ = &mut ended => {
                                over = true;
                                continue;
                            }
                        },
                    };
                    match read {
                        Ok(0) => break true,
                        Ok(length) => {
                            let skip = left_out.min(length as u64);
                            left_out -= skip;
                            let new = &buffer[usize::try_from(skip).unwrap_or(length)..length];
                            had += new.len() as u64;
                            if into.write_all(new).await.is_err() {
                                return;
                            }
                        }
                        Err(_) => break false,
                    }
                };
                if whole && last {
                    return;
                }
            }
            Err(kube::Error::Api(status)) if last && status.code == 404 => return,
            Err(error) => {
                tracing::debug!(
                    pod,
                    error = error_chain(&error),
                    "a pod's output cannot be read yet"
                )
            }
        }
        if over {
            sleep(TRY_WAIT).await;
        } else {
            over = timeout(TRY_WAIT, &mut ended).await.is_ok();
        }
    }
}
