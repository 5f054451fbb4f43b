//! What has become of an attempt in the cluster, derived from its watched Job and pod by pure
//! functions. This is not Kubernetes' `status.phase`. *Job* is Kubernetes' object, *job* is Ion's.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, Pod};

use super::spec::CONTAINER;
use super::watched::PodJobState;

/// Reasons for which a container waits that seldom end by themselves: its image cannot be pulled.
const IMAGE_TROUBLE: [&str; 4] =
    ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"];

/// More reasons for which a container waits that seldom end by themselves: it cannot be made from
/// its spec.
const CONTAINER_TROUBLE: [&str; 3] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];

/// The phase of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its container does not run yet; in words, what it waits for, if the cluster says so.
    Waiting(Option<String>),
    /// Its container waits for something that seldom comes by itself; in words. The executor
    /// decides how long this may last.
    Stuck(String),
    /// Its container runs, in the pod of this name.
    Running(String),
    /// Its pod was asked to end and still exists: the pod's name, if its container still runs, and
    /// the grace period within which a working node ends it.
    Leaving(Option<String>, Duration),
    /// Its Job is complete, but no pod is known: it was removed before it was seen, or is not
    /// listed yet. If none appears, the executor takes it for exit status 0.
    Complete,
    /// It has ended.
    Ended(PodEnd),
}

/// How an attempt ended in the cluster, with or without a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PodEnd {
    /// The container exited.
    Exited(i32),
    /// The kernel killed the container, or a process in it, for its memory limit; its exit status.
    OutOfMemory(i32),
    /// It exceeded its deadline; what its pod waited for until then, if the pod never ran.
    Deadline(Option<String>),
    /// The cluster removed its pod: an eviction, a lost node, a deletion. Not the module's fault.
    Lost(String),
    /// The cluster refused to run it.
    Refused(String),
}

/// Returns the attempt's phase.
pub(super) fn derive_phase(known: &PodJobState) -> Phase {
    let failed = known.job.as_ref().and_then(job_failure);
    if let Some((reason, _)) = &failed
        && reason == "DeadlineExceeded"
    {
        return Phase::Ended(PodEnd::Deadline(known.pod().and_then(waiting_words)));
    }
    if let Some(pod) = known.pod() {
        if let Some(end) = pod_end(pod) {
            return Phase::Ended(match (&end, &pod.metadata.deletion_timestamp) {
                // It was asked to end, by the Job controller at its deadline or by a deletion, so
                // its status says nothing of the module. A module that still exits with 0 has done
                // its work.
                (PodEnd::Exited(code), Some(_)) if *code != 0 => {
                    match was_asked_at_deadline(known.job.as_ref(), pod) {
                        true => PodEnd::Deadline(None),
                        false => PodEnd::Lost(removal_words(pod)),
                    }
                }
                _ => end,
            });
        }
        if known.deleted.is_some() {
            return Phase::Ended(match was_asked_at_deadline(known.job.as_ref(), pod) {
                true => PodEnd::Deadline(waiting_words(pod)),
                false => PodEnd::Lost(removal_words(pod)),
            });
        }
        let runs = container_state(pod).is_some_and(|state| state.running.is_some());
        let name = runs.then(|| pod.metadata.name.clone().unwrap_or_default());
        return match (name, &pod.metadata.deletion_timestamp) {
            (name, Some(_)) => Phase::Leaving(
                name,
                Duration::from_secs(grace_seconds(pod).try_into().unwrap_or(0)),
            ),
            (Some(name), None) => Phase::Running(name),
            (None, None) => waiting_phase(pod),
        };
    }
    match failed {
        Some((reason, message)) => Phase::Ended(PodEnd::Refused(format!("{reason}: {message}"))),
        None if known.job.as_ref().is_some_and(|job| true_condition(job, "Complete").is_some()) => {
            Phase::Complete
        }
        None if known.job_deleted => Phase::Ended(PodEnd::Lost("its Job was deleted".into())),
        None => Phase::Waiting(None),
    }
}

/// Returns whether the pod was asked to end because the Job's time was over. The Job reports its
/// deadline later than the pod.
fn was_asked_at_deadline(job: Option<&Job>, pod: &Pod) -> bool {
    // `deletionTimestamp` is when the pod must be gone: the request plus the grace period.
    let asked =
        pod.metadata.deletion_timestamp.as_ref().map(|end| end.0.as_second() - grace_seconds(pod));
    let begun = job.and_then(|job| job.status.as_ref()?.start_time.clone());
    let most = job.and_then(|job| job.spec.as_ref()?.active_deadline_seconds);
    match (begun, asked, most) {
        (Some(begun), Some(asked), Some(most)) => asked - begun.0.as_second() >= most,
        _ => false,
    }
}

/// Returns the grace period in seconds: from when a pod is asked to end until it must have ended.
fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata.deletion_grace_period_seconds.unwrap_or(0)
}

