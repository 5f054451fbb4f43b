//! New rows of a list, and jobs whose state changes, as they come.
//!
//! # How it works
//! Each look reads what an index has at the end of a list since the last look. Jobs are looked at
//! by state: `due` is the time at which a job entered a state, except for the states of a running
//! attempt, in which it is the end of the lease. There are few jobs in these, so they are all read.
//! Hosts write these times by their own clocks, so each look reads the last [`CLOCKS_DIFFER_MAX`]
//! once more, and leaves out what it has returned before.

use std::collections::HashMap;
use std::mem;

use ion_model::clock::{self, Millis};
use ion_model::event::is_staged;
use ion_model::record::JobState;
use ion_stores::{Collection, Documents, FieldRange, Query, StartAt, StoreError};
use serde_json::{Value, json};

use super::{EventFilter, JobFilter, ListQuery};

/// How far the clocks of hosts may differ. A row that a clock behind by more has dated is missed; a
/// longer time makes each look read more rows again.
const CLOCKS_DIFFER_MAX: Millis = 10_000;

/// The most rows that one look reads in one state. The next look goes on with further ones.
const LOOK_ROWS_MAX: usize = 1000;

/// A watch of a list of jobs or events, from its beginning on.
#[derive(Debug)]
pub struct ListWatch {
    feeds: Vec<WatchedFeed>,
    list: ListQuery,
}

/// A list that grows at its end.
#[derive(Debug)]
struct WatchedFeed {
    query: Query,
    by: &'static str,
    /// Where the next look begins; none to read all rows at each look.
    from: Option<Millis>,
    /// Where the next look goes on, if the last one did not come to the end.
    goes_on_at: Option<StartAt>,
    /// The rows that were read up to the last end of the list, and may be read again.
    seen: HashMap<String, RowVersion>,
    /// The rows that were read since.
    read: HashMap<String, RowVersion>,
}

/// What must change so that a row is shown again.
type RowVersion = (Value, Value);

impl ListWatch {
    /// Watches jobs that enter another state, from now on.
    pub fn jobs(filter: JobFilter) -> Self {
        let states = JobState::ALL.into_iter();
        let states = states.filter(|state| filter.state.is_none_or(|wanted| wanted == *state));
        let feed = |state: JobState| {
            let mut equals = vec![("state", json!(state))];
            equals.extend(filter.module.as_ref().map(|module| ("module", json!(module))));
            let from = (!state.is_active()).then(clock::now);
            WatchedFeed::new(Query::equal(Collection::Jobs, equals), "due", from)
        };
        Self { feeds: states.map(feed).collect(), list: filter.list() }
    }

    /// Watches new events, from now on.
    pub fn events(filter: &EventFilter) -> Self {
        let list = filter.list();
        let feed = WatchedFeed::new(list.query.clone(), list.by, Some(clock::now()));
        Self { feeds: vec![feed], list }
    }

    /// Takes rows as known: they are not returned unless their state changes.
    pub fn skip(&mut self, rows: &[Value]) {
        for row in rows {
            let (id, version) = (row_id(row), row_version(row));
            for feed in &mut self.feeds {
                feed.seen.insert(id.clone(), version.clone());
            }
        }
    }

    /// Returns the rows that are new, or in another state, since the last look: the oldest first.
    ///
    /// # Errors
    /// When the documents cannot be read. Some rows may then never be returned.
    pub async fn next(&mut self, documents: &dyn Documents) -> Result<Vec<Value>, StoreError> {
        let mut found = Vec::new();
        for feed in &mut self.feeds {
            found.extend(feed.next(documents).await?);
        }
        found.retain(|row| !is_staged(row) && self.list.contains(row));
        found.sort_by_key(|row| row["due"].as_i64().or_else(|| row["created"].as_i64()));
        Ok(found)
    }
}

fn row_id(row: &Value) -> String {
    row["id"].as_str().unwrap_or_default().to_owned()
}

fn row_version(row: &Value) -> RowVersion {
    (row["state"].clone(), row["attempt"].clone())
}

impl WatchedFeed {
    fn new(query: Query, by: &'static str, from: Option<Millis>) -> Self {
        let query = query.order_by(by);
        Self { query, by, from, goes_on_at: None, seen: HashMap::new(), read: HashMap::new() }
    }

    async fn next(&mut self, documents: &dyn Documents) -> Result<Vec<Value>, StoreError> {
        let start = self.goes_on_at.clone().unwrap_or(StartAt::Beginning);
        let query = self.query.clone().start_at(start).limit(LOOK_ROWS_MAX);
        let query = match self.from {
            Some(from) => {
                query.within(FieldRange::at_least(self.by, json!(from - CLOCKS_DIFFER_MAX)))
            }
            None => query,
        };
        let rows = documents.find(query).await?;
        let last = rows.last().cloned();
        let is_full = rows.len() == LOOK_ROWS_MAX;
        let mut new = Vec::new();
        for row in rows {
            let (id, version) = (row_id(&row), row_version(&row));
            if self.seen.get(&id) != Some(&version) && self.read.get(&id) != Some(&version) {
                new.push(row);
            }
            self.read.insert(id, version);
        }
        if is_full {
            self.goes_on_at = last.map(|row| StartAt::after_row(&row, Some(self.by)));
            return Ok(new);
        }
        // The list was read to its end. What was not read in it is not read again.
        self.goes_on_at = None;
        self.seen = mem::take(&mut self.read);
        let last = last.and_then(|row| row[self.by].as_i64());
        // A time in the future, such as the end of a wait, must not hide what comes before it.
        let last = last.map(|last| last.min(clock::now()));
        self.from = self.from.map(|from| last.map_or(from, |last| last.max(from)));
        Ok(new)
    }
}
