//! Which documents to find, and the indexes by which they are found.

use serde_json::{Value, json};

use super::{Documents, Equals};
use crate::collection::Collection;
use crate::error::StoreError;

/// The fields that queries name, for each collection: a row for each index. The last of a row may
/// be what it is sorted by.
pub(crate) fn indexes(collection: Collection) -> &'static [&'static [&'static str]] {
    match collection {
        Collection::Events => &[
            &["context.correlationId", "created"],
            &["context.parentEventId", "jobId"],
            &["publication", "created"],
            &["unclaimed", "created"],
            &["type", "created"],
            &["context.documentType", "created"],
        ],
        Collection::Jobs => &[
            &["correlationId", "created"],
            &["eventId"],
            &["module", "state", "due"],
            &["state", "due"],
            &["outbox"],
        ],
        Collection::Modules | Collection::Dispatchers | Collection::Tickets | Collection::Plane => {
            &[]
        }
    }
}

/// One of every kind of query the system makes: tests show that no backend scans a collection for
/// any of them.
pub fn known_queries() -> Vec<Query> {
    let equal = |collection, fields: &[&'static str]| {
        Query::equal(collection, fields.iter().map(|field| (*field, json!("x"))).collect())
    };
    let behind = || Page::Behind(json!("x"), "x".into());
    vec![
        equal(Collection::Events, &["context.correlationId"]).order_by("created").page(behind()),
        equal(Collection::Events, &["context.documentType"]).order_by("created").page(behind()),
        equal(Collection::Events, &["unclaimed", "publication"]).order_by("created").page(behind()),
        equal(Collection::Events, &["context.parentEventId"]).order_by("jobId").page(behind()),
        equal(Collection::Jobs, &["state"]).order_by("due").page(behind()),
        equal(Collection::Events, &["context.correlationId", "context.documentType"])
            .order_by("created"),
        equal(Collection::Events, &["context.parentEventId", "jobId", "publication"]),
        equal(Collection::Events, &["publication"]).order_by("created"),
        equal(Collection::Events, &["type", "context.documentType"]).order_by("created"),
        equal(Collection::Events, &["context.documentType"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId", "module"]).order_by("created").page(behind()),
        equal(Collection::Jobs, &["eventId"]).order_by("created"),
        equal(Collection::Jobs, &["module", "state"]).order_by("created"),
        equal(Collection::Jobs, &["module", "state"]).order_by("due"),
        equal(Collection::Jobs, &["state"]).order_by("due"),
        equal(Collection::Jobs, &["outbox"]),
    ]
}

/// Which documents to find.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where.
    pub collection: Collection,
    /// What must hold; at least one of the indexed fields.
    pub equals: Vec<Equals>,
    /// Sorted by this field; those that are equal in an order of the store's own. By id when none.
    pub order_by: Option<&'static str>,
    /// The largest first, not the smallest.
    pub descending: bool,
    /// At most this many.
    pub limit: usize,
    /// From where on; none: from the start. With one, those that are equal are in the order of
    /// their ids.
    pub page: Option<Page>,
}

/// Where in its order the answer to a query begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Page {
    /// With the first.
    First,
    /// Behind the document that has this value in the field it is sorted by, and this id.
    Behind(Value, String),
}

impl Query {
    /// All documents of a collection with these fields, bounded by [`Query::LIMIT`].
    pub fn equal(collection: Collection, equals: Vec<Equals>) -> Self {
        Self {
            collection,
            equals,
            order_by: None,
            descending: false,
            limit: Self::LIMIT,
            page: None,
        }
    }

    /// Documents that are read at once at most. Who has to know all of more reads them by
    /// [`Pages`].
    pub const LIMIT: usize = 1_000_000;

    /// From there on, in the order of a field and, of those that are equal, of their ids.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
        self
    }

    /// Sorted by a field.
    #[must_use]
    pub fn order_by(mut self, field: &'static str) -> Self {
        self.order_by = Some(field);
        self
    }

    /// The largest first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }

    /// Bounded.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// Reads all documents that fit, however many, a page at a time.
///
/// # Guarantees
/// Every document that fits all the time, and whose place in the order does not change, is given
/// once. One that comes, goes or moves meanwhile may be or not.
#[derive(Debug)]
pub struct Pages {
    query: Option<Query>,
}

impl Pages {
    /// Documents in a page. One may have 300 kB: more take memory, fewer cost more questions.
    const SIZE: usize = 128;

    /// All that fit `query`, in the order of `field`.
    pub fn new(query: Query, field: &'static str) -> Self {
        let query = Query { limit: Self::SIZE, ..query.order_by(field).page(Page::First) };
        Self { query: Some(query) }
    }

    /// The next page; none behind the last.
    ///
    /// # Errors
    /// When the store cannot be read. The same page is given when it is asked again.
    pub async fn next(
        &mut self,
        documents: &dyn Documents,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let Some(query) = &self.query else { return Ok(None) };
        let found = documents.find(query.clone()).await?;
        let last = found.last().filter(|_| found.len() == query.limit).and_then(|last| {
            let path = query.order_by.unwrap_or("id");
            let value = path.split('.').try_fold(last, |at, part| at.get(part)).cloned();
            Some(Page::Behind(value.unwrap_or_default(), last.get("id")?.as_str()?.to_owned()))
        });
        self.query = last.map(|last| query.clone().page(last));
        Ok((!found.is_empty()).then_some(found))
    }
}
