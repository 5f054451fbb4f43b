//! The services that the kubelet calls, and the publishing of volumes behind them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ion_fs::job::{JobSpec, JobTree, OpenError, TreeOutcome, TreeUsers, remove_attempt};
use ion_fs::mount::{ServedMount, Visitors, mount_at};
use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::EventId;
use ion_model::limits::Limits;
use ion_plane::gathered::GatheredEvents;
use ion_plane::node::Node;
use ion_stores::{Collection, StoreError};
use ion_system::run_blocking;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::api::csi::identity_server::Identity;
use super::api::csi::node_server::Node as NodeService;
use super::api::csi::volume_capability::AccessType;
use super::api::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodePublishVolumeRequest, NodePublishVolumeResponse,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, ProbeRequest, ProbeResponse,
};
use super::api::registration::registration_server::Registration;
use super::api::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use super::volumes::{Volume, VolumeNote, VolumeState, Volumes, unmount_and_remove};
use super::{CsiError, DRIVER_NAME, TOKEN_ATTRIBUTE};
use crate::ticket::{
    Ticket, TicketError, TicketGathered, TicketKey, TicketPod, TokenError, TreeEnd,
};

/// Keys of what the kubelet says about the pod. The CSIDriver object asks for it with
/// `podInfoOnMount`.
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// The most bytes of a volume's id.
const VOLUME_ID_BYTES_MAX: usize = 128;

/// The most receipts, and the most rejections, in a ticket: enough for people, and less than a
/// document may hold. A job may publish any number of events.
const TICKET_ENTRIES_MAX: usize = 50;

/// How long the driver waits for an unmounted tree to end.
const TREE_END_WAIT: Duration = Duration::from_secs(10);

/// How long an ending daemon may wait for a store: well below the 30 seconds that its pod has to
/// end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long a call may take. The kubelet gives up after two minutes and calls again.
const CALL_TIMEOUT: Duration = Duration::from_secs(100);

/// The driver of one node. All clones share its state.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    node: Arc<Node>,
    key: TicketKey,
    node_id: String,
    volumes: Arc<Volumes>,
}

impl Driver {
    pub(super) fn new(node: Arc<Node>, key: TicketKey, node_id: String) -> Result<Self, CsiError> {
        let path = node.settings.home.join("volumes");
        let volumes =
            Volumes::new(path.clone()).map_err(|source| CsiError::Notes { path, source })?;
        Ok(Self { node, key, node_id, volumes: Arc::new(volumes) })
    }

    /// Unmounts what a daemon that died left mounted, and records in the tickets that the trees are
    /// lost. A loss that cannot be recorded now is recorded when the volume is published again or
    /// unpublished.
    pub(super) async fn remove_lost_trees(&self) {
        let notes = match self.volumes.read_notes() {
            Ok(notes) => notes,
            Err(error) => {
                return tracing::warn!(%error, "notes of published volumes cannot be read");
            }
        };
        for note in &notes {
            let (volume, ticket) = (&note.volume, note.ticket_id());
            tracing::warn!(volume, ticket, "a pod's tree was lost with the daemon that served it");
            self.remove_lost_tree(note).await;
        }
        self.record_ends(notes.into_iter().map(|note| (note, None))).await;
    }

    /// Ends the daemon: stops all trees that its pods still have, and records in their tickets how
    /// they ended. All trees are stopped before the first ticket is written, so none of them can
    /// commit after that.
    pub(super) async fn close(&self) {
        let mut ended = Vec::new();
        for slot in self.volumes.slots() {
            // The note of a volume that is being published or unpublished is kept.
            let Some(Volume { note, state }) =
                slot.try_lock().ok().and_then(|mut published| published.take())
            else {
                continue;
            };
            match state {
                VolumeState::Served(tree, _) => {
                    tree.stop();
                    self.remove_lost_tree(&note).await;
                    ended.push((note, None));
                }
                VolumeState::Decided(outcome) => ended.push((note, Some(outcome))),
            }
        }
        let recorded = timeout(CLOSE_WAIT, self.record_ends(ended)).await;
        if recorded.is_err() {
            tracing::warn!(
                "not all tickets say yet how their trees ended; the next daemon records it"
            );
        }
    }

