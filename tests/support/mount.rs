//! A job's tree that the test itself mounts, so that the filesystem is observed without a daemon in
//! between.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ionfs::clock;
use ionfs::commit::{Fence, Origin};
use ionfs::event::{Context, DocumentType, Event, FileEntry, PublicationState};
use ionfs::fs::job::{JobSpec, JobTree, OlderConventions, TreeUsers};
use ionfs::id::{CorrelationId, EventId, JobId};
use ionfs::mount::{ServedMount, Visitors, mount_at};
use ionfs::node::{Node, NodeSettings};
use ionfs::record::CommitMode;
use ionfs::stores::object::ObjectBlobs;
use ionfs::stores::open::{StoreUrls, open};
use ionfs::stores::{Collection, DataPlane, Durability, encode};
use ionfs::upload::store_path;
use tokio::runtime::Runtime;

use super::Home;

/// A job's tree, mounted for this process.
pub struct Mount {
    pub runtime: Arc<Runtime>,
    pub home: Arc<Home>,
    pub node: Arc<Node>,
    number: u32,
    tree: JobTree,
    mounted: Option<ServedMount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    Allowed,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blobs {
    Files,
    /// Like a store on another machine: there is no local file to read from.
    Memory,
}

pub fn runtime() -> Arc<Runtime> {
    Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap())
}

impl Mount {
    pub fn new(passthrough: Passthrough, blobs: Blobs, inputs: &[(&str, &[u8])]) -> Self {
        let (runtime, home) = (runtime(), Home::new());
        let mut plane = runtime.block_on(open(&StoreUrls::embedded(&home.state()))).unwrap();
        if blobs == Blobs::Memory {
            plane.blobs = Arc::new(ObjectBlobs::in_memory());
        }
        let files = inputs.iter().map(|(name, content)| {
            let path = home.write("input", content);
            runtime.block_on(stored(&plane, name, &path))
        });
        let files = files.collect();
        Self::over(runtime, home, plane, passthrough, files)
    }

    /// Creates a job over these stores, whose event has these files.
    pub fn over(
        runtime: Arc<Runtime>,
        home: Home,
        plane: DataPlane,
        passthrough: Passthrough,
        files: Vec<FileEntry>,
    ) -> Self {
        let event = first_event("e", "t", files);
        runtime
            .block_on(plane.documents.insert(
                Collection::Events,
                encode(&event),
                None,
                Durability::Now,
            ))
            .unwrap();
        let settings = NodeSettings {
            passthrough: passthrough == Passthrough::Allowed,
            ..NodeSettings::new(home.state())
        };
        let node = {
            let _inside = runtime.enter();
            Node::new(plane, settings).unwrap()
        };
        Self::job(runtime, Arc::new(home), node, 0, TreeUsers::Owner)
    }

    /// Mounts another job of the same event on the same node, beside this one.
    pub fn another(&self) -> Self {
        self.another_for(TreeUsers::Owner)
    }

    /// Mounts another job for these users: processes of the owner, or of any user.
    pub fn another_for(&self, users: TreeUsers) -> Self {
        Self::job(
            self.runtime.clone(),
            self.home.clone(),
            self.node.clone(),
            self.number + 1,
            users,
        )
    }

    fn job(
        runtime: Arc<Runtime>,
        home: Arc<Home>,
        node: Arc<Node>,
        number: u32,
        users: TreeUsers,
    ) -> Self {
        let (tree, mounted) = runtime.block_on(async {
            let documents = &node.plane.documents;
            let id = format!("j{number}");
            documents
                .insert(
                    Collection::Jobs,
                    serde_json::json!({"id": id, "attempt": 1}),
                    None,
                    Durability::Now,
                )
                .await
                .unwrap();
            let event = documents.get_as(Collection::Events, "e").await.unwrap().unwrap();
            let origin = Origin {
                job_id: JobId::new(id),
                attempt: 1,
                fence: Fence::HeldBy(None),
                module: format!("m{number}"),
                emits: None,
                commit: CommitMode::OnClose,
                parent: context("e"),
            };
            let spec = JobSpec {
                origin,
                event,
                gathered: None,
                older: OlderConventions::default(),
                users,
            };
            let tree = JobTree::open(&node, spec, node.settings.limits).await.unwrap();
            let at = home.path().join(mount_point(number));
            fs::create_dir(&at).unwrap();
            let root = rustix::process::geteuid().is_root();
            let visitors = if root { Visitors::Everybody } else { Visitors::Owner };
            let mounted = mount_at(&at, tree.tree(), visitors).await.unwrap();
            (tree, mounted)
        });
        Self { runtime, home, node, number, tree, mounted: Some(mounted) }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.home.path().join(mount_point(self.number)).join(path)
    }

