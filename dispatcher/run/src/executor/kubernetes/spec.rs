//! The spec of an attempt's Job: an ordinary pod without special rights, with one volume.

use std::collections::BTreeMap;
use std::path::Path;

use ion_csi as csi;
use ion_jobs::pipeline::{ImageReference, Module, ModuleApi, Network, Resources};
use ion_model::checksum::hex;
use ion_model::secret::{SECRETS_FOLDER, SecretOrigin};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    CSIVolumeSource, Capabilities, Container, EnvVar, KeyToPath, LocalObjectReference,
    PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};

use super::super::AttemptStart;
use super::super::attempt::{attempt_variables, environment};
use crate::secrets::{self, NeededSecret};

/// The label by which a dispatcher finds the objects that Ion made.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "ion");

/// The annotation that holds the fingerprint of a Job's spec: a Job is adopted if its fingerprint,
/// or the attempt of its token, is the same.
pub(super) const FINGERPRINT: &str = "ion/fingerprint";

/// The container that runs the module.
pub(super) const CONTAINER: &str = "module";

/// The volume that is mounted at `/ion`.
const VOLUME: &str = "ion";

/// The volume with the module's secrets.
const SECRET_VOLUME: &str = "secrets";

/// The mode of the files of secrets. The kubelet gives them to root, and the module runs as any
/// user: so every user may read them in the pod's one container, and nobody anywhere else sees the
/// volume.
const SECRET_MODE: i32 = 0o444;

/// How long the cluster keeps an ended Job that no dispatcher removes.
const KEPT_SECONDS: i32 = 24 * 3600;

/// How long a pod has between SIGTERM and SIGKILL, as a local job has.
const GRACE_SECONDS: i64 = 5;

/// The most characters of a label's value.
const LABEL_MAX: usize = 63;

/// The reason why a module cannot run as a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodSpecError {
    /// The module has no image.
    #[error("executor: kubernetes needs an image")]
    NoImage,
    /// The module's image is on this machine only.
    #[error("nodes cannot pull {0}: executor: kubernetes needs a registry's image")]
    LocalImage(ImageReference),
    /// The module needs the sidecar, which a pod cannot reach.
    #[error("\"api: sidecar\" listens on this machine's loopback, which a pod does not see")]
    Sidecar,
    /// The module names its user by a name.
    #[error("\"user\" {0:?}: executor: kubernetes needs numbers, as in 1000:1000")]
    User(String),
    /// The source names a file of a dispatcher's machine.
    #[error(
        "secret {0:?} is a file of a dispatcher's machine, which a pod does not have; name a key of \
         the Secret {1:?} in the namespace of jobs"
    )]
    SecretFile(String, String),
    /// The spec cannot be written.
    #[error("its Job cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

/// Returns the name of an attempt's Job: every dispatcher derives the same one.
pub(super) fn job_name(job: &str, attempt: u32) -> String {
    format!("ion-{job}-{attempt}")
}

