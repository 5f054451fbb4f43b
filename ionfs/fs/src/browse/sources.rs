//! `sources/`: what starts modules by a clock. Each source has its document, the files of its state
//! and its runs.

use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::Event;
use ion_model::id::EventId;
use ion_model::source::{SourceRecord, runs_prefix};
use ion_plane::node::Node as Daemon;
use ion_plane::runs::RunEvents;
use ion_stores::{Collection, Pages, Query};
use serde_json::Value;

use super::documents::{BrowseResult, PART_ROWS, stopped_item, text};
use super::names::{correlation_name, name_of, shell_word, text_of};
use crate::CURRENT;
use crate::item::{FindResult, ListResult, NamePages, NamesResult, ViewItem, files_tree};

/// How many runs are looked up for the names that are read at once: each takes two queries.
const PART_RUNS: usize = 64;

/// The beginning of the name of the folder of a state, which is not listed.
const STATE_FOLDER: &str = ".state-";

/// The fields of a source that a listing needs.
const SOURCE_FIELDS: &[&str] = &["added"];

/// Makes `sources/`: all sources by name, of any number.
pub(super) fn sources(daemon: &Arc<Daemon>) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    ViewItem::paged(
        CURRENT,
        0,
        move || {
            let pages = Pages::by_id(Query::all(Collection::Sources).only(SOURCE_FIELDS));
            Box::new(SourceNames { daemon: listed.clone(), pages, last: String::new() })
        },
        move |name| find_source(found.clone(), name),
    )
}

async fn find_source(daemon: Arc<Daemon>, name: String) -> FindResult {
    let source = daemon.plane.documents.get(Collection::Sources, &text_of(&name)).await?;
    Ok(source.map(|source| source_item(&daemon, &source)))
}

/// Reads the names of all sources.
#[derive(Clone)]
struct SourceNames {
    daemon: Arc<Daemon>,
    pages: Pages,
    /// The source that was read last.
    last: String,
}

#[async_trait]
impl NamePages for SourceNames {
    async fn next(&mut self) -> NamesResult {
        let page = self.pages.next_rows(&*self.daemon.plane.documents, PART_ROWS).await?;
        let Some(page) = page else { return Ok(None) };
        if let Some(last) = page.last() {
            self.last = text(last, "id").to_owned();
        }
        let named = page.iter().map(|source| {
            (name_of(text(source, "id")).into_owned(), source_item(&self.daemon, source))
        });
        Ok(Some(named.collect()))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    fn rest(&self) -> (String, ViewItem) {
        let after = shell_word(&self.last);
        stopped_item(0, &[&format!("ion source list --after {after}")])
    }
}

/// Makes `sources/<name>/`. Its document is read when the folder is accessed.
fn source_item(daemon: &Arc<Daemon>, source: &Value) -> ViewItem {
    let (daemon, name) = (daemon.clone(), text(source, "id").to_owned());
    let added = source["added"].as_i64().unwrap_or_default();
    let (listed, listed_name) = (daemon.clone(), name.clone());
    ViewItem::searchable(
        CURRENT,
        added,
        move || list_source(listed.clone(), listed_name.clone()),
        move |folder| find_state(daemon.clone(), name.clone(), folder),
    )
}

async fn read_source(daemon: &Daemon, name: &str) -> BrowseResult<Option<SourceRecord>> {
    daemon.plane.documents.get_as(Collection::Sources, name).await
}

async fn list_source(daemon: Arc<Daemon>, name: String) -> ListResult {
    // It may have been removed after its name was found.
    let Some(source) = read_source(&daemon, &name).await? else { return Ok(vec![]) };
    let changed = source.run.as_ref().map_or(source.added, |run| run.began);
    Ok(vec![
        ("source.json".to_owned(), ViewItem::json(&source, changed)),
        ("state".to_owned(), ViewItem::Link(state_folder(&source), changed)),
        ("runs".to_owned(), runs_item(&daemon, &name, source.added)),
    ])
}

/// Returns the name of the folder to which `state` leads. It changes with the state: the kernel may
/// keep the bytes of a file, whose path must not lead to other bytes later.
fn state_folder(source: &SourceRecord) -> String {
    let name = EventId::new(source.id.clone());
    let state = serde_json::to_string(&source.state).unwrap_or_default();
    format!("{STATE_FOLDER}{}", EventId::derive(&name, "state", &state))
}

/// Returns the folder of the files that the next run of a source begins with.
async fn find_state(daemon: Arc<Daemon>, name: String, folder: String) -> FindResult {
    if !folder.starts_with(STATE_FOLDER) {
        return Ok(None);
    }
    let Some(source) = read_source(&daemon, &name).await? else { return Ok(None) };
    if state_folder(&source) != folder {
        return Ok(None);
    }
    let state = source.state;
    let files = daemon.plane.listed_files(&state.files, state.file_list.as_ref()).await?;
    Ok(Some(files_tree(&files, &state.directories)))
}

/// Makes `sources/<name>/runs/`: links to the correlations of the runs, newest first.
fn runs_item(daemon: &Arc<Daemon>, source: &str, added: Millis) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    let (listed_source, found_source) = (source.to_owned(), source.to_owned());
    ViewItem::paged(
        CURRENT,
        added,
        move || {
            let runs = RunEvents::newest_first(&listed_source);
            let (daemon, source) = (listed.clone(), listed_source.clone());
            Box::new(RunNames { daemon, source, runs, last: None })
        },
        move |name| find_run(found.clone(), found_source.clone(), name),
    )
}

