//! Searches for insights and events by terms.
//!
//! # How it works
//! Insights are found by an index of their values ([`ion_model::term::index_texts`]). The search
//! counts, up to [`COUNTED_MAX`], how many insights each term's index has, and goes through the
//! shortest list, newest first; if it is [the fastest](SearchPace::Fastest), the index answers other
//! terms that ask for one text, too. Events are found by their type, newest first. Everything that
//! is found is judged by the terms again, so an index may find too much.
//!
//! # What it never does
//! Hold more than a page of documents of each list that it merges. A search is at most as long as
//! the shortest list: terms that each hold for many insights, but together for few, cost as much as
//! all insights of that list.

use std::collections::VecDeque;

use ion_model::clock::Millis;
use ion_model::event::{DocumentType, Event, is_event, is_staged};
use ion_model::id::EventId;
use ion_model::record::InsightRecord;
use ion_model::term::{IndexRange, Term, TermSubject, Terms, module_text};
use ion_stores::{Collection, DataPlane, Pages, Query, StoreError, TimeRange, decode, encode};
use serde_json::{Value, json};

/// How far the insights of a term are counted to find the shortest list. Reading so many is fast,
/// so it does not matter how many more there are.
const COUNTED_MAX: usize = 2000;

/// The most lists that are merged. A term with more alternatives is judged and has no list.
const LISTS_MAX: usize = 16;

/// How far up a lineage the event of a wanted type is looked for.
const ABOVE_MAX: usize = 1000;

/// What is looked for.
#[derive(Clone, Debug)]
pub enum SearchKind {
    /// Insights that this module keeps.
    Insights(String),
    /// Events of this type.
    Events(String),
}

/// How a search reads its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchPace {
    /// The index answers as many terms as it can, so one query may go through very many entries
    /// until it has found a page of documents.
    Fastest,
    /// The index answers one term, so no query goes through more entries than it returns documents.
    /// The search takes longer, and its caller can end it at any time:
    /// [`SearchHits::next_among`] always returns soon.
    Stoppable,
}

/// A search.
#[derive(Clone, Debug)]
pub struct Search {
    /// What is looked for.
    pub kind: SearchKind,
    /// The terms that must hold.
    pub terms: Terms,
    /// The type of an event at or above what is found, which is to be found with it. What has no
    /// such event is left out.
    pub above: Option<String>,
    /// When it was kept or committed.
    pub time: TimeRange,
    /// The document after which the search goes on, in its order: the newest documents come first.
    pub after: Option<Value>,
    /// How its lists are read.
    pub pace: SearchPace,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct SearchHit {
    /// The document of the insight or event.
    pub document: FoundDocument,
    /// The nearest event of the wanted type at or above it; none if no type is wanted.
    pub above: Option<Event>,
}

impl SearchHit {
    /// Returns the document of the hit, with the event above it as its member `above`.
    pub fn document(&self) -> Value {
        let mut document = match &self.document {
            FoundDocument::Insight(insight) => insight.shown_document(),
            FoundDocument::Event(event) => encode(event),
        };
        if let Some(above) = &self.above {
            document["above"] = encode(above);
        }
        document
    }
}

/// An insight or an event.
#[derive(Clone, Debug)]
pub enum FoundDocument {
    /// An insight.
    Insight(Box<InsightRecord>),
    /// An event.
    Event(Box<Event>),
}

impl FoundDocument {
    /// Returns the event that it is, or that its module worked on.
    fn event_id(&self) -> &EventId {
        match self {
            Self::Insight(insight) => &insight.context.event_id,
            Self::Event(event) => &event.id,
        }
    }
}

/// The hits of a search, which are found a page at a time.
#[derive(Debug)]
pub struct SearchHits {
    plane: DataPlane,
    search: Search,
    /// The lists that are gone through, merged by time. There are several where a term accepts
    /// several values.
    lists: Vec<FoundList>,
    /// The time and the id of the document that was looked at last; none before the first.
    last: Option<Value>,
}

/// A list of documents, newest first.
#[derive(Debug)]
struct FoundList {
    pages: Pages,
    /// The documents that were read and come next.
    page: VecDeque<Value>,
}

impl FoundList {
    /// Reads a page if none is left.
    async fn fill(&mut self, plane: &DataPlane) -> Result<(), StoreError> {
        if self.page.is_empty() {
            self.page = self.pages.next(&*plane.documents).await?.unwrap_or_default().into();
        }
        Ok(())
    }
}

/// Returns where a document is in the order of a search.
fn place(document: &Value) -> (Option<i64>, Option<&str>) {
    (document["created"].as_i64(), document["id"].as_str())
}

impl Search {
    /// Begins the search.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn begin(self, plane: &DataPlane) -> Result<SearchHits, StoreError> {
        let queries = match &self.kind {
            SearchKind::Events(event_type) => {
                let equals = vec![
                    ("type", json!(event_type)),
                    ("context.documentType", json!(DocumentType::EventMeta)),
                ];
                vec![Query::equal(Collection::Events, equals)]
            }
            SearchKind::Insights(module) => self.insight_queries(plane, module).await?,
        };
        let list = |query: Query| {
            let pages = Pages::new(self.time.restrict(query, "created").descending(), "created");
            let pages = match &self.after {
                Some(document) => pages.after(document),
                None => pages,
            };
            FoundList { pages, page: VecDeque::new() }
        };
        let lists = queries.into_iter().map(list).collect();
        Ok(SearchHits { plane: plane.clone(), lists, search: self, last: None })
    }

