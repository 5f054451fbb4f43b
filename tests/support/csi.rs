//! A node's CSI driver as its kubelet sees it: a process, its socket, and the pods' volumes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ionfs::clock;
use ionfs::commit::{Fence, Origin};
use ionfs::csi::TOKEN_ATTRIBUTE;
use ionfs::csi::api::csi::node_client::NodeClient;
use ionfs::csi::api::csi::volume_capability::{AccessType, MountVolume};
use ionfs::csi::api::csi::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
};
use ionfs::event::Event;
use ionfs::fs::job::{OlderConventions, TreeOutcome};
use ionfs::id::{EventId, JobId};
use ionfs::limits::LimitOverrides;
use ionfs::record::CommitMode;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, DataPlane, Durability};
use ionfs::ticket::{Ticket, TicketKey, TokenContent, TreeEnd};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::mount::runtime;
use super::{Home, RunningCommand};

/// The key with which dispatchers and drivers of the tests sign and check tokens.
pub const KEY: &str = "0123456789abcdef0123456789abcdef";

/// The namespace of the tests' pods.
pub const NAMESPACE: &str = "media";

/// The name of the tests' node.
pub const NODE: &str = "n1";

/// A home with a driver over its stores, and an event for its pods.
pub struct CsiRig {
    pub runtime: Arc<Runtime>,
    pub home: Home,
    pub plane: DataPlane,
    /// The event that all jobs of the rig work on.
    pub event: Event,
    pub driver: Option<RunningCommand>,
}

/// The attempt that a pod works on, with the token that the pod receives.
#[derive(Clone, Debug)]
pub struct PodAttempt {
    pub job: JobId,
    pub module: String,
    pub token: String,
}

impl PodAttempt {
    pub fn ticket(&self) -> String {
        Ticket::id(&self.job, 1)
    }
}

pub fn key() -> TicketKey {
    TicketKey::new(KEY).unwrap()
}

