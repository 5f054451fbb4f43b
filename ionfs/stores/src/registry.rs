//! The registry of modules. It decides, for the whole plane, which modules an event is for.
//!
//! # How it works
//! One document of the plane names each registered module with the event types it subscribes to and
//! the terms that an event must meet. Every change raises the document's version. A commit writes
//! into the event's document the names of the modules that the event is for, and the registry's
//! version, and the insert is guarded by that version: so the names are those of the modules that
//! were registered when the event was committed. The bindings of a broker's queues, the start time
//! of a process and the time of any clock have no influence.
//!
//! # What it promises
//! An event that is committed after a module's registration has returned is for that module. An
//! event that was committed before the registration began is not. A module that was removed and
//! registered again does not receive events that were committed for the removed module.
//!
//! The registry also lists what is being cancelled: an event that is committed below such a
//! correlation or event is for no module.

mod cancelling;
#[cfg(test)]
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ion_model::event::{Event, FileEntry};
use ion_model::term::{TermSubject, Terms};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::cancelling::CancelOrder;
use crate::{
    Collection, Documents, Durability, Guard, Inserted, Query, StoreError, decode, encode,
};

/// The id of the registry's document.
const ID: &str = "registry";

/// How often a change is tried while other changes come first. Each lost try means that another
/// process has changed the registry.
const RACES_MAX: usize = 64;

/// One version of the registry: the registered modules, and what is being cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registry {
    id: String,
    /// Raised by every change.
    version: u64,
    /// The registered modules, by name.
    modules: BTreeMap<String, Registration>,
    /// What is being cancelled, keyed by [`CancelOrder::id`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    cancelling: BTreeMap<String, CancelOrder>,
}

/// Which events a module is registered for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventSelector {
    /// The event types.
    pub on: Vec<String>,
    /// The terms that an event of these types must meet.
    #[serde(rename = "where", default, skip_serializing_if = "Terms::is_empty")]
    pub terms: Terms,
}

impl EventSelector {
    fn matches(&self, event_type: &str, subject: &TermSubject<'_>) -> bool {
        self.on.iter().any(|on| on == event_type) && self.terms.hold(subject)
    }
}

/// A registered module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registration {
    /// Which events it is registered for.
    #[serde(flatten)]
    selector: EventSelector,
    /// The version of the registry in which the module was added.
    since: u64,
    /// Identifies the module's definition, to tell it from any other. Empty if an older Ion
    /// registered the module.
    #[serde(default)]
    definition: String,
}

