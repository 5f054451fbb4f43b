//! Lists of jobs and events: any part of a list of any length, by a cursor.
//!
//! A list is sorted by time, and rows of the same time by their ids, so a row is a place in the
//! list. A part of it is read one page at a time, by an index, and its cost grows with the rows
//! that are read.

mod watch;

use ion_model::event::DocumentType;
use ion_model::record::JobState;
use ion_stores::{Collection, Documents, Pages, Query, StoreError, TimeRange};
use serde_json::{Value, json};

pub use self::watch::ListWatch;

/// The number of rows in a page. One document may have 300 kB: larger pages need more memory,
/// smaller ones more queries.
const PAGE_ROWS: usize = 128;

/// Which jobs to list. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Of this module.
    pub module: Option<String>,
    /// In this state.
    pub state: Option<JobState>,
    /// Of this correlation.
    pub correlation: Option<String>,
    /// Created then. If jobs of one state of all correlations are wanted: those that entered it
    /// then, or whose lease ends then, if an attempt is in progress in this state.
    pub time: TimeRange,
}

impl JobFilter {
    /// Returns the list of these jobs. It is sorted by the time of their creation. If jobs of one
    /// state are wanted, of whatever correlation, it is sorted by the time at which they entered
    /// it, or, for jobs of which an attempt is in progress, by the end of its lease.
    pub fn list(&self) -> ListQuery {
        let mut equals: Vec<(&'static str, Value)> = Vec::new();
        equals.extend(self.correlation.as_ref().map(|id| ("correlationId", json!(id))));
        equals.extend(self.module.as_ref().map(|name| ("module", json!(name))));
        equals.extend(self.state.map(|state| ("state", json!(state))));
        // The indexes by state are sorted by `due`.
        let by = match (self.state, &self.correlation) {
            (Some(_), None) => "due",
            _ => "created",
        };
        ListQuery::new(Query::equal(Collection::Jobs, equals), by, self.time)
    }
}

/// Which events to list. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Of this type.
    pub event_type: Option<String>,
    /// Of this correlation.
    pub correlation: Option<String>,
    /// Committed then.
    pub time: TimeRange,
}

impl EventFilter {
    /// Returns the list of these events, sorted by the time of their commit.
    pub fn list(&self) -> ListQuery {
        let mut equals: Vec<(&'static str, Value)> = Vec::new();
        equals.extend(self.correlation.as_ref().map(|id| ("context.correlationId", json!(id))));
        equals.extend(self.event_type.as_ref().map(|name| ("type", json!(name))));
        equals.push(("context.documentType", json!(DocumentType::EventMeta)));
        ListQuery::new(Query::equal(Collection::Events, equals), "created", self.time)
    }
}

/// A list: a query and the field by which it is sorted.
#[derive(Clone, Debug)]
pub struct ListQuery {
    query: Query,
    by: &'static str,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum ListPart {
    /// Its last rows.
    Latest,
    /// The last rows before this one: a document that matches the list, as it is now.
    Before(Value),
    /// The first rows after this one.
    After(Value),
}

impl ListQuery {
    fn new(query: Query, by: &'static str, time: TimeRange) -> Self {
        Self { query: time.restrict(query, by), by }
    }

    /// Returns whether a document has the values that rows of the list have. It may be outside of the
    /// list's time.
    pub fn contains(&self, document: &Value) -> bool {
        let has = |(field, wanted): &(&'static str, Value)| {
            field.split('.').try_fold(document, |at, part| at.get(part)).unwrap_or(&Value::Null)
                == wanted
        };
        self.query.equals.iter().all(has)
    }

    /// Returns all rows, oldest first.
    pub fn pages(self) -> Pages {
        Pages::new(self.query, self.by)
    }

    /// Returns at most `limit` rows of this part of the list, oldest first.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn rows(
        self,
        documents: &dyn Documents,
        part: ListPart,
        limit: usize,
    ) -> Result<ListRows, StoreError> {
        let back = self.only_places().descending();
        let mut back = match part {
            ListPart::After(row) => {
                let pages = self.pages().after(&row);
                return Ok(ListRows { pages, left: limit, cut: Cut::Unknown });
            }
            ListPart::Before(row) => Pages::new(back, self.by).after(&row),
            ListPart::Latest => Pages::new(back, self.by),
        };
        // The wanted rows are counted from the last one back, and read from the first one on. One
        // row more shows whether there are more, and where the wanted ones begin.
        let mut count = 0;
        loop {
            let asked = (limit - count).saturating_add(1).min(PAGE_ROWS);
            let Some(page) = back.next_rows(documents, asked).await? else {
                return Ok(ListRows { pages: self.pages(), left: count, cut: Cut::No });
            };
            if let Some(before) = page.get(limit - count) {
                let pages = self.pages().after(before);
                return Ok(ListRows { pages, left: limit, cut: Cut::Yes });
            }
            count += page.len();
        }
    }

    fn only_places(&self) -> Query {
        let fields: &'static [&'static str] =
            if self.by == "due" { &["due"] } else { &["created"] };
        self.query.clone().only(fields)
    }
}

/// Whether a list has more rows than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Yes,
    No,
    /// It is known only when the rows are read.
    Unknown,
}