    pub fn data(&self) -> PathBuf {
        self.at("out/data")
    }

    /// Returns the staging path of a path below `out/`.
    pub fn staged(&self, path: &str) -> PathBuf {
        self.tree.staging().join(path)
    }

    pub fn metric(&self, name: &str) -> u64 {
        self.node.metrics.snapshot().into_iter().find(|(one, _)| *one == name).unwrap().1
    }

    /// Commits `files` and returns the event's document.
    pub fn commit(&self, files: &[&str]) -> Event {
        let document = serde_json::json!({"eventType": "made", "files": files});
        let mut file = fs::File::create(self.at("out/events/made.json")).unwrap();
        file.write_all(document.to_string().as_bytes()).unwrap();
        // `fsync` commits like a close, and returns the outcome.
        file.sync_all().unwrap();
        drop(file);
        self.committed("made.json").unwrap()
    }

    /// Returns the document of the event that a file in `out/events` became, if it was committed.
    pub fn committed(&self, name: &str) -> Option<Event> {
        let id = EventId::derive(&EventId::new("e"), &format!("m{}", self.number), name);
        let found = self
            .runtime
            .block_on(self.node.plane.documents.get_as(Collection::Events, id.as_str()));
        found.unwrap()
    }

    /// Returns the event that the job works on.
    pub fn committed_input(&self) -> Event {
        let found =
            self.runtime.block_on(self.node.plane.documents.get_as(Collection::Events, "e"));
        found.unwrap().unwrap()
    }

    /// Ends the job by force, as at its timeout.
    pub fn stop(&self) {
        self.tree.stop();
    }

    pub fn content(&self, entry: &FileEntry) -> Vec<u8> {
        self.runtime
            .block_on(self.node.plane.blobs.get_range(&entry.key, 0..entry.size))
            .unwrap()
            .to_vec()
    }
}

fn mount_point(number: u32) -> String {
    if number == 0 { "ion".into() } else { format!("ion{number}") }
}

/// Returns the document of an event that no job published.
pub fn first_event(id: &str, event_type: &str, files: Vec<FileEntry>) -> Event {
    Event {
        id: EventId::new(id),
        context: context(id),
        event_type: event_type.to_owned(),
        files,
        file_list: None,
        data: vec![],
        created: clock::now(),
        publication: PublicationState::Published,
        depth: 0,
        file_name: None,
        job_id: None,
        attempt: None,
        publisher: None,
        directories: vec![],
        unrouted: false,
        cancelled: false,
        expected_by: None,
        registry: 0,
        unclaimed: false,
        tick: None,
    }
}

fn context(event: &str) -> Context {
    Context {
        name: "test".into(),
        event_id: EventId::new(event),
        correlation_id: CorrelationId::new("c"),
        parent_event_id: String::new(),
        document_type: DocumentType::EventMeta,
    }
}

/// Stores a file as an input of the event.
pub async fn stored(plane: &DataPlane, name: &str, path: &Path) -> FileEntry {
    store_path(&*plane.blobs, format!("c/e/0/{name}"), name.to_owned(), path).await.unwrap()
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mounted = self.mounted.take().unwrap();
        let tree = &self.tree;
        self.runtime.block_on(async {
            mounted.unmount().await.unwrap();
            tree.finish().await;
        });
    }
}

/// Runs a program, which must exit with 0.
#[track_caller]
pub fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns the path of a third-party program that scripts/setup-tests.sh built.
#[track_caller]
pub fn built(program: &str) -> PathBuf {
    let path = super::servers::cache().join("bin").join(program);
    assert!(path.exists(), "{} is missing; scripts/setup-tests.sh installs it", path.display());
    path
}
