//! `find/` and `insights/`: insights and events by terms.
//!
//! Each term is a folder, whether it is listed or not: `find/insights/classify/kind=car/score>=0.8`.
//! Only the first folder lists terms. If each did, a program that walks through the whole tree would
//! meet all combinations of all values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use ion_model::clock::Millis;
use ion_model::event::KeyValue;
use ion_model::term::{IndexRange, equality_term, module_text};
use ion_plane::node::Node as Daemon;
use ion_plane::search::{
    FoundDocument, Search, SearchHit, SearchHits, SearchKind, SearchPace, parse_search_terms,
};
use ion_stores::{Collection, Query, TimeRange};
use serde_json::Value;

use super::documents::{
    BrowseResult, DirectoryItems, add_more, command_until, documents_of_name, search_ended,
    stopped_item, text,
};
use super::jobs::list_modules;
use super::names::{correlation_name, id_part, name_of, shell_word, text_of};
use super::time::{TimeSpan, second_of_name, time_name};
use super::types::{is_type, list_types};
use crate::CURRENT;
use crate::item::{FindResult, NamePages, NamesResult, ViewItem};
use crate::search_time::SearchTime;

/// How many documents are looked at for the names that are read at once. More may take a request
/// beyond its deadline where each needs other documents (the files of an event, an event above it);
/// fewer make more requests.
const PART_DOCUMENTS: usize = 128;

/// How many of the newest insights are looked at to list keys and values.
const SAMPLED: usize = 1000;

/// The most values of a key that are listed as terms. A key with more is a measure or a name: a
/// list of its values helps nobody.
const LISTED_VALUES_MAX: usize = 50;

/// The most bytes of a name.
const NAME_MAX: usize = 255;

/// Makes `find/`.
pub(super) fn find_root(daemon: &Arc<Daemon>) -> ViewItem {
    let insights = modules_folder(daemon, |daemon, name| {
        FoundFolder::new(daemon, SearchKind::Insights(name.to_owned()), 3).item()
    });
    let (listed, found) = (daemon.clone(), daemon.clone());
    let of_type = |daemon: &Arc<Daemon>, name: &str| {
        FoundFolder::new(daemon, SearchKind::Events(name.to_owned()), 3).item()
    };
    let events = ViewItem::searchable(
        CURRENT,
        0,
        move || list_types(listed.clone(), of_type),
        move |name| {
            let daemon = found.clone();
            async move { Ok(is_type(&daemon, &name).await?.then(|| of_type(&daemon, &name))) }
        },
    );
    ViewItem::fixed([("events".to_owned(), events), ("insights".to_owned(), insights)])
}

/// Makes `insights/`: the insights of each module by key and value.
pub(super) fn insights(daemon: &Arc<Daemon>) -> ViewItem {
    modules_folder(daemon, keys_item)
}

/// Makes a folder of modules, each with the item that `item_of` makes of its name. The registered
/// ones are listed.
fn modules_folder(daemon: &Arc<Daemon>, item_of: fn(&Arc<Daemon>, &str) -> ViewItem) -> ViewItem {
    let (listed, found) = (daemon.clone(), daemon.clone());
    ViewItem::searchable(
        CURRENT,
        0,
        move || {
            list_modules(listed.clone(), move |daemon, module| item_of(daemon, text(module, "id")))
        },
        move |name| {
            let daemon = found.clone();
            async move { Ok(is_module(&daemon, &name).await?.then(|| item_of(&daemon, &name))) }
        },
    )
}

/// Returns whether a module of this name is registered, or has kept insights before it was removed.
async fn is_module(daemon: &Daemon, name: &str) -> BrowseResult<bool> {
    let documents = &daemon.plane.documents;
    if documents.get(Collection::Modules, name).await?.is_some() {
        return Ok(true);
    }
    let kept = Query::all(Collection::Events).with_term(IndexRange::Is(module_text(name)));
    Ok(documents.count(kept.limit(1)).await? > 0)
}

/// Makes `insights/<module>/`.
fn keys_item(daemon: &Arc<Daemon>, module: &str) -> ViewItem {
    let folder = FoundFolder::new(daemon, SearchKind::Insights(module.to_owned()), 2);
    let listed = folder.clone();
    let list = move || {
        let folder = listed.clone();
        async move {
            let sample = folder.sample().await?;
            let keys: BTreeSet<&str> = sample.pairs().map(|pair| pair.key.as_str()).collect();
            let items = keys.into_iter().filter(|key| is_name(key));
            let items = items.map(|key| (name_of(key).into_owned(), values_item(&folder, key)));
            Ok(sample.with_more(items.collect(), "key"))
        }
    };
    let find =
        move |name: String| std::future::ready(Ok(Some(values_item(&folder, &text_of(&name)))));
    ViewItem::searchable(CURRENT, 0, list, find)
}