/// The rows of a part of a list, which are read one page at a time.
#[derive(Debug)]
pub struct ListRows {
    pages: Pages,
    left: usize,
    cut: Cut,
}

impl ListRows {
    /// Returns the next rows, or `None` after the last ones.
    ///
    /// # Errors
    /// When the documents cannot be read. The next call then tries the same page again.
    pub async fn next(
        &mut self,
        documents: &dyn Documents,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        if self.left > 0
            && let Some(page) = self.pages.next_rows(documents, self.left.min(PAGE_ROWS)).await?
        {
            self.left -= page.len();
            return Ok(Some(page));
        }
        if self.cut == Cut::Unknown {
            let more = self.pages.next_rows(documents, 1).await?;
            self.cut = if more.is_none() { Cut::No } else { Cut::Yes };
        }
        Ok(None)
    }

    /// Returns whether there are more rows of the list than these: earlier ones, or later ones if
    /// the part began after a row. It is known when [`ListRows::next`] has returned `None`.
    pub fn is_cut(&self) -> bool {
        self.cut == Cut::Yes
    }
}

#[cfg(test)]
mod tests {
    use ion_model::clock::Millis;
    use ion_stores::{DataPlane, Durability};

    use super::*;

    /// More than two pages.
    const MANY: usize = 300;

    fn id(n: usize) -> String {
        format!("j{n:03}")
    }

    async fn read(documents: &dyn Documents, part: ListPart, limit: usize) -> (Vec<String>, bool) {
        let mut rows = JobFilter::default().list().rows(documents, part, limit).await.unwrap();
        let mut ids = Vec::new();
        while let Some(page) = rows.next(documents).await.unwrap() {
            assert!(page.len() <= PAGE_ROWS);
            ids.extend(page.iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        }
        (ids, rows.is_cut())
    }

    /// Every part of a list, at the borders of its pages too, has the rows that the whole list has
    /// there.
    #[tokio::test]
    async fn a_part_of_a_list_has_all_its_rows() {
        let plane = DataPlane::in_memory().unwrap();
        let documents = &*plane.documents;
        // Three jobs at a time have the same time.
        let job = |n: usize| {
            (Collection::Jobs, json!({"id": id(n), "created": n / 3, "state": "succeeded"}))
        };
        let jobs = (0..MANY).map(job).collect();
        documents.insert_all(jobs, None, Durability::Now).await.unwrap();
        let all: Vec<String> = (0..MANY).map(id).collect();
        let place = |n: usize| json!({"id": id(n), "created": n / 3});
        let page = PAGE_ROWS;
        for limit in [0, 1, 2, page - 1, page, page + 1, 2 * page, MANY - 1, MANY, MANY + 1] {
            let (rows, is_cut) = read(documents, ListPart::Latest, limit).await;
            assert_eq!((&rows[..], is_cut), (&all[MANY.saturating_sub(limit)..], limit < MANY));
            for n in [0, 1, page, MANY - 1] {
                let (rows, is_cut) = read(documents, ListPart::Before(place(n)), limit).await;
                assert_eq!((&rows[..], is_cut), (&all[n.saturating_sub(limit)..n], limit < n));
                let (rows, is_cut) = read(documents, ListPart::After(place(n)), limit).await;
                let end = MANY.min(n.saturating_add(1).saturating_add(limit));
                assert_eq!((&rows[..], is_cut), (&all[n + 1..end], end < MANY), "{n} {limit}");
            }
        }
    }

    #[tokio::test]
    async fn a_watch_returns_each_state_of_a_job_once() {
        let plane = DataPlane::in_memory().unwrap();
        let documents = &*plane.documents;
        let job = |state: &str, due: Millis| json!({"id": "j", "created": 1, "due": due, "state": state, "attempt": 1});
        let put = |document: Value| documents.put(Collection::Jobs, document, None);
        put(job("dead", 5)).await.unwrap();
        let mut watch = ListWatch::jobs(JobFilter::default());
        let now = ion_model::clock::now();
        let states = |rows: Vec<Value>| -> Vec<String> {
            rows.iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect()
        };
        assert!(watch.next(documents).await.unwrap().is_empty(), "it was dead long ago");
        put(job("queued", now)).await.unwrap();
        assert_eq!(states(watch.next(documents).await.unwrap()), ["queued"]);
        put(job("running", now + 60_000)).await.unwrap();
        assert_eq!(states(watch.next(documents).await.unwrap()), ["running"]);
        put(job("running", now + 70_000)).await.unwrap();
        assert!(watch.next(documents).await.unwrap().is_empty(), "a renewal is no other state");
        // A job that waits for its next attempt is due in the future.
        put(job("queued", now + 3_600_000)).await.unwrap();
        assert_eq!(states(watch.next(documents).await.unwrap()), ["queued"]);
        let other = json!({"id": "k", "created": 1, "due": now, "state": "queued", "attempt": 0});
        put(other).await.unwrap();
        assert_eq!(states(watch.next(documents).await.unwrap()), ["queued"]);
        // Another host's clock is behind by some seconds.
        put(job("succeeded", now - 3_000)).await.unwrap();
        assert_eq!(states(watch.next(documents).await.unwrap()), ["succeeded"]);
        assert!(watch.next(documents).await.unwrap().is_empty());
    }
}