/// Returns why a pod was removed before its container ended.
fn removal_words(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    match status.and_then(|status| status.reason.as_deref()) {
        Some("NodeLost") => "its node was lost".into(),
        Some(reason) => {
            let message = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
            format!("its pod went away: {reason}: {message}")
        }
        None => "its pod was deleted".into(),
    }
}

/// Returns the reason and the message of a Job's failure, if it has failed.
fn job_failure(job: &Job) -> Option<(String, String)> {
    let failed = true_condition(job, "Failed")?;
    Some((failed.reason.clone().unwrap_or_default(), failed.message.clone().unwrap_or_default()))
}

/// Returns a condition of a Job that holds.
fn true_condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == kind && one.status == "True")
}

fn container_state(pod: &Pod) -> Option<&ContainerState> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == CONTAINER)?.state.as_ref()
}

/// Returns how the pod ended: by its own status (evicted, refused), or with its container. None
/// while it has not ended.
fn pod_end(pod: &Pod) -> Option<PodEnd> {
    let status = pod.status.as_ref()?;
    let message = || status.message.clone().unwrap_or_default();
    match status.reason.as_deref() {
        Some("Evicted") => {
            return Some(PodEnd::Lost(format!("its pod was evicted: {}", message())));
        }
        Some("Preempting" | "Preempted") => {
            return Some(PodEnd::Lost(format!("its pod made room for another: {}", message())));
        }
        Some("NodeLost") => return Some(PodEnd::Lost("its node was lost".into())),
        // The kubelet ends running pods with the first two reasons, and refuses new ones with the
        // third.
        Some("Shutdown" | "Terminated" | "NodeShutdown") => {
            return Some(PodEnd::Lost(format!("its node was shut down: {}", message())));
        }
        Some(reason @ ("NodeAffinity" | "OutOfcpu" | "OutOfmemory" | "OutOfpods")) => {
            return Some(refused_by_node(reason, &message()));
        }
        Some("DeadlineExceeded") => return Some(PodEnd::Deadline(None)),
        _ => {}
    }
    let terminated = container_state(pod).and_then(|state| state.terminated.as_ref());
    let Some(terminated) = terminated else {
        // A node has many reasons to refuse a pod, and each release of Kubernetes may add one.
        let has_failed = status.phase.as_deref() == Some("Failed");
        let reason = status.reason.as_deref().unwrap_or("no reason given");
        return has_failed.then(|| refused_by_node(reason, &message()));
    };
    let code = terminated.exit_code;
    match terminated.reason.as_deref() {
        Some("OOMKilled") => Some(PodEnd::OutOfMemory(code)),
        Some("ContainerCannotRun" | "StartError") => {
            let words = terminated.message.clone().unwrap_or_default();
            Some(PodEnd::Refused(format!("its container cannot run: {words}")))
        }
        // The kubelet reports this for a container that it does not know: its node was restarted
        // meanwhile.
        Some("ContainerStatusUnknown") => {
            Some(PodEnd::Lost("its node does not know its end".into()))
        }
        _ => Some(PodEnd::Exited(code)),
    }
}

fn refused_by_node(reason: &str, message: &str) -> PodEnd {
    PodEnd::Lost(format!("its node refused the pod: {reason}: {message}"))
}

/// Returns the phase of a pod whose container does not run yet: waiting or stuck.
fn waiting_phase(pod: &Pod) -> Phase {
    let wait = container_state(pod).and_then(|state| state.waiting.as_ref());
    let (reason, message) = match wait {
        Some(wait) => {
            (wait.reason.clone().unwrap_or_default(), wait.message.clone().unwrap_or_default())
        }
        None => match scheduling_words(pod) {
            Some(words) => return Phase::Waiting(Some(words)),
            None => return Phase::Waiting(None),
        },
    };
    if IMAGE_TROUBLE.contains(&&*reason) {
        return Phase::Stuck(format!("its image cannot be pulled: {reason}: {message}"));
    }
    if CONTAINER_TROUBLE.contains(&&*reason) {
        return Phase::Stuck(format!("its container cannot be made: {reason}: {message}"));
    }
    Phase::Waiting(Some(reason))
}

/// Returns what a pod that never ran waits for.
fn waiting_words(pod: &Pod) -> Option<String> {
    match waiting_phase(pod) {
        Phase::Waiting(words) => words,
        Phase::Stuck(words) => Some(words),
        _ => None,
    }
}

