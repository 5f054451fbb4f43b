//! The runs of a source, found by the ids of their correlations.

use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::source::{module_of_tick, numbered_run_prefix, runs_prefix};
use ion_model::text::prefix_end;
use ion_stores::{Collection, DataPlane, FieldRange, Pages, Query, StoreError, decode};
use serde_json::json;

/// The field that names the correlation of an event.
const CORRELATION: &str = "context.correlationId";

/// The events of a source's runs, one after the other.
///
/// Each costs two queries of an index, whatever else happened in its correlation.
#[derive(Clone, Debug)]
pub struct RunEvents {
    prefix: String,
    /// The correlations left are those before this text, or from it on.
    at: String,
    order: RunOrder,
}

/// The order of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunOrder {
    OldestFirst,
    NewestFirst,
}

impl RunEvents {
    /// Returns the events of the source's runs, oldest first.
    pub fn of_source(source: &str) -> Self {
        let prefix = runs_prefix(source);
        Self { at: prefix.clone(), prefix, order: RunOrder::OldestFirst }
    }

    /// Returns the event of the source's run with this number.
    pub fn numbered(source: &str, number: u64) -> Self {
        let prefix = numbered_run_prefix(source, number);
        Self { at: prefix.clone(), prefix, order: RunOrder::OldestFirst }
    }

    /// Returns the events of the source's runs, newest first.
    pub fn newest_first(source: &str) -> Self {
        let prefix = runs_prefix(source);
        let at = prefix_end(&prefix).unwrap_or_else(|| "\u{10ffff}".to_owned());
        Self { at, prefix, order: RunOrder::NewestFirst }
    }

    /// Begins behind the run of this correlation.
    #[must_use]
    pub fn after(mut self, correlation: &str) -> Self {
        self.pass(correlation);
        self
    }

    fn pass(&mut self, correlation: &str) {
        self.at = match self.order {
            RunOrder::OldestFirst => format!("{correlation}\0"),
            RunOrder::NewestFirst => correlation.to_owned(),
        };
    }

    /// Returns the next run's event; none behind the last one.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next(&mut self, plane: &DataPlane) -> Result<Option<Event>, StoreError> {
        while let Some(correlation) = self.next_correlation(plane).await? {
            self.pass(&correlation);
            if let Some(event) = tick_of(plane, &correlation).await? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    async fn next_correlation(&self, plane: &DataPlane) -> Result<Option<String>, StoreError> {
        let (from, below, descending) = match self.order {
            RunOrder::OldestFirst => (self.at.clone(), prefix_end(&self.prefix), false),
            RunOrder::NewestFirst => (self.prefix.clone(), Some(self.at.clone()), true),
        };
        let mut range = FieldRange::at_least(CORRELATION, from.into());
        if let Some(below) = below {
            range = range.below(below.into());
        }
        let query = Query::all(Collection::Events).within(range).order_by(CORRELATION);
        let query = Query { descending, ..query.only(&[CORRELATION]).limit(1) };
        let found = plane.documents.find(query).await?;
        let first = found.first().and_then(|row| row["context"]["correlationId"].as_str());
        Ok(first.map(str::to_owned))
    }
}

/// Returns the event with which a run began: the oldest of its correlation, unless clocks differ.
async fn tick_of(plane: &DataPlane, correlation: &str) -> Result<Option<Event>, StoreError> {
    let of = Query::equal(Collection::Events, vec![(CORRELATION, json!(correlation))]);
    let mut pages = Pages::new(of, "created");
    while let Some(page) = pages.next_rows(&*plane.documents, 1).await? {
        for document in page {
            if document["tick"].is_object() {
                return decode(Collection::Events, document).map(Some);
            }
        }
    }
    Ok(None)
}

/// Returns the id of the job of a run, given its event.
pub fn job_id(event: &Event) -> Option<JobId> {
    module_of_tick(&event.event_type).map(|module| JobId::derive(&event.id, module))
}