/// Returns the Job of this attempt. Its fingerprint does not depend on the token.
///
/// # Errors
/// When the module asks for something that a pod cannot have.
pub(super) fn build_job(start: &AttemptStart, token: &str) -> Result<Job, PodSpecError> {
    let module = &start.module;
    let Some(container) = &module.container else {
        return Err(PodSpecError::NoImage);
    };
    let ImageReference::Registry(image) = &container.image else {
        return Err(PodSpecError::LocalImage(container.image.clone()));
    };
    if module.api != ModuleApi::None {
        return Err(PodSpecError::Sidecar);
    }
    let mut pod = pod_spec(start, token, module_container(start, image, container)?);
    if let Some(volume) = secret_volume(start)? {
        pod.volumes.get_or_insert_default().push(volume);
    }
    let labels = labels(start, container.network);
    let seconds = i64::try_from(module.timeout.as_secs().max(1)).unwrap_or(i64::MAX);
    let spec = JobSpec {
        active_deadline_seconds: Some(seconds),
        backoff_limit: Some(0),
        // Servers that support this start no second pod while the first one ends.
        pod_replacement_policy: Some("Failed".into()),
        ttl_seconds_after_finished: Some(KEPT_SECONDS),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: Some(labels.clone()), ..ObjectMeta::default() }),
            spec: Some(pod),
        },
        ..JobSpec::default()
    };
    let fingerprint = fingerprint(&spec, token)?;
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(job_name(start.job.id.as_str(), start.job.attempt)),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(FINGERPRINT.to_owned(), fingerprint)])),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// Returns the container that runs the module, with the volume at the module's base folder.
///
/// # Errors
/// [`PodSpecError::User`] when the module names its user by a name.
fn module_container(
    start: &AttemptStart,
    image: &str,
    asked: &ion_jobs::pipeline::Container,
) -> Result<Container, PodSpecError> {
    let module = &start.module;
    let has_secrets = secrets::are_needed_by(module, &start.event);
    let secrets_at = has_secrets.then_some(Path::new(SECRETS_FOLDER));
    let own = attempt_variables(&start.job, &start.event);
    let env = environment(&[], module, own, &module.base_dir(), secrets_at);
    let variable = |(name, value)| EnvVar { name, value: Some(value), value_from: None };
    let (uid, gid) = parse_user(asked.user.as_deref())?;
    Ok(Container {
        name: CONTAINER.into(),
        image: Some(image.to_owned()),
        command: (!module.run.is_empty()).then(|| module.argv()),
        env: Some(env.into_iter().map(variable).collect()),
        resources: to_requirements(&asked.resources),
        volume_mounts: Some(volume_mounts(module, has_secrets)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            run_as_user: uid,
            run_as_group: gid,
            // Set explicitly, so that the pod passes the strictest of the cluster's own
            // policies.
            run_as_non_root: uid.map(|uid| uid != 0),
            ..SecurityContext::default()
        }),
        ..Container::default()
    })
}

/// Returns where the container has its volumes.
fn volume_mounts(module: &Module, has_secrets: bool) -> Vec<VolumeMount> {
    let tree = VolumeMount {
        name: VOLUME.into(),
        mount_path: module.base_dir().display().to_string(),
        ..VolumeMount::default()
    };
    let secrets = has_secrets.then(|| VolumeMount {
        name: SECRET_VOLUME.into(),
        mount_path: SECRETS_FOLDER.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    [tree].into_iter().chain(secrets).collect()
}

/// Returns the volume with the module's secrets, if it has any: keys of one Secret, each under the
/// name that the module reads.
///
/// # Errors
/// [`PodSpecError::SecretFile`] when a source names a file for one of them.
fn secret_volume(start: &AttemptStart) -> Result<Option<Volume>, PodSpecError> {
    let name = start.module.kubernetes.secret_name();
    let item = |needed: NeededSecret| match needed.origin {
        SecretOrigin::Named(key) => Ok(KeyToPath { key, path: needed.name, mode: None }),
        SecretOrigin::File(_) => Err(PodSpecError::SecretFile(needed.name, name.to_owned())),
    };
    let needed = secrets::needed_by(&start.module, &start.event);
    let items = needed.into_iter().map(item).collect::<Result<Vec<_>, _>>()?;
    Ok((!items.is_empty()).then(|| Volume {
        name: SECRET_VOLUME.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            items: Some(items),
            default_mode: Some(SECRET_MODE),
            // Without it the pod does not start, and says why.
            optional: Some(false),
        }),
        ..Volume::default()
    }))
}

/// Returns the pod of this container, with the volume that the token names.
fn pod_spec(start: &AttemptStart, token: &str, container: Container) -> PodSpec {
    let kubernetes = &start.module.kubernetes;
    let secret = |name: &String| LocalObjectReference { name: name.clone() };
    PodSpec {
        containers: vec![container],
        volumes: Some(vec![Volume {
            name: VOLUME.into(),
            csi: Some(CSIVolumeSource {
                driver: csi::DRIVER_NAME.into(),
                volume_attributes: Some(BTreeMap::from([(
                    csi::TOKEN_ATTRIBUTE.to_owned(),
                    token.to_owned(),
                )])),
                ..CSIVolumeSource::default()
            }),
            ..Volume::default()
        }]),
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        service_account_name: kubernetes.service_account.clone(),
        node_selector: Some(kubernetes.node_selector.clone()).filter(|labels| !labels.is_empty()),
        tolerations: Some(kubernetes.tolerations.iter().map(to_toleration).collect()),
        image_pull_secrets: Some(kubernetes.image_pull_secrets.iter().map(secret).collect()),
        ..PodSpec::default()
    }
}