    /// Unmounts a lost tree, and removes the files that it had staged.
    async fn remove_lost_tree(&self, note: &VolumeNote) {
        let target = note.target.clone();
        if let Err(error) = run_blocking(move || unmount_and_remove(&target)).await {
            tracing::warn!(
                target = %note.target.display(),
                %error,
                "a lost tree cannot be unmounted"
            );
        }
        remove_attempt(&self.node.settings.home, &note.job, note.attempt).await;
    }

    /// Records in tickets how their trees ended: with this outcome, or lost. Stops at the first
    /// ticket that cannot be written and leaves the others for later: each further write would wait
    /// for the unavailable store again.
    async fn record_ends(
        &self,
        ended: impl IntoIterator<Item = (VolumeNote, Option<TreeOutcome>)>,
    ) {
        for (note, outcome) in ended {
            if let Err(error) = self.record_end(&note, outcome).await {
                return tracing::warn!(
                    error = error_chain(&error),
                    "a ticket does not say yet how its tree ended"
                );
            }
        }
    }

    /// Records in the ticket how its tree ended: with this outcome, or lost. Then removes the note
    /// of the volume.
    async fn record_end(
        &self,
        note: &VolumeNote,
        outcome: Option<TreeOutcome>,
    ) -> Result<(), StoreError> {
        let ended = outcome.map_or_else(
            || {
                TreeEnd::Lost(format!(
                    "the daemon of node {} that served its tree ended",
                    self.node_id
                ))
            },
            |outcome| TreeEnd::Outcome(outcome.shortened(TICKET_ENTRIES_MAX)),
        );
        Ticket::record_end(&self.node.plane, &note.ticket_id(), &ended).await?;
        self.remove_note(note);
        Ok(())
    }

    fn remove_note(&self, note: &VolumeNote) {
        if let Err(error) = self.volumes.remove_note(&note.volume) {
            tracing::warn!(%error, "the note of a volume cannot be removed");
        }
    }

    /// Records that the tree which an earlier daemon served at this volume is lost, if there is a
    /// note of one.
    async fn record_loss(&self, volume: &str) -> Result<(), Status> {
        let Some(note) = self.volumes.read_note(volume) else { return Ok(()) };
        self.remove_lost_tree(&note).await;
        self.record_end(&note, None).await.map_err(|error| unavailable(&error))
    }

    async fn publish_volume(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let target = check_target(&request.volume_id, &request.target_path)?;
        check_capability(&request)?;
        let slot = self.volumes.slot(&request.volume_id);
        let mut published = slot.lock().await;
        match &*published {
            Some(Volume { note, state: VolumeState::Served(..) }) if note.target == target => {
                return Ok(());
            }
            Some(Volume { note, .. }) => {
                let at = note.target.display();
                return Err(Status::already_exists(format!(
                    "volume {:?} is published at {at}",
                    note.volume
                )));
            }
            None => {}
        }
        let context = &request.volume_context;
        let pod = TicketPod {
            uid: pod_value(context, POD_UID)?,
            name: pod_value(context, POD_NAME)?,
            node: self.node_id.clone(),
            volume: request.volume_id.clone(),
        };
        let token = context.get(TOKEN_ATTRIBUTE).filter(|token| !token.is_empty()).ok_or_else(|| {
            Status::invalid_argument(format!(
                "the volume has no attribute {TOKEN_ATTRIBUTE:?}: only pods that an Ion dispatcher \
                 starts have a tree"
            ))
        })?;
        let claims = self
            .key
            .verify(token, &pod_value(context, POD_NAMESPACE)?, clock::now())
            .map_err(token_status)?;
        // The pod may have begun to work in the lost tree. What it wrote there is gone, so it must
        // not continue in another tree.
        self.record_loss(&request.volume_id).await?;
        let note = VolumeNote {
            volume: request.volume_id,
            target: target.clone(),
            job: claims.job,
            attempt: claims.attempt,
        };
        let ticket = Ticket::claim(&self.node.plane, &note.ticket_id(), &pod)
            .await
            .map_err(ticket_status)?;
        let event = self.find_event(&ticket.event_id).await?;
        let gathered = match &ticket.gathered {
            None => None,
            Some(TicketGathered::List(list)) => Some(GatheredEvents::List(list.clone())),
            Some(TicketGathered::Ids(ids)) => {
                let mut events = Vec::with_capacity(ids.len());
                for id in ids {
                    events.push(self.find_event(id).await?);
                }
                Some(GatheredEvents::Few(events))
            }
        };
        let limits = ticket.limits.apply_to(self.node.settings.limits);
        let spec = JobSpec {
            origin: ticket.origin,
            event,
            gathered,
            older: ticket.older,
            users: TreeUsers::AnyUser,
        };
        self.volumes
            .write_note(&note)
            .map_err(|error| internal("the volume cannot be noted", &error))?;
        let started = Instant::now();
        let (tree, mounted) = match self.mount_tree(spec, limits, &target).await {
            Ok(mounted) => mounted,
            Err(status) => {
                // No pod has seen the tree, so the next try starts from the beginning.
                self.remove_lost_tree(&note).await;
                self.remove_note(&note);
                return Err(status);
            }
        };
        self.node.metrics.mounts.observe_since(started);
        tracing::info!(pod = pod.name, ticket = note.ticket_id(), "a pod has its tree");
        *published = Some(Volume { note, state: VolumeState::Served(tree, mounted) });
        Ok(())
    }