impl Registry {
    /// Reads the plane's current registry.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn read(documents: &Arc<dyn Documents>) -> Result<Self, StoreError> {
        match documents.get_as(Collection::Plane, ID).await? {
            Some(registry) => Ok(registry),
            None => Self::from_older_plane(documents).await,
        }
    }

    /// Reads the plane's registry, and first stores it if the plane has no registry document yet. A
    /// guard needs the document to exist.
    async fn read_or_store(documents: &Arc<dyn Documents>) -> Result<Self, StoreError> {
        if let Some(registry) = documents.get_as(Collection::Plane, ID).await? {
            return Ok(registry);
        }
        let registry = Self::from_older_plane(documents).await?;
        match documents.insert(Collection::Plane, encode(&registry), None, Durability::Now).await? {
            Inserted::New => Ok(registry),
            Inserted::Existing(existing) => decode(Collection::Plane, existing),
        }
    }

    /// Makes the first registry of a plane, with the modules that an older Ion has registered.
    async fn from_older_plane(documents: &Arc<dyn Documents>) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct OlderModule {
            id: String,
            #[serde(default)]
            on: Vec<String>,
            #[serde(default)]
            per: Option<String>,
        }
        let modules: Vec<OlderModule> =
            documents.find_as(Query::equal(Collection::Modules, vec![])).await?;
        let entry = |module: OlderModule| {
            let on = module.on.into_iter().chain(module.per).collect();
            let selector = EventSelector { on, terms: Terms::default() };
            (module.id, Registration { selector, since: 0, definition: String::new() })
        };
        let modules = modules.into_iter().map(entry).collect();
        Ok(Self { id: ID.into(), version: 1, modules, cancelling: BTreeMap::new() })
    }

    /// Returns the names of the modules that subscribe to an event of this type with these values
    /// and files.
    pub fn subscribers(&self, event_type: &str, subject: &TermSubject<'_>) -> Vec<String> {
        self.modules
            .iter()
            .filter(|(_, entry)| entry.selector.matches(event_type, subject))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Returns whether the names of an event's files decide which modules it is for.
    fn depends_on_files(&self, event_type: &str) -> bool {
        self.modules.values().any(|entry| {
            entry.selector.terms.are_about_files()
                && entry.selector.on.iter().any(|on| on == event_type)
        })
    }

    /// Returns the names of the registered modules that an event is for.
    pub fn modules_for<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = &'a str> {
        self.modules
            .iter()
            .filter(|(name, entry)| entry.receives(name, event))
            .map(|(name, _)| name.as_str())
    }

    /// Returns the registration of the module with this name.
    pub fn registration(&self, name: &str) -> Option<&Registration> {
        self.modules.get(name)
    }

    /// Returns the types of the events for which a module is registered.
    pub fn event_types(&self) -> BTreeSet<&str> {
        let selected = self.modules.values().flat_map(|entry| &entry.selector.on);
        selected.map(String::as_str).collect()
    }

    /// Returns the names of the registered modules.
    pub fn module_names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Returns the version. Every change of the registered modules, and of what is being cancelled,
    /// raises it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns what is being cancelled.
    pub fn cancel_orders(&self) -> impl Iterator<Item = &CancelOrder> {
        self.cancelling.values()
    }

    /// Returns the guard of an event's insert: the registry must still have this version.
    fn guard(&self) -> Guard {
        Guard::new(Collection::Plane, ID, vec![("version", json!(self.version))])
    }

    /// Returns the registry in which a module subscribes to exactly these events, or `None` if that
    /// changes nothing.
    pub fn with_module(
        &self,
        module: &str,
        selector: &EventSelector,
        definition: &str,
    ) -> Option<Self> {
        let mut after = Self { version: self.version + 1, ..self.clone() };
        let since = self.modules.get(module).map_or(after.version, |registered| registered.since);
        let registered =
            Registration { selector: selector.clone(), since, definition: definition.to_owned() };
        let before = after.modules.insert(module.to_owned(), registered);
        (before.as_ref() != after.modules.get(module)).then_some(after)
    }

    /// Returns the registry without a module, or `None` if the module is not registered.
    pub fn without_module(&self, module: &str) -> Option<Self> {
        let mut after = Self { version: self.version + 1, ..self.clone() };
        after.modules.remove(module).map(|_| after)
    }

    /// Registers a module that subscribes to exactly these events from now on. `definition`
    /// identifies how the module's jobs run: readers of the registry see by it that they must read
    /// the module's definition again.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn register(
        documents: &Arc<dyn Documents>,
        module: &str,
        selector: &EventSelector,
        definition: &str,
    ) -> Result<(), StoreError> {
        Self::change(documents, |before| before.with_module(module, selector, definition)).await
    }

    /// Removes a module from the registry.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub async fn remove(documents: &Arc<dyn Documents>, module: &str) -> Result<(), StoreError> {
        Self::change(documents, |before| before.without_module(module)).await
    }

    async fn change(
        documents: &Arc<dyn Documents>,
        change: impl Fn(&Self) -> Option<Self>,
    ) -> Result<(), StoreError> {
        for _ in 0..RACES_MAX {
            let before = Self::read_or_store(documents).await?;
            let Some(after) = change(&before) else { return Ok(()) };
            let expect = vec![("version", json!(before.version))];
            if documents
                .replace(Collection::Plane, encode(&after), expect, None, Durability::Now)
                .await?
            {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable {
            store: Collection::Plane.as_str().into(),
            what: "changing the registry of modules".into(),
            source: "other changes came first each time; try again".into(),
        })
    }
}

impl Registration {
    /// Returns the event types that the module subscribes to.
    pub fn event_types(&self) -> &[String] {
        &self.selector.on
    }

    /// Returns whether an event is for the module `name`. The event's document lists the modules
    /// `expected`, by `version` of the registry.
    fn is_listed(&self, name: &str, expected: &[String], version: u64) -> bool {
        version >= self.since && expected.iter().any(|module| module == name)
    }

    /// Returns whether an event is for this module, whose name is `name`.
    pub fn receives(&self, name: &str, event: &Event) -> bool {
        match &event.expected_by {
            Some(expected) => self.is_listed(name, expected, event.registry),
            // An older Ion committed the event. It knew no terms.
            None => {
                self.since == 0 && !event.unrouted && self.selector.on.contains(&event.event_type)
            }
        }
    }
}

/// The registry as this process last read it.
#[derive(Debug, Default)]
pub(crate) struct KnownRegistry(Mutex<Option<Arc<Registry>>>);

impl KnownRegistry {
    pub(crate) async fn get(
        &self,
        documents: &Arc<dyn Documents>,
    ) -> Result<Arc<Registry>, StoreError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(registry) = known {
            return Ok(registry);
        }
        let registry = Arc::new(Registry::read_or_store(documents).await?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(registry.clone());
        Ok(registry)
    }

    /// Drops the registry that was read, because it has changed. It is read again when it is
    /// needed.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Registry {
    /// Writes into an event which modules it is for. `listed` are the files of an event whose
    /// document names them in a list. Returns the guard that must hold for this when the event is
    /// inserted.
    pub(crate) async fn address_event(
        &self,
        documents: &Arc<dyn Documents>,
        event: &mut Event,
        listed: &[FileEntry],
    ) -> Result<Guard, StoreError> {
        let names: Vec<&str> =
            event.files.iter().chain(listed).map(|file| file.name.as_str()).collect();
        let subject = TermSubject { data: &event.data, files: &names };
        let mut expected = self.subscribers(&event.event_type, &subject);
        event.unrouted = expected.is_empty();
        event.cancelled = !expected.is_empty() && self.cancels(documents, event).await?;
        if event.cancelled {
            expected.clear();
        }
        event.unclaimed = !expected.is_empty();
        event.expected_by = Some(expected);
        event.registry = self.version;
        Ok(self.guard())
    }

