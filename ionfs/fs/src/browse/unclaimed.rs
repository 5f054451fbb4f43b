//! `queued/`: the jobs that are queued, and the events that modules have not taken yet.
//!
//! A dispatcher claims a job of an event when it has a place for it. Until then the event has a
//! message in the module's queue and no job, so its link leads to the event itself.

use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::PublicationState;
use ion_model::id::{EventId, JobId};
use ion_plane::node::Node as Daemon;
use ion_stores::{Collection, FieldRange, Pages, Query};
use serde_json::{Value, json};

use super::documents::{
    BrowseResult, DirectoryItems, PART_ROWS, TimedFolder, TimedNames, command_until,
    correlation_of, created_of, documents_of_name, search_ended, stopped_item, text,
};
use super::names::{correlation_name, id_part, name_of};
use super::time::{second_of_name, time_name};
use crate::CURRENT;
use crate::item::{FindResult, NamePages, NamesResult, ViewItem};
use crate::search_time::SearchTime;

/// A folder of queued jobs, and of events that have no job yet.
#[derive(Clone)]
pub(super) struct QueuedFolder {
    /// The links to queued jobs.
    pub(super) jobs: TimedFolder,
    /// The module whose events are shown, or none for all modules.
    pub(super) module: Option<String>,
}

impl QueuedFolder {
    /// Makes the folder.
    pub(super) fn item(self) -> ViewItem {
        let listed = self.clone();
        ViewItem::paged(
            CURRENT,
            0,
            move || {
                let pages = Pages::new(unclaimed().descending(), "created");
                let (jobs, events) = (listed.jobs.names(), listed.clone());
                Box::new(QueuedNames { jobs: Some(jobs), folder: events, pages, reached: None })
            },
            move |name| {
                let folder = self.clone();
                async move { folder.find(&name).await }
            },
        )
    }

    async fn find(&self, name: &str) -> FindResult {
        if let Some(job) = self.jobs.find(name).await? {
            return Ok(Some(job));
        }
        let Some(second) = second_of_name(None, name) else { return Ok(None) };
        let daemon = self.daemon();
        let found = documents_of_name(daemon, Collection::Events, None, name).await?;
        let unclaimed_events: Vec<Value> =
            found.documents.into_iter().filter(is_unclaimed).collect();
        let named = self.link_of_name(&unclaimed_events, name).await?;
        if named.is_some() || found.are_all {
            return Ok(named);
        }
        let time = SearchTime::begin(daemon);
        let range = FieldRange::at_least("created", json!(second.from)).below(json!(second.below));
        let mut pages = Pages::new(unclaimed().within(range), "created");
        while let Some(page) = pages.next_rows(&*daemon.plane.documents, PART_ROWS).await? {
            if let Some(link) = self.link_of_name(&page, name).await? {
                return Ok(Some(link));
            }
            if time.is_over() {
                return Err(search_ended(Collection::Events, name));
            }
        }
        Ok(None)
    }

    async fn link_of_name(&self, events: &[Value], name: &str) -> FindResult {
        let links = self.links(events).await?;
        Ok(links.into_iter().find(|(found, _)| found == name).map(|(_, link)| link))
    }

    fn daemon(&self) -> &Arc<Daemon> {
        &self.jobs.daemon
    }

    /// Returns a link to each of these events for each module that is to get it and has no job of
    /// it.
    async fn links(&self, events: &[Value]) -> BrowseResult<DirectoryItems> {
        let is_shown = |module: &str| self.module.as_deref().is_none_or(|wanted| wanted == module);
        let mut expected = Vec::new();
        for event in events {
            let modules = event["expectedBy"].as_array().into_iter().flatten();
            for module in modules.filter_map(Value::as_str).filter(|module| is_shown(module)) {
                let job = JobId::derive(&EventId::new(text(event, "id")), module);
                expected.push((event, module, job));
            }
        }
        let ids = expected.iter().map(|(_, _, job)| job.to_string()).collect();
        let documents = &self.daemon().plane.documents;
        let claimed = documents.find_existing_ids(Collection::Jobs, ids).await?;
        expected.retain(|(_, _, job)| !claimed.contains(job.as_str()));
        Ok(expected.iter().map(|(event, module, _)| self.link(event, module)).collect())
    }

    fn link(&self, event: &Value, module: &str) -> (String, ViewItem) {
        let created = created_of(event);
        let (what, up) = match self.module {
            Some(_) => (text(event, "type"), "../../.."),
            None => (module, ".."),
        };
        let (correlation, id) = (correlation_name(correlation_of(event)), text(event, "id"));
        let target = format!("{up}/correlations/{correlation}/{}", name_of(id));
        let name = format!("{}-{}-{}", time_name(created), name_of(what), id_part(id));
        (name, ViewItem::Link(target, created))
    }
}

/// Returns whether [`unclaimed`] finds this event.
fn is_unclaimed(event: &Value) -> bool {
    event["unclaimed"] == true && event["publication"] == json!(PublicationState::Published)
}

/// Makes the query for events that may have modules without a job. A dispatcher removes the mark
/// some time after the last one was claimed.
fn unclaimed() -> Query {
    let equals =
        vec![("unclaimed", json!(true)), ("publication", json!(PublicationState::Published))];
    let fields = &["context.correlationId", "created", "expectedBy", "type"];
    Query::equal(Collection::Events, equals).only(fields)
}

/// Reads the names of a [`QueuedFolder`]: first those of the jobs.
#[derive(Clone)]
struct QueuedNames {
    jobs: Option<TimedNames>,
    folder: QueuedFolder,
    pages: Pages,
    /// The time of the event that was read last.
    reached: Option<Millis>,
}

#[async_trait]
impl NamePages for QueuedNames {
    async fn next(&mut self) -> NamesResult {
        if let Some(jobs) = &mut self.jobs {
            match jobs.next().await? {
                Some(names) => return Ok(Some(names)),
                None => self.jobs = None,
            }
        }
        let documents = &*self.folder.daemon().plane.documents;
        match self.pages.next_rows(documents, PART_ROWS).await? {
            Some(page) => {
                self.reached = page.last().map(created_of);
                self.folder.links(&page).await.map(Some)
            }
            None => Ok(None),
        }
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    fn rest(&self) -> (String, ViewItem) {
        let reached = self.reached.unwrap_or(Millis::MAX);
        match &self.jobs {
            Some(jobs) => jobs.rest_with(&["ion event list"]),
            None => stopped_item(reached, &[&command_until("ion event list", reached)]),
        }
    }
}