    /// Returns the queries that find all insights of the module that can meet the terms.
    async fn insight_queries(
        &self,
        plane: &DataPlane,
        module: &str,
    ) -> Result<Vec<Query>, StoreError> {
        let all = || Query::all(Collection::Events);
        let mut shortest: Option<(usize, Vec<IndexRange>)> = None;
        let mut exact = Vec::new();
        for ranges in self.terms.iter().filter_map(|term| term.index_ranges(module)) {
            if ranges.len() > LISTS_MAX {
                continue;
            }
            let mut count = 0;
            for range in &ranges {
                let query = all().with_term(range.clone()).limit(COUNTED_MAX);
                count += plane.documents.count(query).await?;
            }
            if let ([only @ IndexRange::Is(_)], SearchPace::Fastest) = (&ranges[..], self.pace) {
                exact.push(only.clone());
            }
            // A list of many that is not sorted by time would be read as a whole.
            let is_sorted = ranges.iter().all(|range| matches!(range, IndexRange::Is(_)));
            let can_be_read = is_sorted || count < COUNTED_MAX;
            if can_be_read && shortest.as_ref().is_none_or(|(fewest, _)| count < *fewest) {
                shortest = Some((count, ranges));
            }
        }
        let shortest = match shortest {
            Some((_, ranges)) => ranges,
            None => vec![IndexRange::Is(module_text(module))],
        };
        let query = |range: IndexRange| {
            let others = exact.iter().filter(|other| **other != range).cloned();
            others.fold(all().with_term(range.clone()), Query::with_term)
        };
        Ok(shortest.into_iter().map(query).collect())
    }

    /// Returns the hit that a document of [`Collection::Events`] is; none if it is not one. Its time
    /// is not compared.
    ///
    /// # Errors
    /// When what the terms are about, or an event above it, cannot be read.
    pub async fn hit(
        &self,
        plane: &DataPlane,
        document: Value,
    ) -> Result<Option<SearchHit>, StoreError> {
        let Some(document) = self.judge(plane, document).await? else { return Ok(None) };
        let Some(event_type) = &self.above else {
            return Ok(Some(SearchHit { document, above: None }));
        };
        let above = find_above(plane, &document, event_type).await?;
        Ok(above.map(|above| SearchHit { document, above: Some(above) }))
    }

    /// Returns the document if people may see it, it is what is looked for, and it meets the terms.
    async fn judge(
        &self,
        plane: &DataPlane,
        document: Value,
    ) -> Result<Option<FoundDocument>, StoreError> {
        let event_type = match &self.kind {
            SearchKind::Insights(module) => {
                let context = &document["context"];
                let is_insight = context["documentType"] == DocumentType::Insight.as_str();
                if !is_insight || context["name"] != **module {
                    return Ok(None);
                }
                let insight: InsightRecord = decode(Collection::Events, document)?;
                let subject = TermSubject { data: &insight.data, files: &[] };
                let is_hit = !insight.staged && self.terms.hold(&subject);
                return Ok(is_hit.then(|| FoundDocument::Insight(Box::new(insight))));
            }
            SearchKind::Events(event_type) => event_type,
        };
        if !is_event(&document) || document["type"] != **event_type || is_staged(&document) {
            return Ok(None);
        }
        let event: Event = decode(Collection::Events, document)?;
        let listed = match self.terms.are_about_files() {
            true => plane.files_of(&event).await?,
            false => vec![],
        };
        let files: Vec<&str> = listed.iter().map(|file| file.name.as_str()).collect();
        let is_hit = self.terms.hold(&TermSubject { data: &event.data, files: &files });
        Ok(is_hit.then(|| FoundDocument::Event(Box::new(event))))
    }
}

