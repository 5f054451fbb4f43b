//! The state of Ion's Jobs and pods in the cluster, kept up to date: one watch of each kind for all
//! attempts.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, ExponentialBackoff, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::spec::MANAGED_BY;

/// The label that the Job controller gives each pod.
const OF_JOB: &str = "job-name";

/// The first backoff while the server is unavailable; it doubles up to [`BACKOFF_MAX`]. Each wait
/// is up to twice as long by chance, so that the watches of many dispatchers do not return all at
/// once.
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// The longest backoff: 2.5 s, with jitter 5 s. After the server is back, the end of a pod is seen
/// up to that much later; kube's own default waits up to a minute. A shorter wait would keep a
/// struggling server busy with requests; one listing of each dispatcher is little.
const BACKOFF_MAX: Duration = Duration::from_millis(2500);

/// The known state of one Job and its pods.
#[derive(Clone, Debug, Default)]
pub(super) struct PodJobState {
    pub(super) job: Option<Job>,
    /// The pods by uid.
    pub(super) pods: BTreeMap<String, Pod>,
    /// A pod that was deleted, in its last known state.
    pub(super) deleted: Option<Pod>,
    /// Whether the Job was deleted.
    pub(super) job_deleted: bool,
}

impl PodJobState {
    /// Returns its first pod: a later one is the Job controller's replacement, which has no ticket.
    pub(super) fn pod(&self) -> Option<&Pod> {
        self.deleted
            .as_ref()
            .or_else(|| self.pods.values().min_by_key(|pod| pod.creation_timestamp()))
    }
}

/// All Jobs by name. Clones share the state. The state of a Job stays as long as the Job or one of
/// its pods exists, or a receiver is open: when the same dispatcher leaves a job and adopts it
/// again, the server does not send the Job's state again.
#[derive(Clone, Debug, Default)]
pub(super) struct JobStates(Arc<Mutex<HashMap<String, watch::Sender<PodJobState>>>>);

impl JobStates {
    fn lock_states(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<PodJobState>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a receiver of this Job's state.
    pub(super) fn receiver_for(&self, job: &str) -> watch::Receiver<PodJobState> {
        self.lock_states().entry(job.to_owned()).or_default().subscribe()
    }

    /// Called after the receiver of a Job is dropped: removes the Job's state if the Job is gone.
    pub(super) fn forget_unused(&self, job: &str) {
        remove_if_unused(&mut self.lock_states(), job);
    }

    fn change(&self, job: &str, change: impl FnOnce(&mut PodJobState)) {
        let mut all = self.lock_states();
        all.entry(job.to_owned()).or_default().send_modify(change);
        remove_if_unused(&mut all, job);
    }

    /// Watches for ever. While the server is unavailable the watch retries, and a listing finds
    /// what changed meanwhile.
    pub(super) async fn watch_cluster(self, jobs: Api<Job>, pods: Api<Pod>) {
        let of_job = |job: &Job| job.name_any();
        let of_pod = |pod: &Pod| pod.labels().get(OF_JOB).cloned().unwrap_or_default();
        tokio::join!(
            self.watch_objects(jobs, "Jobs", of_job, |known, seen| match seen {
                ObjectChange::There(job) => known.job = Some(job),
                ObjectChange::Gone(_) => {
                    known.job_deleted |= known.job.is_some();
                    known.job = None;
                }
            }),
            self.watch_objects(pods, "pods", of_pod, |known, seen| match seen {
                ObjectChange::There(pod) => {
                    known.pods.insert(pod.uid().unwrap_or_default(), pod);
                }
                ObjectChange::Gone(uid) => {
                    if let Some(pod) = known.pods.remove(&uid) {
                        known.deleted.get_or_insert(pod);
                    }
                }
            })
        );
    }

    async fn watch_objects<K>(
        &self,
        api: Api<K>,
        what: &str,
        job_of: impl Fn(&K) -> String,
        mut note: impl FnMut(&mut PodJobState, ObjectChange<K>),
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let config = Config::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
        let stream = watcher(api, config).backoff(retry_backoff());
        pin_mut!(stream);
        // The uids of the objects that exist, with their Jobs; and those of a listing that is not
        // complete yet.
        let (mut there, mut listed) = (HashMap::<String, String>::new(), HashMap::new());
        let mut away = false;
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(
                            error = ion_model::errors::error_chain(&error),
                            "{what} cannot be watched; trying again"
                        );
                    }
                    continue;
                }
            };
            away = false;
            match event {
                Event::Apply(object) | Event::InitApply(object) if object.uid().is_none() => {
                    tracing::warn!(name = object.name_any(), "an object without a uid is left out");
                }
                Event::Apply(object) => {
                    there.insert(object.uid().unwrap_or_default(), job_of(&object));
                    self.change(&job_of(&object), |known| note(known, ObjectChange::There(object)));
                }
                Event::Delete(object) => {
                    let uid = object.uid().unwrap_or_default();
                    there.remove(&uid);
                    self.change(&job_of(&object), |known| {
                        // Its last state first: a pod's state says how its container ended.
                        note(known, ObjectChange::There(object));
                        note(known, ObjectChange::Gone(uid));
                    });
                }
                Event::Init => listed.clear(),
                Event::InitApply(object) => {
                    listed.insert(object.uid().unwrap_or_default(), job_of(&object));
                    self.change(&job_of(&object), |known| note(known, ObjectChange::There(object)));
                }
                Event::InitDone => {
                    let before = std::mem::replace(&mut there, std::mem::take(&mut listed));
                    for (uid, job) in before {
                        if !there.contains_key(&uid) {
                            self.change(&job, |known| note(known, ObjectChange::Gone(uid)));
                        }
                    }
                }
            }
        }
    }
}