impl CsiRig {
    /// Creates a rig over the embedded stores, whose event has these files.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let home = Home::new();
        let urls = StoreUrls::embedded(&home.state());
        Self::over(home, &urls, files)
    }

    /// Creates a rig over these stores; the home's environment must name them too.
    pub fn over(mut home: Home, urls: &StoreUrls, files: &[(&str, &[u8])]) -> Self {
        home.env.push(("ION_TICKET_KEY".into(), KEY.into()));
        let mut words: Vec<String> =
            ["--json", "event", "create", "t", "--data", "n=7"].map(String::from).into();
        for (name, content) in files {
            home.write(name, content);
            words.extend(["--file".into(), (*name).to_owned()]);
        }
        let made = home.run(&words).well();
        let made: Value = serde_json::from_str(&made.stdout).unwrap();
        let id = made["context"]["eventId"].as_str().unwrap();
        let runtime = runtime();
        let plane = runtime.block_on(open(urls)).unwrap();
        let event =
            runtime.block_on(plane.documents.get_as(Collection::Events, id)).unwrap().unwrap();
        let mut rig = Self { runtime, home, plane, event, driver: None };
        rig.start();
        rig
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("csi.sock")
    }

    /// Returns the socket by which a kubelet discovers the driver.
    pub fn registration(&self) -> PathBuf {
        self.home.path().join("registry/csi.ionfs-reg.sock")
    }

    /// Returns the arguments of `ion csi`.
    pub fn words(&self) -> Vec<String> {
        let [socket, registration] =
            [self.socket(), self.registration()].map(|path| path.display().to_string());
        ["--endpoint", &socket, "--registration", &registration, "--node-id", NODE]
            .map(String::from)
            .into()
    }

    /// Starts the driver, or its successor.
    pub fn start(&mut self) {
        let words = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.driver = Some(self.home.start("csi", &words));
    }

    /// Returns a channel to a socket.
    pub fn channel(&self, socket: &Path) -> Channel {
        let _inside = self.runtime.enter();
        Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy()
    }

    /// Returns a channel to the driver.
    pub fn to_driver(&self) -> Channel {
        self.channel(&self.socket())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.to_driver())
    }

    /// Returns the path for the volume of this name: two folders deep, of which the kubelet has
    /// created the upper one.
    pub fn target(&self, name: &str) -> PathBuf {
        let pod = self.home.path().join("pods").join(name);
        std::fs::create_dir_all(&pod).unwrap();
        pod.join("mount")
    }

    /// Inserts a running job with a ticket for its pod, and signs a token that is valid for an
    /// hour.
    pub fn attempt(&self, name: &str) -> PodAttempt {
        let (job, module) = (JobId::new(name), format!("module-{name}"));
        let origin = Origin {
            job_id: job.clone(),
            attempt: 1,
            fence: Fence::Running,
            module: module.clone(),
            emits: None,
            commit: CommitMode::OnClose,
            parent: self.event.context.clone(),
        };
        let ticket = Ticket {
            id: Ticket::id(&job, 1),
            version: 0,
            offered: clock::now(),
            origin,
            event_id: self.event.id.clone(),
            gathered: None,
            older: OlderConventions::default(),
            limits: LimitOverrides::default(),
            pod: None,
            ended: None,
        };
        let record = self.record(name, &module, "running", 1);
        self.runtime.block_on(async {
            self.plane
                .documents
                .insert(Collection::Jobs, record, None, Durability::Now)
                .await
                .unwrap();
            ticket.offer(&self.plane).await.unwrap();
        });
        let token = key().sign(&self.claims(&job));
        PodAttempt { job, module, token }
    }

    /// Returns a job's document.
    pub fn record(&self, name: &str, module: &str, state: &str, attempt: u32) -> Value {
        json!({
            "id": name, "version": 1, "module": module, "eventId": self.event.id, "eventType": self.event.event_type,
            "correlationId": self.event.context.correlation_id, "state": state, "attempt": attempt, "created": 0,
            "due": clock::now() + 3_600_000,
        })
    }

    pub fn claims(&self, job: &JobId) -> TokenContent {
        let expires = clock::now() + 3_600_000;
        TokenContent { job: job.clone(), attempt: 1, namespace: NAMESPACE.into(), expires }
    }

    /// Returns a kubelet's request for a pod whose uid and volume are both `volume`.
    pub fn request(&self, volume: &str, target: &Path, token: &str) -> NodePublishVolumeRequest {
        let context = [
            (TOKEN_ATTRIBUTE, token),
            ("csi.storage.k8s.io/pod.name", "pod"),
            ("csi.storage.k8s.io/pod.namespace", NAMESPACE),
            ("csi.storage.k8s.io/pod.uid", volume),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
        NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: target.to_str().unwrap().to_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: None,
            }),
            volume_context: HashMap::from(context),
            ..NodePublishVolumeRequest::default()
        }
    }

    pub fn ask(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.runtime.block_on(self.node().node_publish_volume(request)).map(drop)
    }

    pub fn publish(&self, volume: &str, target: &Path, attempt: &PodAttempt) -> Result<(), Status> {
        self.ask(self.request(volume, target, &attempt.token))
    }

    pub fn unpublish(&self, volume: &str, target: &Path) -> Result<(), Status> {
        self.runtime
            .block_on(self.node().node_unpublish_volume(unpublish(volume, target)))
            .map(drop)
    }

    /// Publishes the tree of a new pod. Returns its attempt, and the path of the tree.
    pub fn pod(&self, name: &str) -> (PodAttempt, PathBuf) {
        let (attempt, target) = (self.attempt(name), self.target(name));
        self.publish(name, &target, &attempt).unwrap();
        (attempt, target)
    }

    pub fn ticket(&self, attempt: &PodAttempt) -> Ticket {
        self.runtime.block_on(Ticket::find(&self.plane, &attempt.ticket())).unwrap().unwrap()
    }

    /// Returns the outcome of the attempt's filesystem work, as its ticket records it.
    #[track_caller]
    pub fn outcome(&self, attempt: &PodAttempt) -> TreeOutcome {
        match self.ticket(attempt).ended {
            Some(TreeEnd::Outcome(outcome)) => outcome,
            other => panic!("the ticket has no outcome: {other:?}"),
        }
    }

    /// Asserts that the attempt's ticket says that the tree was lost with this node.
    #[track_caller]
    pub fn is_lost(&self, attempt: &PodAttempt) {
        let ended = self.ticket(attempt).ended;
        assert!(matches!(&ended, Some(TreeEnd::Lost(why)) if why.contains(NODE)), "{ended:?}");
    }

    /// Returns the event of an event file, if it was committed.
    pub fn committed(&self, attempt: &PodAttempt, file: &str) -> Option<Event> {
        let id = EventId::derive(&self.event.id, &attempt.module, file);
        self.runtime.block_on(self.plane.documents.get_as(Collection::Events, id.as_str())).unwrap()
    }

    /// Returns what the driver keeps below its home: notes of volumes, and attempts' folders.
    pub fn kept(&self) -> Vec<PathBuf> {
        let below = |name: &str| {
            let entries = std::fs::read_dir(self.home.state().join(name)).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        [below("volumes"), below("jobs")].concat()
    }
}

impl Drop for CsiRig {
    fn drop(&mut self) {
        // The driver must stop with nothing left mounted.
        if let Some(driver) = self.driver.take().filter(|_| !std::thread::panicking()) {
            assert_eq!(driver.stop(), Some(0));
        }
        for target in mounts_below(self.home.path()) {
            let _ = rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn unpublish(volume: &str, target: &Path) -> NodeUnpublishVolumeRequest {
    NodeUnpublishVolumeRequest {
        volume_id: volume.into(),
        target_path: target.to_str().unwrap().into(),
    }
}

/// Returns the mount points below a folder.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let at = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    at.map(PathBuf::from).filter(|at| at.starts_with(folder)).collect()
}