/// Returns the token in a Job's pod, if there is one.
pub(super) fn find_token(job: &Job) -> Option<&str> {
    let volumes = job.spec.as_ref()?.template.spec.as_ref()?.volumes.as_ref()?;
    let attributes =
        volumes.iter().find_map(|volume| volume.csi.as_ref()?.volume_attributes.as_ref())?;
    attributes.get(csi::TOKEN_ATTRIBUTE).map(String::as_str)
}

/// Returns the hash of the spec without the token, which differs each time.
fn fingerprint(spec: &JobSpec, token: &str) -> Result<String, PodSpecError> {
    let text = serde_json::to_string(spec).map_err(PodSpecError::Json)?;
    Ok(hex(&Sha256::digest(text.replace(token, ""))))
}

/// Returns the user and group that it runs as. They must be numbers, because a cluster does not
/// know an image's names of users before it has the image.
fn parse_user(user: Option<&str>) -> Result<(Option<i64>, Option<i64>), PodSpecError> {
    let Some(user) = user else { return Ok((None, None)) };
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (user, None),
    };
    let number = |text: &str| text.parse::<i64>().map_err(|_| PodSpecError::User(user.to_owned()));
    Ok((Some(number(uid)?), gid.map(number).transpose()?))
}

fn to_requirements(asked: &Resources) -> Option<ResourceRequirements> {
    let quantities = [
        ("cpu", asked.cpu_millis.map(|millis| format!("{millis}m"))),
        ("memory", asked.memory_bytes.map(|bytes| bytes.to_string())),
        ("nvidia.com/gpu", asked.gpus.map(|gpus| gpus.to_string())),
    ];
    let limits: BTreeMap<String, Quantity> = quantities
        .into_iter()
        .filter_map(|(name, quantity)| Some((name.to_owned(), Quantity(quantity?))))
        .collect();
    (!limits.is_empty()).then(|| ResourceRequirements {
        requests: Some(limits.clone()),
        limits: Some(limits),
        ..ResourceRequirements::default()
    })
}

fn to_toleration(asked: &ion_jobs::pipeline::Toleration) -> Toleration {
    Toleration {
        key: asked.key.clone(),
        operator: asked.operator.clone(),
        value: asked.value.clone(),
        effect: asked.effect.clone(),
        toleration_seconds: asked.toleration_seconds,
    }
}

/// Returns the labels by which people and policies find a pod; the second half are older Ion's.
fn labels(start: &AttemptStart, network: Network) -> BTreeMap<String, String> {
    let event = &start.event;
    let network = match network {
        Network::None => "none",
        Network::Host => "host",
    };
    let attempt = start.job.attempt.to_string();
    [
        MANAGED_BY,
        ("ion/module", &start.module.name),
        ("ion/event", event.id.as_str()),
        ("ion/correlation", event.context.correlation_id.as_str()),
        ("ion/job", start.job.id.as_str()),
        ("ion/attempt", &attempt),
        ("ion/network", network),
        ("ion/createdBy", "ion"),
        ("ion/messageid", event.id.as_str()),
        ("ion/deliverycount", &attempt),
        ("ion/parenteventid", &event.context.parent_event_id),
        ("ion/eventid", event.id.as_str()),
        ("ion/modulename", &start.module.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), to_label_value(value)))
    .collect()
}