    /// Returns whether the list of an event's files must be read before the event is addressed.
    pub(crate) fn needs_file_list(&self, event: &Event) -> bool {
        event.file_list.is_some() && self.depends_on_files(&event.event_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::Sqlite;
    use ion_model::event::PublicationState;

    fn event(event_type: &str) -> Event {
        let context = json!({"name": "t", "eventId": "e", "correlationId": "c"});
        let event = json!({
            "id": "e", "context": context, "type": event_type, "created": 5,
            "publication": PublicationState::Unpublished,
        });
        serde_json::from_value(event).unwrap()
    }

    struct RegistryPlane {
        documents: Arc<dyn Documents>,
        known: KnownRegistry,
        _folder: tempfile::TempDir,
    }

    impl RegistryPlane {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let documents = Arc::new(Sqlite::open(&folder.path().join("ion.db")).unwrap());
            Self { documents, known: KnownRegistry::default(), _folder: folder }
        }

        /// Commits an event and returns it.
        async fn commit(&self, event_type: &str) -> Event {
            loop {
                let mut event = event(event_type);
                let registry = self.known.get(&self.documents).await.unwrap();
                let guard = registry.address_event(&self.documents, &mut event, &[]).await.unwrap();
                let id = format!("{event_type}-{}", uuid::Uuid::new_v4());
                let inserted = self
                    .documents
                    .insert(Collection::Events, json!({"id": id}), Some(guard), Durability::Now)
                    .await;
                match inserted {
                    Ok(_) => return event,
                    Err(StoreError::Fenced(Collection::Plane)) => self.known.forget(),
                    Err(error) => panic!("{error}"),
                }
            }
        }

        async fn register(&self, module: &str, on: &[&str]) {
            let on: Vec<String> = on.iter().map(|&on| on.to_owned()).collect();
            let selector = EventSelector { on, terms: Terms::default() };
            Registry::register(&self.documents, module, &selector, "").await.unwrap();
        }

        async fn modules_for(&self, event: &Event) -> Vec<String> {
            let registry = Registry::read(&self.documents).await.unwrap();
            registry.modules_for(event).map(str::to_owned).collect()
        }
    }

    #[tokio::test]
    async fn an_event_is_for_those_that_were_registered_when_it_was_committed() {
        let plane = RegistryPlane::new();
        let before = plane.commit("a").await;
        assert!(before.unrouted);
        plane.register("one", &["a"]).await;
        plane.register("two", &["b", "a"]).await;
        let first = plane.commit("a").await;
        assert_eq!(first.expected_by, Some(vec!["one".to_owned(), "two".to_owned()]));
        assert_eq!(plane.modules_for(&before).await, [""; 0]);
        assert_eq!(plane.modules_for(&first).await, ["one", "two"]);
        // A later change of the subscription does not change which events were for the module.
        plane.register("one", &["c"]).await;
        assert_eq!(plane.modules_for(&first).await, ["one", "two"]);
        assert_eq!(plane.commit("a").await.expected_by, Some(vec!["two".to_owned()]));
        // A module that is removed and registered again is another module.
        Registry::remove(&plane.documents, "two").await.unwrap();
        assert_eq!(plane.modules_for(&first).await, ["one"]);
        plane.register("two", &["a"]).await;
        assert_eq!(plane.modules_for(&first).await, ["one"]);
        let second = plane.commit("a").await;
        assert_eq!(plane.modules_for(&second).await, ["two"]);
        assert!(!second.unrouted);
    }

    #[tokio::test]
    async fn modules_of_an_older_plane_are_registered() {
        let plane = RegistryPlane::new();
        for module in [
            json!({"id": "one", "on": ["a"]}),
            json!({"id": "all", "on": [], "gather": "x", "per": "a"}),
        ] {
            plane
                .documents
                .insert(Collection::Modules, module, None, Durability::Now)
                .await
                .unwrap();
        }
        assert_eq!(
            plane.modules_for(&event("a")).await,
            ["all", "one"],
            "an older Ion has committed it"
        );
        assert_eq!(
            plane.commit("a").await.expected_by,
            Some(vec!["all".to_owned(), "one".to_owned()])
        );
        plane.register("new", &["a"]).await;
        assert_eq!(plane.modules_for(&event("a")).await, ["all", "one"]);
        assert_eq!(plane.modules_for(&plane.commit("a").await).await, ["all", "new", "one"]);
    }

    #[tokio::test]
    async fn many_who_register_at_once_are_all_registered() {
        let plane = RegistryPlane::new();
        let names: Vec<String> = (0..20).map(|n| format!("m{n:02}")).collect();
        futures_util::future::join_all(names.iter().map(|name| plane.register(name, &["a"]))).await;
        assert_eq!(plane.commit("a").await.expected_by, Some(names));
    }
}