    async fn mount_tree(
        &self,
        spec: JobSpec,
        limits: Limits,
        target: &Path,
    ) -> Result<(JobTree, ServedMount), Status> {
        let tree = JobTree::open(&self.node, spec, limits).await.map_err(|error| match error {
            OpenError::Store(error) => unavailable(&error),
            error => internal("the tree cannot be made", &error),
        })?;
        let at = target.to_owned();
        let target_made = run_blocking(move || {
            // Removes what an earlier try left.
            unmount_and_remove(&at)?;
            std::fs::create_dir_all(&at)
        });
        target_made.await.map_err(|error| internal("the target cannot be made", &error))?;
        let mounted = mount_at(target, tree.tree(), Visitors::Everybody).await;
        Ok((tree, mounted.map_err(|error| internal("the tree cannot be mounted", &error))?))
    }

    async fn find_event(&self, id: &EventId) -> Result<Event, Status> {
        let found = self.node.plane.documents.get_as(Collection::Events, id.as_str()).await;
        let found = found.map_err(|error| unavailable(&error))?;
        found.ok_or_else(|| Status::not_found(format!("event {id} is not there any more")))
    }

    async fn unpublish_volume(&self, request: NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let target = check_target(&request.volume_id, &request.target_path)?;
        let slot = self.volumes.slot(&request.volume_id);
        let mut published = slot.lock().await;
        match published.take_if(|volume| volume.note.target == target) {
            Some(volume) => {
                if let Err((volume, status)) = self.finish_volume(volume).await {
                    *published = Some(volume);
                    return Err(status);
                }
            }
            None if published.is_none() => self.record_loss(&request.volume_id).await?,
            // The volume is published at another target, and stays there.
            None => {}
        }
        run_blocking(move || unmount_and_remove(&target))
            .await
            .map_err(|error| internal("the target cannot be removed", &error))
    }

    /// Unmounts a volume, commits or refuses what its pod left, and records the outcome in the
    /// ticket. On an error it returns the volume in the state that it has reached, so that the next
    /// try repeats no finished step.
    async fn finish_volume(&self, volume: Volume) -> Result<(), (Volume, Status)> {
        let Volume { note, state } = volume;
        let outcome = match state {
            VolumeState::Served(tree, mut mounted) => {
                let target = note.target.clone();
                if let Err(error) = run_blocking(move || unmount_and_remove(&target)).await {
                    let status = internal("the tree cannot be unmounted", &error);
                    return Err((
                        Volume { note, state: VolumeState::Served(tree, mounted) },
                        status,
                    ));
                }
                // A process may still have a file open; no new file can be opened.
                if timeout(TREE_END_WAIT, mounted.wait_for_end()).await.is_err() {
                    tracing::warn!(
                        ticket = note.ticket_id(),
                        "a pod's tree is still used after its end"
                    );
                }
                let outcome = tree.finish().await;
                remove_attempt(&self.node.settings.home, &note.job, note.attempt).await;
                outcome
            }
            VolumeState::Decided(outcome) => outcome,
        };
        if let Err(error) = self.record_end(&note, Some(outcome.clone())).await {
            return Err((
                Volume { note, state: VolumeState::Decided(outcome) },
                unavailable(&error),
            ));
        }
        tracing::info!(ticket = note.ticket_id(), "a pod's tree is gone");
        Ok(())
    }
}