/// Returns the nearest event of this type at or above what was found.
async fn find_above(
    plane: &DataPlane,
    found: &FoundDocument,
    event_type: &str,
) -> Result<Option<Event>, StoreError> {
    let mut id = found.event_id().to_string();
    for _ in 0..ABOVE_MAX {
        if id.is_empty() {
            return Ok(None);
        }
        // A parent's id is whatever a user has chosen: perhaps that of another document.
        let document = plane.documents.get(Collection::Events, &id).await?;
        let Some(document) = document.filter(is_event) else { return Ok(None) };
        if document["type"] == event_type {
            return decode(Collection::Events, document).map(Some);
        }
        id = document["context"]["parentEventId"].as_str().unwrap_or_default().to_owned();
    }
    Ok(None)
}

impl SearchHits {
    /// Returns the next hit, the newest first.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next(&mut self) -> Result<Option<SearchHit>, StoreError> {
        while let Some(document) = self.next_document().await? {
            if let Some(hit) = self.search.hit(&self.plane, document).await? {
                return Ok(Some(hit));
            }
        }
        Ok(None)
    }

    /// Looks at the next documents, so many or as many as are left. Returns the hits among them, or
    /// none after the last document. So a caller whose time is bounded can end a search that finds
    /// nothing.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next_among(
        &mut self,
        documents: usize,
    ) -> Result<Option<Vec<SearchHit>>, StoreError> {
        let mut hits = Vec::new();
        for looked_at in 0..documents {
            let Some(document) = self.next_document().await? else {
                return Ok((looked_at > 0).then_some(hits));
            };
            hits.extend(self.search.hit(&self.plane, document).await?);
        }
        Ok(Some(hits))
    }

    /// Returns the time of the document that was looked at last. All later documents were looked
    /// at, and none before it.
    pub fn reached(&self) -> Option<Millis> {
        self.last.as_ref()?["created"].as_i64()
    }

    /// Returns the time and the id of the document that was looked at last, after which another
    /// search goes on.
    pub fn last_document(&self) -> Option<&Value> {
        self.last.as_ref()
    }

    /// Takes the newest document of all lists. A document that is in several lists is taken once.
    async fn next_document(&mut self) -> Result<Option<Value>, StoreError> {
        for list in &mut self.lists {
            list.fill(&self.plane).await?;
        }
        let newest = self.lists.iter_mut().filter(|list| !list.page.is_empty());
        let newest = newest.max_by(|one, other| place(&one.page[0]).cmp(&place(&other.page[0])));
        let Some(document) = newest.and_then(|list| list.page.pop_front()) else {
            return Ok(None);
        };
        for list in &mut self.lists {
            if list.page.front().is_some_and(|first| first["id"] == document["id"]) {
                list.page.pop_front();
            }
        }
        self.last = Some(json!({"created": document["created"], "id": document["id"]}));
        Ok(Some(document))
    }
}

/// Separates `@TYPE` from the terms of a search.
///
/// # Errors
/// When a text is not a term, or when there are two types.
pub fn parse_search_terms(texts: &[String]) -> Result<(Terms, Option<String>), SearchTermError> {
    let mut above = None;
    let mut terms = Vec::new();
    for text in texts {
        match text.strip_prefix('@') {
            Some(event_type) if above.is_none() => above = Some(event_type.to_owned()),
            Some(_) => return Err(SearchTermError::TwoTypes),
            None => terms.push(text),
        }
    }
    Ok((Terms::parse(&terms)?, above))
}

/// Why the terms of a search cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SearchTermError {
    /// A text is not a term.
    #[error(transparent)]
    Term(#[from] ion_model::term::TermError),
    /// `@TYPE` was given twice.
    #[error("a search has one @TYPE: the nearest event of that type at or above what is found")]
    TwoTypes,
}

/// Returns the keys of a search's terms, for the columns of its table.
pub fn term_keys(terms: &Terms) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for key in terms.iter().map(Term::key) {
        if !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    keys
}