/// Turns a text into a valid value of a label.
fn to_label_value(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let value: String = text.chars().map(allowed).take(LABEL_MAX).collect();
    value.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ion_jobs::pipeline::Pipeline;
    use ion_model::event::Event;
    use ion_model::id::JobId;
    use ion_model::record::{JobRecord, JobState};
    use ion_model::source::SourceTick;
    use ion_model::state::StateFiles;
    use serde_json::{Value, json};
    use tokio::sync::oneshot;

    use super::*;

    /// Returns the pod of a job of the only module of this pipeline file, whose source has these
    /// secrets.
    fn pod(text: &str, secrets: &[(&str, &str)]) -> Result<Value, PodSpecError> {
        let pipeline = Pipeline::from_bytes(text.as_bytes(), "p", &PathBuf::from("/")).unwrap();
        let module = pipeline.modules[0].clone();
        let mut event: Event = serde_json::from_value(json!({
            "id": "e", "type": "t", "created": 0, "publication": "published",
            "context": {"name": "n", "eventId": "e", "correlationId": "c", "parentEventId": "",
                        "documentType": "eventMeta"},
        }))
        .unwrap();
        if !secrets.is_empty() {
            event.tick = Some(Box::new(SourceTick {
                source: "s".into(),
                scheduled: 0,
                state: StateFiles::default(),
                secrets: secrets
                    .iter()
                    .map(|(name, at)| ((*name).to_owned(), at.parse().unwrap()))
                    .collect(),
            }));
        }
        let id = JobId::derive(&event.id, &module.name);
        let job = JobRecord::new(id, &module.name, &event, JobState::Starting, 0);
        let (running, _) = oneshot::channel();
        let start = AttemptStart { job, module, event, gathered: None, running };
        let job = build_job(&start, "token")?;
        Ok(serde_json::to_value(job).unwrap()["spec"]["template"]["spec"].clone())
    }

    #[test]
    fn a_pod_has_its_secrets_from_a_secret_of_its_namespace() {
        let with = |more: &str| {
            format!(
                "modules:\n  m: {{params: {{token: {{type: secret}}}}, commit: on-success, \
                 executor: kubernetes, image: 'registry.example/m:1'{more}}}\n"
            )
        };
        let found = pod(&with(", secrets: [SLACK_URL]"), &[("token", "X_TOKEN")]).unwrap();
        let volume = json!({
            "name": "secrets",
            "secret": {
                "secretName": "ion-secrets", "defaultMode": 0o444, "optional": false,
                "items": [{"key": "SLACK_URL", "path": "SLACK_URL"}, {"key": "X_TOKEN", "path": "token"}],
            },
        });
        assert_eq!(found["volumes"][1], volume);
        let container = &found["containers"][0];
        let mounted = json!({"name": "secrets", "mountPath": "/run/secrets", "readOnly": true});
        assert_eq!(container["volumeMounts"][1], mounted);
        let variable = json!({"name": "ION_SECRETS_DIR", "value": "/run/secrets"});
        assert!(container["env"].as_array().unwrap().contains(&variable));

        let named = ", secrets: [A], kubernetes: {secret: mine}";
        let found = pod(&with(named), &[]).unwrap();
        assert_eq!(found["volumes"][1]["secret"]["secretName"], "mine");

        let found = pod(&with(""), &[]).unwrap();
        assert_eq!(found["volumes"].as_array().unwrap().len(), 1);
        assert!(!found.to_string().contains("SECRETS"));

        let refused = pod(&with(""), &[("token", "file:/etc/ion/token")]).unwrap_err();
        assert!(refused.to_string().contains("name a key of the Secret \"ion-secrets\""));
    }

    #[test]
    fn any_text_is_a_label() {
        assert_eq!(to_label_value("new_video"), "new_video");
        assert_eq!(to_label_value("-a/b c."), "a_b_c");
        assert_eq!(to_label_value(&"x".repeat(100)).len(), 63);
        assert_eq!(to_label_value("///"), "");
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user(Some("1000:5")).unwrap(), (Some(1000), Some(5)));
        assert_eq!(parse_user(None).unwrap(), (None, None));
        assert!(parse_user(Some("www-data")).unwrap_err().to_string().contains("1000:1000"));
    }
}