/// Reads the names of a source's runs.
#[derive(Clone)]
struct RunNames {
    daemon: Arc<Daemon>,
    source: String,
    runs: RunEvents,
    /// The run that was read last, and when it began.
    last: Option<(String, Millis)>,
}

#[async_trait]
impl NamePages for RunNames {
    async fn next(&mut self) -> NamesResult {
        let mut names = Vec::new();
        while names.len() < PART_RUNS {
            let Some(event) = self.runs.next(&self.daemon.plane).await? else { break };
            self.last = Some((event.context.correlation_id.to_string(), event.created));
            names.push(run_link(&event));
        }
        Ok((!names.is_empty()).then_some(names))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        Box::new(self.clone())
    }

    fn rest(&self) -> (String, ViewItem) {
        let source = shell_word(&self.source);
        let (command, reached) = match &self.last {
            Some((run, began)) => {
                (format!("ion source runs {source} --before {}", shell_word(run)), *began)
            }
            None => (format!("ion source runs {source}"), Millis::MAX),
        };
        stopped_item(reached, &[&command])
    }
}

/// Returns the name of a run, which is that of its correlation, and the link to it.
fn run_link(event: &Event) -> (String, ViewItem) {
    let name = correlation_name(event.context.correlation_id.as_str()).into_owned();
    let target = format!("../../../correlations/{name}");
    (name, ViewItem::Link(target, event.created))
}

/// Returns the run whose correlation, or whose number, this is.
async fn find_run(daemon: Arc<Daemon>, source: String, name: String) -> FindResult {
    let correlation = text_of(&name).into_owned();
    let number = correlation.parse::<u64>().ok();
    let rest = correlation.strip_prefix(&runs_prefix(&source));
    let number = number.or_else(|| rest?.split('-').next()?.parse().ok());
    let Some(number) = number else { return Ok(None) };
    let mut runs = RunEvents::numbered(&source, number);
    // A source that had the same name before has runs of the same numbers.
    while let Some(event) = runs.next(&daemon.plane).await? {
        let is_meant = rest.is_none() || event.context.correlation_id.as_str() == correlation;
        if is_meant {
            return Ok(Some(run_link(&event).1));
        }
    }
    Ok(None)
}