/// Makes `insights/<module>/<key>/`.
fn values_item(folder: &FoundFolder, key: &str) -> ViewItem {
    let (folder, key) = (folder.clone(), key.to_owned());
    let (listed, listed_key) = (folder.clone(), key.clone());
    let item = |folder: &FoundFolder, key: &str, value: &str| {
        let terms = vec![equality_term(key, value)];
        FoundFolder { terms, depth: folder.depth + 2, ..folder.clone() }.item()
    };
    let list = move || {
        let (folder, key) = (listed.clone(), listed_key.clone());
        async move {
            let sample = folder.sample().await?;
            let of_key = sample.pairs().filter(|pair| pair.key == key);
            let values: BTreeSet<&str> = of_key.map(|pair| pair.value.as_str()).collect();
            let items = values.into_iter().filter(|value| is_name(value));
            let items =
                items.map(|value| (name_of(value).into_owned(), item(&folder, &key, value)));
            Ok(sample.with_more(items.collect(), "value"))
        }
    };
    let find =
        move |name: String| std::future::ready(Ok(Some(item(&folder, &key, &text_of(&name)))));
    ViewItem::searchable(CURRENT, 0, list, find)
}

/// Returns whether a text can be listed as a name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && name_of(text).len() <= NAME_MAX
}

/// The newest insights of a module.
struct SampledInsights {
    hits: Vec<SearchHit>,
    is_cut: bool,
}

impl SampledInsights {
    fn pairs(&self) -> impl Iterator<Item = &KeyValue> {
        self.hits.iter().flat_map(values_of)
    }

    /// Adds the file that says that older insights may have others.
    fn with_more(&self, mut items: DirectoryItems, what: &str) -> DirectoryItems {
        if self.is_cut {
            let shown = format!("what the newest {SAMPLED} insights have");
            add_more(&mut items, &shown, &format!("Each other {what} is here by its name."));
        }
        items
    }
}

fn values_of(hit: &SearchHit) -> &[KeyValue] {
    match &hit.document {
        FoundDocument::Insight(insight) => &insight.data,
        FoundDocument::Event(event) => &event.data,
    }
}

/// A folder of links to what meets some terms.
#[derive(Clone)]
struct FoundFolder {
    daemon: Arc<Daemon>,
    kind: SearchKind,
    terms: Vec<String>,
    /// How many folders below the root of the mount it is.
    depth: usize,
}

impl FoundFolder {
    /// Makes the folder of a module or a type, which has no terms yet.
    fn new(daemon: &Arc<Daemon>, kind: SearchKind, depth: usize) -> Self {
        Self { daemon: daemon.clone(), kind, terms: vec![], depth }
    }

    fn item(self) -> ViewItem {
        let listed = self.clone();
        ViewItem::paged(
            CURRENT,
            0,
            move || Box::new(FoundNames { folder: listed.clone(), after: None, search: None }),
            move |name| {
                let folder = self.clone();
                async move { folder.find(&name).await }
            },
        )
    }

    /// Returns the search for what the folder links to.
    fn to_search(&self, time: TimeRange) -> Search {
        let (terms, above) = parse_search_terms(&self.terms).expect(
            "only terms that can be read become folders, and a name is shorter than a term",
        );
        let (kind, pace) = (self.kind.clone(), SearchPace::Stoppable);
        Search { kind, terms, above, time, after: None, pace }
    }

    async fn sample(&self) -> BrowseResult<SampledInsights> {
        let time = SearchTime::begin(&self.daemon);
        let search = self.to_search(TimeRange::default());
        let mut search = search.begin(&self.daemon.plane).await?;
        let mut sample = SampledInsights { hits: vec![], is_cut: false };
        while let Some(hits) = search.next_among(PART_DOCUMENTS).await? {
            sample.hits.extend(hits);
            sample.is_cut = sample.hits.len() >= SAMPLED || time.is_over();
            if sample.is_cut {
                break;
            }
        }
        Ok(sample)
    }

    /// Returns the command that lists what the folder links to.
    fn command(&self) -> String {
        let of = match &self.kind {
            SearchKind::Insights(module) => format!("insights {}", shell_word(module)),
            SearchKind::Events(event_type) => format!("events {}", shell_word(event_type)),
        };
        let terms = self.terms.iter().map(|term| format!(" {}", shell_word(term)));
        format!("ion find {of}{}", terms.collect::<String>())
    }

    /// Returns what a name stands for: a hit that is listed under it, or a folder with one more
    /// term.
    async fn find(&self, name: &str) -> FindResult {
        if let Some(TimeSpan { from, below }) = second_of_name(None, name) {
            return self.find_hit(TimeRange { since: Some(from), until: Some(below) }, name).await;
        }
        // Tools look for such names everywhere. A key that begins so is written with a backslash.
        if name.starts_with('.') {
            return Ok(None);
        }
        let mut terms = self.terms.clone();
        terms.push(text_of(name).into_owned());
        let folder = Self { terms, depth: self.depth + 1, ..self.clone() };
        Ok(parse_search_terms(&folder.terms).is_ok().then(|| folder.item()))
    }