fn scheduling_words(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled =
        conditions.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
    Some(format!("no node takes it: {}", scheduled.message.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn known_state(pod: Value, job: Value) -> PodJobState {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let job: Job = serde_json::from_value(job).unwrap();
        PodJobState {
            job: Some(job),
            pods: [("u".to_owned(), pod)].into(),
            ..PodJobState::default()
        }
    }

    fn pod_json(state: Value) -> Value {
        let container = json!({
            "name": "module", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        });
        json!({"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": [container]}})
    }

    fn exited_pod(code: i32, reason: &str) -> Value {
        let finished = "2026-01-01T00:00:30Z";
        pod_json(json!({
            "terminated": {"exitCode": code, "reason": reason, "finishedAt": finished},
        }))
    }

    fn job_json(deadline: i64) -> Value {
        json!({
            "metadata": {},
            "spec": {"activeDeadlineSeconds": deadline, "template": {}},
            "status": {"startTime": "2026-01-01T00:00:00Z"},
        })
    }

    #[test]
    fn ends_are_told_apart() {
        let end = |pod: Value, job: Value| match derive_phase(&known_state(pod, job)) {
            Phase::Ended(end) => end,
            other => panic!("{other:?}"),
        };
        assert_eq!(end(exited_pod(3, "Error"), json!({"metadata": {}})), PodEnd::Exited(3));
        assert_eq!(
            end(exited_pod(3, "OOMKilled"), json!({"metadata": {}})),
            PodEnd::OutOfMemory(3)
        );
        let mut deleted = exited_pod(137, "Error");
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:25Z");
        deleted["metadata"]["deletionGracePeriodSeconds"] = json!(5);
        assert_eq!(end(deleted.clone(), job_json(60)), PodEnd::Lost("its pod was deleted".into()));
        assert_eq!(end(deleted.clone(), job_json(21)), PodEnd::Lost("its pod was deleted".into()));
        assert_eq!(end(deleted.clone(), job_json(20)), PodEnd::Deadline(None));
        deleted["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = json!(0);
        assert_eq!(end(deleted, job_json(60)), PodEnd::Exited(0));
        let mut evicted = exited_pod(137, "Error");
        evicted["status"]["reason"] = json!("Evicted");
        evicted["status"]["message"] = json!("the node was low on memory");
        assert_eq!(
            end(evicted, json!({"metadata": {}})),
            PodEnd::Lost("its pod was evicted: the node was low on memory".into())
        );
        let failed = json!({"metadata": {}, "status": {"conditions": [
            {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"}]}});
        assert_eq!(end(pod_json(json!({"running": {}})), failed.clone()), PodEnd::Deadline(None));
        let waits = pod_json(json!({"waiting": {"reason": "ContainerCreating"}}));
        assert_eq!(end(waits, failed), PodEnd::Deadline(Some("ContainerCreating".into())));
    }

    #[test]
    fn what_a_node_refuses_or_shuts_down_is_lost_whatever_reason_it_gives() {
        let lost = |reason: &str, words: &str| {
            let pod = json!({"metadata": {"name": "p", "uid": "u"},
                "status": {"phase": "Failed", "reason": reason, "message": "m"}});
            let ended = derive_phase(&known_state(pod, json!({"metadata": {}})));
            assert_eq!(ended, Phase::Ended(PodEnd::Lost(words.into())));
        };
        lost("NodeShutdown", "its node was shut down: m");
        lost("Terminated", "its node was shut down: m");
        lost("OutOfcpu", "its node refused the pod: OutOfcpu: m");
        lost("UnexpectedAdmissionError", "its node refused the pod: UnexpectedAdmissionError: m");
    }

    #[test]
    fn a_pod_that_goes_is_told_from_one_that_is_gone() {
        let job = job_json(20);
        let mut leaving = pod_json(json!({"running": {}}));
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:24Z");
        leaving["metadata"]["deletionGracePeriodSeconds"] = json!(5);
        let grace = Duration::from_secs(5);
        let leaving = known_state(leaving, job.clone());
        assert_eq!(derive_phase(&leaving), Phase::Leaving(Some("p".into()), grace));
        let gone = |mut known: PodJobState| {
            known.deleted = known.pods.remove("u");
            derive_phase(&known)
        };
        assert_eq!(gone(leaving), Phase::Ended(PodEnd::Lost("its pod was deleted".into())));
        // A pod without a node is removed at once, before its Job says why.
        let waited = json!({
            "metadata": {"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:20Z"},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]},
        });
        let words = "no node takes it: 0/1 nodes".to_owned();
        assert_eq!(gone(known_state(waited, job)), Phase::Ended(PodEnd::Deadline(Some(words))));
    }

    #[test]
    fn what_it_waits_for_is_said() {
        let waits = |reason: &str| {
            derive_phase(&known_state(
                pod_json(json!({"waiting": {"reason": reason, "message": "m"}})),
                json!({"metadata": {}}),
            ))
        };
        assert_eq!(waits("ContainerCreating"), Phase::Waiting(Some("ContainerCreating".into())));
        assert_eq!(
            waits("ErrImagePull"),
            Phase::Stuck("its image cannot be pulled: ErrImagePull: m".into())
        );
        assert!(matches!(waits("CreateContainerConfigError"), Phase::Stuck(_)));
        assert_eq!(
            derive_phase(&known_state(pod_json(json!({"running": {}})), json!({"metadata": {}}))),
            Phase::Running("p".into())
        );
        let unschedulable = json!({"metadata": {"name": "p", "uid": "u"}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}});
        assert_eq!(
            derive_phase(&known_state(unschedulable, json!({"metadata": {}}))),
            Phase::Waiting(Some("no node takes it: 0/1 nodes are available".into()))
        );
    }
}
