//! Gathering on a real store, with pages of a few events.

use std::collections::BTreeSet;
use std::sync::Arc;

use ion_model::event::Event;
use ion_model::id::EventId;
use ion_stores::open::{StoreUrls, open};
use ion_stores::{DataPlane, Durability, encode};
use serde_json::json;

use super::*;

/// A plane with the modules `work`, which makes a `done` of each `part`, and `all`, which gathers
/// what is `done` below a `root`.
struct TestPlane {
    _folder: tempfile::TempDir,
    ledger: Ledger,
    registered: Arc<RegisteredModules>,
}

fn all() -> Module {
    let (gather, per) = (Some("done".into()), Some("root".into()));
    Module { gather, per, ..Module::new("all", vec![], "/".into()) }
}

impl TestPlane {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let documents = format!("sqlite://{}", folder.path().join("ion.db").display());
        let blobs = format!("file://{}", folder.path().join("blobs").display());
        let bus = documents.clone();
        let plane = open(&StoreUrls { blobs, documents, bus }).await.unwrap();
        let ledger = Ledger::new(plane);
        let work = Module { on: vec!["part".into()], ..Module::new("work", vec![], "/".into()) };
        for module in [work, all()] {
            ledger.put_module(&module).await.unwrap();
        }
        let registered = ledger.registered_modules().await.unwrap();
        Self { _folder: folder, ledger, registered }
    }

    fn plane(&self) -> &DataPlane {
        self.ledger.plane()
    }

    /// Inserts an event, committed at this time.
    async fn event(&self, id: &str, event_type: &str, parent: &str, created: i64) -> Event {
        let expected = self
            .registered
            .modules
            .iter()
            .filter(|module| module.subscribed_types().iter().any(|on| on == event_type))
            .map(|module| module.name.clone())
            .collect::<Vec<_>>();
        let event: Event = serde_json::from_value(json!({
            "id": id, "type": event_type, "created": created, "publication": "published",
            "context": {
                "name": "t", "eventId": id, "correlationId": "c", "parentEventId": parent,
            },
            "expectedBy": expected, "registry": self.registered.registry.version(),
        }))
        .unwrap();
        self.insert(Collection::Events, encode(&event)).await;
        event
    }

    async fn insert(&self, collection: Collection, document: serde_json::Value) {
        self.plane().documents.insert(collection, document, None, Durability::Now).await.unwrap();
    }

    /// Inserts the job of a module on an event.
    async fn job(&self, event: &Event, module: &str, state: JobState) -> JobRecord {
        let job = JobRecord::new(JobId::derive(&event.id, module), module, event, state, 5);
        self.insert(Collection::Jobs, encode(&job)).await;
        job
    }

    /// Replaces the state of a job.
    async fn set_state(&self, job: &JobRecord, state: JobState) {
        let job = encode(&JobRecord { state, ..job.clone() });
        let documents = &self.plane().documents;
        assert!(
            documents.replace(Collection::Jobs, job, vec![], None, Durability::Now).await.unwrap()
        );
    }

    fn scope<'a>(&'a self, waiting: &'a JobRecord, module: &'a Module) -> GatherScope<'a> {
        let (ledger, registered) = (&self.ledger, &self.registered);
        GatherScope { ledger, waiting, module, registered, page_events: 3 }
    }
}

