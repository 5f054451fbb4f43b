//! Walks through the events and jobs of a correlation, from its first events down, with a memory
//! that does not grow with the correlation.
//!
//! # How it works
//! The walk goes into the depth. It keeps one page of each level that it is in, and a few children
//! of each node of that page: these are read while the page is, several at the same time, so that a
//! store that is far away costs few round trips. A node's further children are read once the walk
//! comes to them.
//!
//! # What it never does
//! Return anything twice: each event has one parent, and the walk stays in its correlation, so a
//! walk from first events meets no event again. Events whose parents form a circle, which users can
//! make by their own ids, are below no first event, and are not met at all. Nor is an event of a
//! job that is not recorded.

use std::collections::VecDeque;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ion_model::event::{DocumentType, Event, is_event, is_staged};
use ion_model::record::{InsightRecord, JobRecord};
use ion_stores::{Collection, Documents, Equals, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

use crate::ledger::Ledger;

/// The number of nodes of a page.
const PAGE_NODES: usize = 64;

/// How many children of a node are read together with it. Most nodes have fewer.
const READ_AHEAD: usize = 4;

/// How many nodes' children are read at the same time.
const READS_AT_ONCE: usize = 16;

/// An event or a job of a lineage.
#[derive(Clone, Debug)]
pub enum LineageNode {
    /// An event.
    Event(Box<Event>),
    /// A job, with the insights that it keeps.
    Job(Box<JobRecord>, Option<Box<InsightRecord>>),
}

/// A step of a walk.
#[derive(Clone, Debug)]
pub struct LineageStep {
    /// How many nodes are above this one.
    pub level: usize,
    /// Whether it is the last child of its parent.
    pub is_last: bool,
    /// The node.
    pub node: LineageNode,
    /// Whether it has children that the walk leaves out because they are too deep.
    pub is_cut: bool,
}

/// The children of a node that have not been read yet: lists of one collection each, which come one
/// after the other.
#[derive(Debug, Default)]
struct UnreadChildren(VecDeque<(Collection, Pages)>);

/// Returns the list of the children that a query finds, oldest first.
fn children(collection: Collection, equals: Vec<Equals>) -> (Collection, Pages) {
    (collection, Pages::new(Query::equal(collection, equals), "created"))
}

impl UnreadChildren {
    /// Returns the lists of the children of an event: its jobs, and the events of the same
    /// correlation that users have created with this event as their parent.
    fn of_event(event: &Event) -> Self {
        let id = json!(event.id);
        let jobs = vec![("eventId", id.clone())];
        let events = vec![
            ("context.parentEventId", id),
            ("jobId", Value::Null),
            ("context.correlationId", json!(event.context.correlation_id)),
        ];
        Self([children(Collection::Jobs, jobs), children(Collection::Events, events)].into())
    }

    /// Returns the list of the events that a job has committed.
    fn of_job(job: &JobRecord) -> Self {
        let events = vec![("context.parentEventId", json!(job.event_id)), ("jobId", json!(job.id))];
        Self([children(Collection::Events, events)].into())
    }

    /// Returns the next children, none if there are no more.
    async fn next(
        &mut self,
        documents: &dyn Documents,
        limit: usize,
    ) -> Result<Vec<LineageNode>, StoreError> {
        let mut nodes = Vec::new();
        while nodes.is_empty()
            && let Some((collection, pages)) = self.0.front_mut()
        {
            match pages.next_rows(documents, limit).await? {
                None => drop(self.0.pop_front()),
                Some(page) => {
                    for document in page {
                        nodes.extend(read_node(*collection, document)?);
                    }
                }
            }
        }
        Ok(nodes)
    }
}

/// Reads an event or a job; none if people may not see it.
fn read_node(collection: Collection, document: Value) -> Result<Option<LineageNode>, StoreError> {
    if collection == Collection::Jobs {
        let job = decode(collection, document)?;
        return Ok(Some(LineageNode::Job(Box::new(job), None)));
    }
    if !is_event(&document) || is_staged(&document) {
        return Ok(None);
    }
    let event = decode(collection, document)?;
    Ok(Some(LineageNode::Event(Box::new(event))))
}

/// A node whose first children have been read.
#[derive(Debug)]
struct ReadNode {
    node: LineageNode,
    first_children: Vec<LineageNode>,
    unread: UnreadChildren,
}

impl ReadNode {
    async fn read(documents: &dyn Documents, mut node: LineageNode) -> Result<Self, StoreError> {
        let mut unread = match &node {
            LineageNode::Event(event) => UnreadChildren::of_event(event),
            LineageNode::Job(job, _) => UnreadChildren::of_job(job),
        };
        let first_children = unread.next(documents, READ_AHEAD).await?;
        if let LineageNode::Job(job, insight) = &mut node {
            let kept = documents.get(Collection::Events, &InsightRecord::id(&job.id)).await?;
            let kept: Option<InsightRecord> =
                kept.map(|kept| decode(Collection::Events, kept)).transpose()?;
            *insight = kept.filter(|kept| !kept.staged).map(Box::new);
        }
        Ok(Self { node, first_children, unread })
    }
}

/// The children of one node on the way to the present one.
#[derive(Debug)]
struct WalkLevel {
    /// The children that come next.
    read: VecDeque<ReadNode>,
    /// Children that were read without their own children.
    first_children: Vec<LineageNode>,
    unread: UnreadChildren,
}

impl WalkLevel {
    /// Reads on if no child is read. Then no child is left if none is read.
    async fn fill(&mut self, documents: &dyn Documents) -> Result<(), StoreError> {
        if !self.read.is_empty() {
            return Ok(());
        }
        let nodes = match self.first_children.is_empty() {
            true => self.unread.next(documents, PAGE_NODES).await?,
            false => std::mem::take(&mut self.first_children),
        };
        let nodes = stream::iter(nodes).map(|node| ReadNode::read(documents, node));
        self.read = nodes.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(())
    }
}

/// A walk through a correlation.
#[derive(Debug)]
pub struct LineageWalk {
    ledger: Ledger,
    correlation: String,
    /// The events that may be first events; none once all were looked at.
    candidates: Option<Pages>,
    levels: Vec<WalkLevel>,
    levels_max: usize,
}

impl LineageWalk {
    /// Begins a walk down to a number of levels: events are on the levels 0, 2, 4 and so on, and
    /// jobs on those between them.
    pub fn new(ledger: Ledger, correlation: &str, levels_max: usize) -> Self {
        // What a job has committed is below the job's event. All others may be first events.
        let equals = vec![
            ("context.correlationId", json!(correlation)),
            ("context.documentType", json!(DocumentType::EventMeta)),
            ("jobId", Value::Null),
        ];
        let query = Query::equal(Collection::Events, equals);
        let first = WalkLevel {
            read: VecDeque::new(),
            first_children: Vec::new(),
            unread: UnreadChildren::default(),
        };
        Self {
            ledger,
            correlation: correlation.to_owned(),
            candidates: Some(Pages::new(query, "created")),
            levels: vec![first],
            levels_max,
        }
    }

    /// Returns the next node, or `None` at the end of the walk.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next(&mut self) -> Result<Option<LineageStep>, StoreError> {
        loop {
            self.fill_last_level().await?;
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(ReadNode { node, first_children, unread }) = level.read.pop_front() else {
                self.levels.pop();
                continue;
            };
            // The walk knows whether this is the last child when it has looked for another one.
            self.fill_last_level().await?;
            let is_last = self.levels.last().is_none_or(|level| level.read.is_empty());
            let level = self.levels.len() - 1;
            let is_deepest = level + 1 >= self.levels_max;
            let is_cut = is_deepest && !first_children.is_empty();
            let (first_children, unread) = match is_deepest {
                true => (Vec::new(), UnreadChildren::default()),
                false => (first_children, unread),
            };
            self.levels.push(WalkLevel { read: VecDeque::new(), first_children, unread });
            return Ok(Some(LineageStep { level, is_last, node, is_cut }));
        }
    }

    async fn fill_last_level(&mut self) -> Result<(), StoreError> {
        let documents = self.ledger.plane().documents.clone();
        if self.levels.len() == 1 {
            self.read_first_events(&*documents).await?;
        }
        match self.levels.last_mut() {
            Some(level) => level.fill(&*documents).await,
            None => Ok(()),
        }
    }

    /// Reads more first events if none is read.
    async fn read_first_events(&mut self, documents: &dyn Documents) -> Result<(), StoreError> {
        let level = &mut self.levels[0];
        while level.read.is_empty()
            && level.first_children.is_empty()
            && let Some(candidates) = &mut self.candidates
        {
            let Some(page) = candidates.next(documents).await? else {
                self.candidates = None;
                return Ok(());
            };
            for document in page {
                let Some(LineageNode::Event(event)) = read_node(Collection::Events, document)?
                else {
                    continue;
                };
                let parent = &event.context.parent_event_id;
                let parent = match parent.is_empty() {
                    true => None,
                    false => documents.get(Collection::Events, parent).await?,
                };
                let is_below = parent.is_some_and(|parent| {
                    let is_visible = is_event(&parent) && !is_staged(&parent);
                    is_visible && parent["context"]["correlationId"] == self.correlation
                });
                if !is_below {
                    level.first_children.push(LineageNode::Event(event));
                }
            }
        }
        Ok(())
    }
}
