//! Folders in which few documents of many are shown: no request searches longer than it may, and
//! what is not listed is said.

use std::sync::Arc;
use std::time::Duration;

use ion_model::clock::Millis;
use ion_plane::node::{Node, NodeSettings};
use ion_stores::{Collection, DataPlane, Durability};
use serde_json::{Value, json};

use super::root;
use crate::item::ViewItem;
use crate::part::PartReader;
use crate::reads::ReadLog;
use crate::view::View;
use crate::{Ino, ROOT};

/// More documents than any folder reads at once.
const MANY: usize = 2000;

/// The time of the first document: 2026-05-01T08:30:00Z.
const FIRST: Millis = 1_777_624_200_000;

/// A browsed plane in memory.
struct Browsed {
    view: View,
    node: Arc<Node>,
    _home: tempfile::TempDir,
}

impl Browsed {
    /// Makes a plane of these documents. A request whose deadline is zero ends its search at once.
    async fn new(documents: Vec<(Collection, Value)>, deadline: Duration) -> Self {
        let home = tempfile::tempdir().unwrap();
        let plane = DataPlane::in_memory().unwrap();
        plane.documents.insert_all(documents, None, Durability::Now).await.unwrap();
        let settings =
            NodeSettings { read_deadline: deadline, ..NodeSettings::new(home.path().join("home")) };
        let node = Node::new(plane, settings).unwrap();
        Self { view: View::new(root(&node, []), ReadLog::default()), node, _home: home }
    }

    /// Returns the inode of a path, if there is such a path.
    async fn find(&self, path: &str) -> Option<Ino> {
        let mut ino = ROOT;
        for name in path.split('/') {
            ino = self.view.lookup(ino, name).await.unwrap().found()?.ino;
        }
        Some(ino)
    }

    /// Returns the names in a folder, in the order of its listing.
    async fn names(&self, path: &str) -> Vec<String> {
        self.names_of(self.find(path).await.unwrap()).await
    }

    async fn names_of(&self, ino: Ino) -> Vec<String> {
        let Some(pages) = self.view.pages(ino).unwrap() else {
            let listing = self.view.list(ino).await.unwrap();
            return listing.iter().map(|(name, _)| name.to_owned()).collect();
        };
        let mut reader = PartReader::begin(pages);
        let mut names = Vec::new();
        loop {
            let part = reader.part_at(&self.view, &self.node, ino, names.len()).await.unwrap();
            if part.entries.is_empty() {
                return names;
            }
            names.extend(part.entries.iter().map(|entry| entry.name.clone()));
        }
    }

    async fn text(&self, path: &str) -> String {
        let ino = self.find(path).await.unwrap();
        match self.view.item(ino).unwrap() {
            ViewItem::Text(bytes, _) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{path} is no text: {other:?}"),
        }
    }
}