    /// Returns the link to the hit of this name: by the id in the name or, where several ids are like
    /// it, by a search through the documents of its second.
    async fn find_hit(&self, second: TimeRange, name: &str) -> FindResult {
        let time = SearchTime::begin(&self.daemon);
        let found = documents_of_name(&self.daemon, Collection::Events, None, name).await?;
        let search = self.to_search(second);
        for document in found.documents {
            if let Some(hit) = search.hit(&self.daemon.plane, document).await? {
                let (found, link) = self.link(&hit);
                if found == name {
                    return Ok(Some(link));
                }
            }
        }
        if found.are_all {
            return Ok(None);
        }
        let mut search = search.begin(&self.daemon.plane).await?;
        while let Some(hits) = search.next_among(PART_DOCUMENTS).await? {
            let mut links = hits.iter().map(|hit| self.link(hit));
            if let Some((_, link)) = links.find(|(found, _)| found == name) {
                return Ok(Some(link));
            }
            if time.is_over() {
                return Err(search_ended(Collection::Events, name));
            }
        }
        Ok(None)
    }

    /// Returns the name of a hit, and the link to it: to the job that kept an insight, to the event,
    /// or to the event above it that was asked for.
    fn link(&self, hit: &SearchHit) -> (String, ViewItem) {
        let (id, created, context, below) = match &hit.document {
            FoundDocument::Insight(insight) => {
                let below = format!("/jobs/{}", insight.context.name);
                (&*insight.id, insight.created, &insight.context, below)
            }
            FoundDocument::Event(event) => {
                (event.id.as_str(), event.created, &event.context, String::new())
            }
        };
        let (event, below) = match (&hit.above, &hit.document) {
            (Some(above), _) => (above.id.as_str(), String::new()),
            (None, FoundDocument::Event(event)) => (event.id.as_str(), below),
            (None, FoundDocument::Insight(_)) => (context.event_id.as_str(), below),
        };
        let (up, correlation) = ("../".repeat(self.depth), context.correlation_id.as_str());
        let target =
            format!("{up}correlations/{}/{}{below}", correlation_name(correlation), name_of(event));
        let name = format!("{}-{}", time_name(created), id_part(id));
        (name, ViewItem::Link(target, created))
    }

    /// Returns folders for the values of keys that have few, among these hits.
    fn term_folders(&self, hits: &[SearchHit]) -> DirectoryItems {
        let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for pair in hits.iter().flat_map(values_of) {
            values.entry(&pair.key).or_default().insert(&pair.value);
        }
        values.retain(|_, values| values.len() <= LISTED_VALUES_MAX);
        let pairs =
            values.iter().flat_map(|(key, values)| values.iter().map(move |one| (key, one)));
        let folder = |(key, value): (&&str, &&str)| {
            let term = equality_term(key, value);
            let name = name_of(&term).into_owned();
            let folder = Self { terms: vec![term], depth: self.depth + 1, ..self.clone() };
            (name.len() <= NAME_MAX).then(|| (name, folder.item()))
        };
        pairs.filter_map(folder).collect()
    }
}

/// Reads the names of a [`FoundFolder`].
struct FoundNames {
    folder: FoundFolder,
    /// The document after which the reading begins.
    after: Option<Value>,
    /// None before the first names are read.
    search: Option<Box<SearchHits>>,
}

#[async_trait]
impl NamePages for FoundNames {
    async fn next(&mut self) -> NamesResult {
        let mut names = DirectoryItems::new();
        let hits = match &mut self.search {
            Some(search) => search.next_among(PART_DOCUMENTS).await?,
            None => {
                let search = self.folder.to_search(TimeRange::default());
                let search = Search { after: self.after.clone(), ..search };
                let mut search = search.begin(&self.folder.daemon.plane).await?;
                let hits = search.next_among(PART_DOCUMENTS).await?;
                let suggests_terms = self.folder.terms.is_empty() && self.after.is_none();
                if let Some(hits) = hits.as_ref().filter(|_| suggests_terms) {
                    names = self.folder.term_folders(hits);
                }
                self.search = Some(search.into());
                hits
            }
        };
        let Some(hits) = hits else { return Ok(None) };
        names.extend(hits.iter().map(|hit| self.folder.link(hit)));
        Ok(Some(names))
    }

    fn bookmark(&self) -> Box<dyn NamePages> {
        let last = self.search.as_ref().and_then(|search| search.last_document());
        let after = last.cloned().or_else(|| self.after.clone());
        Box::new(Self { folder: self.folder.clone(), after, search: None })
    }

    fn rest(&self) -> (String, ViewItem) {
        let reached = self.search.as_ref().and_then(|search| search.reached());
        let reached = reached.unwrap_or(Millis::MAX);
        stopped_item(reached, &[&command_until(&self.folder.command(), reached)])
    }
}