fn remove_if_unused(all: &mut HashMap<String, watch::Sender<PodJobState>>, job: &str) {
    let of_use = |sender: &watch::Sender<PodJobState>| {
        let known = sender.borrow();
        sender.receiver_count() > 0 || known.job.is_some() || !known.pods.is_empty()
    };
    if all.get(job).is_some_and(|sender| !of_use(sender)) {
        all.remove(job);
    }
}

/// Returns the backoff while the server is unavailable. It has no end, as jobs may be longer than
/// any outage.
fn retry_backoff() -> ExponentialBackoff {
    let waits = ExponentialBuilder::new()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter();
    waits.without_max_times().into()
}

enum ObjectChange<K> {
    There(K),
    /// The object with this uid is gone.
    Gone(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_away_for_long_is_asked_again_within_seconds() {
        let waits: Vec<Duration> = retry_backoff().take(1000).collect();
        assert!(waits[0] < 2 * BACKOFF_MIN, "{:?}", waits[0]);
        let late = &waits[10..];
        assert_eq!(late.len(), 990, "it goes on");
        assert!(late.iter().all(|wait| (BACKOFF_MAX..2 * BACKOFF_MAX).contains(wait)), "{late:?}");
        assert!(late.iter().any(|wait| *wait != late[0]), "by chance");
    }

    #[test]
    fn what_is_known_stays_while_it_is_there_or_looked_at_and_no_longer() {
        let watched = JobStates::default();
        let named = |name: &str| Job {
            metadata: kube::core::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
            ..Job::default()
        };
        let there = |name: &str| watched.change(name, |known| known.job = Some(named(name)));
        let gone = |name: &str| {
            watched.change(name, |known| {
                known.job_deleted = true;
                known.job = None;
            });
        };
        there("left");
        let looks = watched.receiver_for("left");
        drop(looks);
        watched.forget_unused("left");
        // It is adopted again, before the server sends anything.
        assert!(watched.receiver_for("left").borrow().job.is_some());
        gone("left");
        assert!(watched.lock_states().is_empty());
        let looks = watched.receiver_for("looked at");
        there("looked at");
        gone("looked at");
        assert!(looks.borrow().job_deleted);
        drop(looks);
        watched.forget_unused("looked at");
        assert!(watched.lock_states().is_empty());
        // It is deleted after every receiver is dropped.
        gone("unknown");
        assert!(watched.lock_states().is_empty());
    }
}
