//! Queries for documents, and the indexes that serve them.

use serde_json::{Value, json};

use super::{Documents, Equals};
use crate::collection::Collection;
use crate::error::StoreError;

/// Returns the indexes of a collection. Each row has the fields of one index, which queries name.
/// The last field of a row may be the field by which results are sorted.
pub(crate) fn indexes(collection: Collection) -> &'static [&'static [&'static str]] {
    match collection {
        Collection::Events => &[
            &["context.correlationId", "created"],
            &["context.parentEventId", "jobId"],
            &["publication", "created"],
            &["unclaimed", "created"],
            &["type", "created"],
            &["context.documentType", "created"],
            &["context.documentType", "depth", "created"],
        ],
        Collection::Jobs => &[
            &["correlationId", "created"],
            &["created"],
            &["module", "created"],
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

/// Returns one query of every kind that the system makes. Tests show that no backend scans a
/// collection for any of them.
pub fn known_queries() -> Vec<Query> {
    let equal = |collection, fields: &[&'static str]| {
        Query::equal(collection, fields.iter().map(|field| (*field, json!("x"))).collect())
    };
    let behind = || Page::Behind { value: json!("x"), id: "x".into() };
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
        equal(Collection::Events, &["context.documentType", "depth"])
            .order_by("created")
            .descending()
            .page(behind()),
        equal(Collection::Events, &["context.correlationId", "context.documentType"])
            .order_by("created")
            .descending()
            .page(behind()),
        Query::all(Collection::Jobs).order_by("created").descending().page(behind()),
        equal(Collection::Jobs, &["module"]).order_by("created").descending().page(behind()),
        equal(Collection::Jobs, &["module", "state"]).order_by("due").descending().page(behind()),
        Query::all(Collection::Jobs)
            .order_by("created")
            .within(FieldRange::from("created", 1.into()).below(2.into())),
        Query::all(Collection::Jobs).within(FieldRange::prefix("id", "3f2b")).limit(2),
        Query::all(Collection::Events).within(FieldRange::prefix("id", "3f2b")).limit(2),
        Query::all(Collection::Events)
            .within(FieldRange::prefix("context.correlationId", "3f2b"))
            .order_by("context.correlationId")
            .only(&["context.correlationId"])
            .limit(1),
    ]
}

/// A query for documents of one collection.
#[derive(Clone, Debug)]
pub struct Query {
    /// The collection to search.
    pub collection: Collection,
    /// The fields and values that a document must have, at least one of them indexed.
    pub equals: Vec<Equals>,
    /// The field by which results are sorted, or the id if `None`. Documents with equal values have
    /// an order of the store's own.
    pub order_by: Option<&'static str>,
    /// Whether the largest value comes first. Otherwise the smallest does.
    pub descending: bool,
    /// The maximum number of results.
    pub limit: usize,
    /// Where the results begin; `None` means at the start. With a page, documents with equal values
    /// are sorted by their ids.
    pub page: Option<Page>,
    /// The values that one field may have; `None` for any.
    pub range: Option<FieldRange>,
    /// The fields that the results have, besides their ids; `None` for whole documents. A document
    /// may have hundreds of kilobytes, of which a list shows a line.
    pub fields: Option<&'static [&'static str]>,
}

/// A range of values of one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldRange {
    pub(crate) field: &'static str,
    /// The smallest value in the range.
    pub(crate) from: Value,
    /// The smallest value above the range; `None` if there is no such value.
    pub(crate) below: Option<Value>,
}

impl FieldRange {
    /// Makes the range of values from this one on. A field has values of one type in all documents,
    /// and a missing value is in no range.
    pub fn from(field: &'static str, value: Value) -> Self {
        Self { field, from: value, below: None }
    }

    /// Ends the range before this value.
    #[must_use]
    pub fn below(mut self, value: Value) -> Self {
        self.below = Some(value);
        self
    }

    /// Makes the range of texts that begin with `prefix`.
    pub fn prefix(field: &'static str, prefix: &str) -> Self {
        Self { field, from: prefix.into(), below: text_above(prefix).map(Value::from) }
    }
}

/// Returns the smallest text that is larger than every text with this prefix; `None` if there is no
/// such text.
fn text_above(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // Texts are compared by their bytes, which is the order of their characters.
        if let Some(above) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            chars.push(above);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// The position in the sort order at which the results begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Page {
    /// The first document.
    First,
    /// After this document.
    Behind {
        /// The document's value in the sort field.
        value: Value,
        /// The document's id.
        id: String,
    },
}

impl Query {
    /// Makes a query for all documents of a collection with these fields, limited to
    /// [`Query::LIMIT`].
    pub fn equal(collection: Collection, equals: Vec<Equals>) -> Self {
        Self {
            collection,
            equals,
            order_by: None,
            descending: false,
            limit: Self::LIMIT,
            page: None,
            range: None,
            fields: None,
        }
    }

    /// Makes a query for all documents of a collection, limited to [`Query::LIMIT`].
    pub fn all(collection: Collection) -> Self {
        Self::equal(collection, vec![])
    }

    /// Finds only documents in which a field has a value of this range.
    #[must_use]
    pub fn within(mut self, range: FieldRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Returns only these fields of the documents, and their ids.
    #[must_use]
    pub fn only(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = Some(fields);
        self
    }

    /// The number of documents that are read at once at most. To read all of a larger number, use
    /// [`Pages`].
    pub const LIMIT: usize = 1_000_000;

    /// Begins the results at `page`. Documents with equal values in the sort field are sorted by
    /// their ids.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = Some(page);
        self
    }

    /// Sorts the results by a field.
    #[must_use]
    pub fn order_by(mut self, field: &'static str) -> Self {
        self.order_by = Some(field);
        self
    }

    /// Puts the largest value first.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }

    /// Sets the maximum number of results.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// Reads all documents that match a query, however many, one page at a time.
///
/// # Guarantees
/// A document that matches during the whole reading, and whose position in the order does not
/// change, is returned exactly once. A document that is added, removed or moved meanwhile may be
/// returned or not.
#[derive(Debug)]
pub struct Pages {
    query: Option<Box<Query>>,
}

impl Pages {
    /// The number of documents in a page. One document may have 300 kB: larger pages need more
    /// memory, smaller ones more queries.
    const SIZE: usize = 128;

    /// Reads all documents that match `query`, in the order of `field`.
    pub fn new(query: Query, field: &'static str) -> Self {
        let query = Query { limit: Self::SIZE, ..query.order_by(field).page(Page::First) };
        Self { query: Some(query.into()) }
    }

    /// Reads all documents that match `query`, in the order of their ids.
    pub fn by_id(query: Query) -> Self {
        let query = Query { limit: Self::SIZE, order_by: None, ..query.page(Page::First) };
        Self { query: Some(query.into()) }
    }

    /// Returns the next page, or `None` after the last one.
    ///
    /// # Errors
    /// When the store cannot be read. The next call then tries the same page again.
    pub async fn next(
        &mut self,
        documents: &dyn Documents,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let Some(query) = &self.query else { return Ok(None) };
        let found = documents.find((**query).clone()).await?;
        let last = found.last().filter(|_| found.len() == query.limit).and_then(|last| {
            let path = query.order_by.unwrap_or("id");
            let value = path.split('.').try_fold(last, |at, part| at.get(part)).cloned();
            let id = last.get("id")?.as_str()?.to_owned();
            Some(Page::Behind { value: value.unwrap_or_default(), id })
        });
        self.query = last.map(|last| (**query).clone().page(last).into());
        Ok((!found.is_empty()).then_some(found))
    }
}
