//! Reads a plane's documents without the `ion` command.

use std::collections::BTreeSet;
use std::sync::Arc;

use ionfs::event::Event;
use ionfs::record::{JobRecord, JobState};
use ionfs::registry::Registry;
use ionfs::stores::open::{open_bus, open_documents};
use ionfs::stores::{Bus, Collection, Documents, Query};
use serde_json::json;

/// The documents and the bus of a plane.
pub struct PlaneDocuments {
    pub runtime: tokio::runtime::Runtime,
    pub documents: Arc<dyn Documents>,
    pub bus: Arc<dyn Bus>,
}

impl PlaneDocuments {
    pub fn of(documents: &str, bus: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let documents = runtime.block_on(open_documents(documents)).unwrap();
        let bus = runtime.block_on(open_bus(bus, None)).unwrap();
        Self { runtime, documents, bus }
    }

    pub fn jobs(&self) -> Vec<JobRecord> {
        self.runtime
            .block_on(self.documents.find_as(Query::equal(Collection::Jobs, vec![])))
            .unwrap()
    }

    pub fn registry(&self) -> Registry {
        self.runtime.block_on(Registry::read(&self.documents)).unwrap()
    }

    /// Returns descriptions of unfinished jobs and unclaimed events, for assertion texts.
    pub fn open(&self) -> Vec<String> {
        let (jobs, events, registry) = (self.jobs(), self.events(), self.registry());
        let unfinished = jobs.iter().filter(|job| job.state != JobState::Succeeded);
        let mut open: Vec<String> = unfinished.map(|job| format!("{job:?}")).collect();
        let claimed: BTreeSet<(&str, &str)> =
            jobs.iter().map(|job| (job.event_id.as_str(), job.module.as_str())).collect();
        for event in &events {
            let unclaimed = registry
                .modules_for(event)
                .filter(|name| !claimed.contains(&(event.id.as_str(), name)));
            open.extend(unclaimed.map(|module| format!("{module} has not claimed {event:?}")));
        }
        open
    }

    pub fn events(&self) -> Vec<Event> {
        let events =
            Query::equal(Collection::Events, vec![("context.documentType", json!("eventMeta"))]);
        self.runtime.block_on(self.documents.find_as(events.order_by("created"))).unwrap()
    }
}