/// Checks the volume's id and the target of a request, and returns the target.
fn check_target(volume: &str, target: &str) -> Result<PathBuf, Status> {
    if volume.is_empty() || volume.len() > VOLUME_ID_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "volume_id has 1 to {VOLUME_ID_BYTES_MAX} bytes"
        )));
    }
    let path = Path::new(target);
    let has_no_parent = path.components().all(|part| part != std::path::Component::ParentDir);
    if !path.is_absolute() || !has_no_parent || path.parent().is_none() {
        return Err(Status::invalid_argument(
            "target_path is not an absolute path of a folder without \"..\"",
        ));
    }
    Ok(path.to_owned())
}

fn check_capability(request: &NodePublishVolumeRequest) -> Result<(), Status> {
    let refuse = |reason| Err(Status::invalid_argument(reason));
    let Some(capability) = &request.volume_capability else {
        return refuse("volume_capability is missing");
    };
    match &capability.access_type {
        Some(AccessType::Mount(_)) => {}
        Some(AccessType::Block(_)) => {
            return refuse("a job's tree is a filesystem, not a block device");
        }
        None => return refuse("volume_capability has no access_type"),
    }
    if request.volume_context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral != "true") {
        return refuse(
            "a job's tree lives as long as its pod: only ephemeral inline volumes are served",
        );
    }
    if request.readonly {
        return refuse(
            "a job writes to its tree: readOnly is not possible (mount it so in the container)",
        );
    }
    Ok(())
}

/// Returns a value that the kubelet says about the pod.
fn pod_value(context: &HashMap<String, String>, key: &str) -> Result<String, Status> {
    context.get(key).filter(|value| !value.is_empty()).cloned().ok_or_else(|| {
        Status::invalid_argument(format!(
            "volume_context has no {key}: the CSIDriver object {DRIVER_NAME} needs podInfoOnMount: \
             true"
        ))
    })
}

fn token_status(error: TokenError) -> Status {
    match error {
        TokenError::Malformed => Status::invalid_argument(error.to_string()),
        TokenError::Forged | TokenError::Expired | TokenError::OtherNamespace => {
            Status::permission_denied(error.to_string())
        }
    }
}

fn ticket_status(error: TicketError) -> Status {
    match &error {
        TicketError::Store(store) => unavailable(store),
        TicketError::Gone(_) => Status::not_found(error.to_string()),
        TicketError::Taken { .. } => Status::permission_denied(error.to_string()),
    }
}

fn unavailable(error: &StoreError) -> Status {
    Status::unavailable(error_chain(error))
}

fn internal(what: &str, error: &dyn std::error::Error) -> Status {
    Status::internal(format!("{what}: {}", error_chain(error)))
}

/// Awaits `work` and returns `answer`, or an error after [`CALL_TIMEOUT`]. The work itself
/// continues then, and the kubelet's next call waits for it.
async fn with_call_timeout<T>(
    work: impl Future<Output = Result<(), Status>>,
    answer: T,
) -> Result<Response<T>, Status> {
    match timeout(CALL_TIMEOUT, work).await {
        Ok(done) => done.map(|()| Response::new(answer)),
        Err(_) => Err(Status::deadline_exceeded("the stores gave no answer in time")),
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: vec![] }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[tonic::async_trait]
impl NodeService for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, driver) = (request.volume_id.clone(), self.clone());
        // The work runs in its own task: a kubelet that hangs up must not stop it half way.
        let work = tokio::spawn(async move { driver.publish_volume(request).await });
        let work = async { work.await.unwrap_or_else(|error| Err(internal("publishing", &error))) };
        let answer = with_call_timeout(work, NodePublishVolumeResponse {}).await;
        answer.inspect_err(|status| {
            tracing::warn!(volume, reason = status.message(), "a pod gets no tree")
        })
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, driver) = (request.volume_id.clone(), self.clone());
        let work = tokio::spawn(async move { driver.unpublish_volume(request).await });
        let work =
            async { work.await.unwrap_or_else(|error| Err(internal("unpublishing", &error))) };
        let answer = with_call_timeout(work, NodeUnpublishVolumeResponse {}).await;
        answer.inspect_err(|status| {
            tracing::warn!(volume, reason = status.message(), "a pod's tree stays for now")
        })
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: vec![] }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
        }))
    }
}

/// The service that tells the kubelet about the driver.
#[derive(Debug)]
pub(super) struct Registrar {
    /// The path of the driver's socket as the kubelet sees it.
    pub(super) endpoint: PathBuf,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER_NAME.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("the kubelet knows the driver");
        } else {
            tracing::error!(error, "the kubelet refuses the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