fn ids(work: GatheredWork) -> Vec<String> {
    let GatheredEvents::Few(events) = work.events else { panic!("these events are few") };
    events.into_iter().map(|event| event.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_gathered_event_comes_once_in_order_across_pages() {
    let plane = TestPlane::new().await;
    let root = plane.event("r", "root", "", 0).await;
    let waiting = plane.job(&root, "all", JobState::Starting).await;
    let module = all();
    let mut expected = Vec::new();
    // Several events of one time lie on both sides of each page's border, and parents come after
    // their children where clocks differ.
    for n in 0..10 {
        let part = plane.event(&format!("p{n}"), "part", "r", 50 - n).await;
        plane.job(&part, "work", JobState::Succeeded).await;
        let (id, created) = (format!("d{n}"), 10 + n / 4);
        plane.event(&id, "done", part.id.as_str(), created).await;
        expected.push((created, id));
    }
    // An event of another lineage, and what the gathering job itself has published.
    plane.event("other", "done", "elsewhere", 11).await;
    let mut own = plane.event("own", "seen", "r", 12).await;
    own.id = EventId::new("own2");
    own.context.event_id = own.id.clone();
    own.event_type = "done".into();
    own.job_id = Some(waiting.id.clone());
    plane.insert(Collection::Events, encode(&own)).await;
    expected.sort();
    let work = plane.scope(&waiting, &module).gather().await.unwrap().unwrap();
    assert!(work.without.is_empty());
    assert_eq!(ids(work), expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_job_on_any_page_holds_the_gathering_back_and_is_named() {
    let plane = TestPlane::new().await;
    let root = plane.event("r", "root", "", 0).await;
    let waiting = plane.job(&root, "all", JobState::Waiting).await;
    let module = all();
    let mut jobs = Vec::new();
    for n in 0..7 {
        let part = plane.event(&format!("p{n}"), "part", "r", n).await;
        jobs.push(plane.job(&part, "work", JobState::Succeeded).await);
    }
    let found = |state| {
        let scope = plane.scope(&waiting, &module);
        async move {
            let walked = scope.walk_through_work(&RandomState::new()).await.unwrap();
            match walked.judgement {
                Err(GatherObstacles { open, dead, named }) => {
                    assert!(named.iter().all(|job| job.state == Some(state)), "{named:?}");
                    (open, dead)
                }
                Ok(_) => (0, 0),
            }
        }
    };
    assert_eq!(found(JobState::Succeeded).await, (0, 0));
    for job in &jobs {
        for (state, expected) in
            [(JobState::Running, (1, 0)), (JobState::Queued, (1, 0)), (JobState::Dead, (0, 1))]
        {
            plane.set_state(job, state).await;
            assert_eq!(found(state).await, expected, "{} {state:?}", job.event_id);
            assert!(plane.scope(&waiting, &module).gather().await.unwrap().is_none());
        }
        plane.set_state(job, JobState::Cancelled).await;
        let work = plane.scope(&waiting, &module).gather().await.unwrap().unwrap();
        assert_eq!(work.without.jobs, std::slice::from_ref(&job.id));
        plane.set_state(job, JobState::Succeeded).await;
    }
    // An event that nobody has claimed.
    plane.event("p9", "part", "r", 3).await;
    let (scope, hasher) = (plane.scope(&waiting, &module), RandomState::new());
    let obstacles = scope.walk_through_work(&hasher).await.unwrap().judgement.unwrap_err();
    assert_eq!((obstacles.open, obstacles.named[0].state), (1, None));
}

/// While what a walk has found still stands, a look reads no event.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_walks_only_when_what_held_the_gathering_back_has_gone() {
    let plane = TestPlane::new().await;
    let root = plane.event("r", "root", "", 0).await;
    let waiting = plane.job(&root, "all", JobState::Waiting).await;
    let part = plane.event("p", "part", "r", 1).await;
    let dead = plane.job(&part, "work", JobState::Dead).await;
    let (module, mut watch) = (all(), GatherWatch::default());
    let mut look = async || watch.look(&plane.ledger, &waiting, &module, &plane.registered).await;
    let held_back = |readiness: Readiness| match readiness {
        Readiness::Waiting(GatherObstacles { open: 0, dead, named }) => (dead, named.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(held_back(look().await.unwrap()), (1, 1));
    // A document that no walk could read.
    let broken = json!({
        "id": "broken", "created": 2,
        "context": {"correlationId": "c", "documentType": "eventMeta"},
    });
    plane.insert(Collection::Events, broken).await;
    assert_eq!(held_back(look().await.unwrap()), (1, 1));
    plane.set_state(&dead, JobState::Cancelled).await;
    look().await.unwrap_err();
    plane.plane().documents.delete(Collection::Events, "broken", vec![]).await.unwrap();
    assert_eq!(look().await.unwrap(), Readiness::Ready);
}

#[test]
fn two_walks_are_the_same_if_they_have_met_the_same_events() {
    let hasher = RandomState::new();
    let met = |events: &[&str]| {
        let mut met = EventsMet::default();
        events.iter().for_each(|event| met.add(&hasher, &EventId::new(*event)));
        met
    };
    assert_eq!(met(&["a", "b", "c"]), met(&["c", "a", "b"]));
    let different = [met(&[]), met(&["a"]), met(&["b"]), met(&["a", "b"]), met(&["a", "a"])];
    let texts: BTreeSet<String> = different.iter().map(|met| format!("{met:?}")).collect();
    assert_eq!(texts.len(), different.len());
}