fn event_id(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

/// Makes an event, a second after the one before it.
fn event(n: usize, fields: &Value) -> (Collection, Value) {
    let id = event_id(n);
    let mut event = json!({
        "id": id, "type": "seen", "created": FIRST + 1000 * n as Millis, "files": [], "data": [],
        "context": {
            "name": "ion", "eventId": id, "correlationId": "all", "parentEventId": "",
            "documentType": "eventMeta",
        },
        "publication": "published",
    });
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    (Collection::Events, event)
}

fn job(n: usize, failures: u32) -> (Collection, Value) {
    let job = json!({
        "id": event_id(n), "module": "m", "state": "queued", "created": FIRST,
        "due": FIRST + 1000 * n as Millis, "failures": failures, "correlationId": "all",
        "eventId": event_id(n), "eventType": "seen",
    });
    (Collection::Jobs, job)
}

/// Makes a plane in each of whose folders below only the oldest document is shown.
fn hidden_documents() -> Vec<(Collection, Value)> {
    let modules = ["m", "other"].map(|name| (Collection::Modules, json!({"id": name})));
    let kind = |kind: &str| json!([{"key": "kind", "value": kind}]);
    let waits = |module: &str, kind: Value| json!({"expectedBy": [module], "unclaimed": true, "data": kind});
    let first = [event(0, &waits("m", kind("car"))), job(0, 1)];
    let others = (1..MANY).flat_map(|n| [event(n, &waits("other", kind("bus"))), job(n, 0)]);
    modules.into_iter().chain(first).chain(others).collect()
}

const DAY: &str = "2026-05-01";

/// Each folder, its only name, and the command that lists the rest if the search is ended before.
fn folders() -> [(&'static str, &'static str, &'static str); 4] {
    [
        ("failed", "2026-05-01T08:30:00-m-00000000", "ion job list --state queued --until"),
        (
            "modules/m/failed/2026-05-01",
            "08:30:00-seen-00000000",
            "ion job list --state queued --module m --until",
        ),
        (
            "find/events/seen/kind=car",
            "2026-05-01T08:30:00-00000000",
            "ion find events seen kind=car --until",
        ),
        (
            "find/events/seen/kind=car/@seen",
            "2026-05-01T08:30:00-00000000",
            "ion find events seen kind=car @seen --until",
        ),
    ]
}

#[tokio::test]
async fn a_folder_of_few_documents_among_many_is_listed_to_its_end_if_there_is_time() {
    let plane = Browsed::new(hidden_documents(), Duration::from_secs(600)).await;
    for (folder, name, _) in folders() {
        assert_eq!(plane.names(folder).await, [name], "{folder}");
        assert!(plane.find(&format!("{folder}/{name}")).await.is_some(), "{folder}");
        let wrong = name.replace("00000000", "00000001");
        assert_eq!(plane.find(&format!("{folder}/{wrong}")).await, None, "{folder}");
    }
    assert_eq!(plane.names("modules/m/failed").await, [DAY]);
    let queued = plane.names("modules/m/queued").await;
    assert_eq!(queued.len(), MANY, "all jobs but one, and the event");
    let name = "2026-05-01T08:30:00-seen-00000000";
    assert_eq!(queued.last().unwrap(), name);
    assert!(plane.find(&format!("modules/m/queued/{name}")).await.is_some());
    for folder in ["failed", "modules/m/queued", "recent", "correlations/all"] {
        assert_eq!(plane.find(&format!("{folder}/MORE")).await, None, "{folder}");
    }
}

/// With a deadline of zero, each request ends after the documents that it reads at once.
#[tokio::test]
async fn a_search_that_takes_too_long_ends_with_a_file_that_names_the_command_for_the_rest() {
    let plane = Browsed::new(hidden_documents(), Duration::ZERO).await;
    for (folder, name, command) in folders() {
        // In a folder of a search, every name is a term.
        if !folder.starts_with("find/") {
            assert_eq!(plane.find(&format!("{folder}/MORE")).await, None, "not listed: {folder}");
        }
        assert_eq!(plane.names(folder).await, ["MORE"], "{folder}");
        let text = plane.text(&format!("{folder}/MORE")).await;
        assert!(text.contains(command), "{folder}: {text}");
        let until = text.split("--until ").nth(1).unwrap().split('`').next().unwrap();
        let until = humantime::parse_rfc3339(until).unwrap();
        let until = until.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let last = FIRST + 1000 * MANY as Millis;
        assert!((FIRST as u128..last as u128).contains(&until), "{folder}: {text}");
        // A name that is not listed is found all the same, by the id in it.
        assert!(plane.find(&format!("{folder}/{name}")).await.is_some(), "{folder}");
        let wrong = name.replace("00000000", "00000001");
        assert_eq!(plane.find(&format!("{folder}/{wrong}")).await, None, "{folder}");
    }
    assert_eq!(plane.names("modules/m/failed").await, ["MORE"]);
    let recent = plane.names("recent").await;
    assert_eq!((recent.len(), &*recent[1]), (2, "MORE"));
    assert!(plane.text("recent/MORE").await.contains("correlations that have begun since 2026"));
    // Where each part has names, the folder goes on in the next request, to its end.
    assert_eq!(plane.names("correlations/all").await.len(), MANY);
    assert_eq!(plane.names("types/seen/2026-05-01").await.len(), MANY);
    // The jobs are all listed; of the events the search comes to one of the other module only.
    let queued = plane.names("modules/m/queued").await;
    assert_eq!((queued.len(), &**queued.last().unwrap()), (MANY, "MORE"));
    assert!(plane.text("modules/m/queued/MORE").await.contains("`ion event list --until"));
}

/// The file is there as long as it is listed.
#[tokio::test]
async fn the_file_that_names_the_rest_goes_when_a_listing_has_come_to_the_end() {
    let events = (0..MANY).map(|n| event(n, &json!({"publication": "staged"})));
    let plane = Browsed::new(events.collect(), Duration::ZERO).await;
    let folder = plane.find("correlations/all").await.unwrap();
    assert_eq!(plane.names_of(folder).await, ["MORE"]);
    let text = plane.text("correlations/all/MORE").await;
    assert!(text.contains("`ion event list --correlation all --since 2026-05-01T08:"), "{text}");
    for n in 0..MANY {
        let documents = &plane.node.plane.documents;
        documents.delete(Collection::Events, &event_id(n), vec![]).await.unwrap();
    }
    assert_eq!(plane.names_of(folder).await, [] as [&str; 0]);
    assert!(plane.view.lookup(folder, "MORE").await.unwrap().found().is_none());
}

/// Ids of which a name has only the ends are told apart by the documents of the second.
#[tokio::test]
async fn a_name_that_several_ids_are_like_is_looked_for_in_its_second() {
    let long = |n: usize| format!("{}{n:04}{}", "a".repeat(40), "b".repeat(40));
    let at = |n: usize| json!({"id": long(n), "created": FIRST + n as Millis});
    let events: Vec<_> = (0..900).map(|n| event(n, &at(n))).collect();
    let name = "08:30:00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa~bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    let plane = Browsed::new(events.clone(), Duration::from_secs(600)).await;
    assert!(plane.find(&format!("types/seen/{DAY}/{name}")).await.is_some());
    assert_eq!(plane.find(&format!("types/seen/{DAY}/{name}b")).await, None);
    // The search is ended, and nobody knows whether there is such a name.
    let plane = Browsed::new(events, Duration::ZERO).await;
    let day = plane.find(&format!("types/seen/{DAY}")).await.unwrap();
    assert!(plane.view.lookup(day, &format!("{name}b")).await.is_err());
}
