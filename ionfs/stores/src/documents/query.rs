//! Queries for documents, and the indexes that serve them.

use ion_model::clock::Millis;
use ion_model::term::IndexRange;
use ion_model::text::prefix_end;
use serde_json::{Value, json};

use super::{Documents, Equals};
use crate::collection::Collection;
use crate::error::StoreError;

/// The field of events' documents that is an array of texts, by which [`Query::with_term`] finds
/// them.
pub(crate) const TERMS_FIELD: &str = "terms";

/// Returns the indexes of a collection: for each, its fields in order. A query uses an index whose
/// first fields it compares; the field after these may be its sort field.
pub(crate) fn indexes(collection: Collection) -> &'static [&'static [&'static str]] {
    match collection {
        Collection::Events => &[
            &["context.correlationId", "created"],
            &["context.parentEventId", "jobId", "created"],
            &["publication", "created"],
            &["unclaimed", "created"],
            &["type", "created"],
            &["context.documentType", "created"],
            &["context.documentType", "depth", "created"],
            &["context.correlationId", "context.documentType", "type"],
            &["context.correlationId", "unclaimed"],
            &[TERMS_FIELD, "created"],
        ],
        Collection::Jobs => &[
            &["correlationId", "created"],
            &["created"],
            &["module", "created"],
            &["eventId"],
            &["module", "state", "due"],
            &["state", "due"],
            &["correlationId", "state", "created"],
            &["correlationId", "state", "module", "created"],
            &["outbox"],
        ],
        Collection::Sources => &[&["due"]],
        Collection::Modules | Collection::Dispatchers | Collection::Tickets | Collection::Plane => {
            &[]
        }
    }
}

/// Returns an example of each kind of query that Ion makes on a collection with indexes. Tests show
/// with them that no backend reads a whole collection. Add each new kind of query here. The
/// collections without indexes are small, and are read whole or by the beginnings of ids.
pub fn known_queries() -> Vec<Query> {
    let equal = |collection, fields: &[&'static str]| {
        Query::equal(collection, fields.iter().map(|field| (*field, json!("x"))).collect())
    };
    let after = || StartAt::After { value: json!("x"), id: "x".into() };
    vec![
        equal(Collection::Events, &["context.correlationId"]).order_by("created").start_at(after()),
        equal(Collection::Events, &["context.documentType"]).order_by("created").start_at(after()),
        equal(Collection::Events, &["unclaimed", "publication"])
            .order_by("created")
            .start_at(after()),
        equal(Collection::Events, &["context.parentEventId"]).order_by("jobId").start_at(after()),
        equal(Collection::Jobs, &["state"]).order_by("due").start_at(after()),
        equal(Collection::Events, &["context.correlationId", "context.documentType"])
            .order_by("created"),
        equal(Collection::Events, &["context.parentEventId", "jobId", "publication"]),
        equal(Collection::Events, &["context.parentEventId", "jobId"])
            .order_by("created")
            .start_at(after()),
        equal(Collection::Jobs, &["eventId"]).order_by("created").start_at(after()),
        equal(Collection::Events, &["publication"]).order_by("created"),
        equal(Collection::Events, &["type", "context.documentType"]).order_by("created"),
        equal(Collection::Events, &["context.documentType"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId"]).order_by("created"),
        equal(Collection::Jobs, &["correlationId", "module"]).order_by("created").start_at(after()),
        equal(Collection::Jobs, &["eventId"]).order_by("created"),
        Query::one_of(Collection::Jobs, "eventId", vec![json!("x"), json!("y")])
            .only(&["eventId", "state"]),
        equal(Collection::Jobs, &["module", "state"]).order_by("created"),
        equal(Collection::Jobs, &["module", "state"]).order_by("due"),
        equal(Collection::Jobs, &["state"]).order_by("due"),
        equal(Collection::Jobs, &["outbox"]),
        Query::all(Collection::Sources)
            .order_by("due")
            .within(FieldRange::at_least("due", 1.into()).below(2.into()))
            .start_at(after()),
        Query::all(Collection::Sources)
            .within(FieldRange::prefix("id", "bbc-"))
            .start_at(StartAt::After { value: Value::Null, id: "bbc-1".into() }),
        equal(Collection::Events, &["context.documentType", "depth"])
            .order_by("created")
            .descending()
            .start_at(after()),
        equal(Collection::Events, &["context.correlationId", "context.documentType"])
            .order_by("created")
            .descending()
            .start_at(after()),
        Query::all(Collection::Jobs).order_by("created").descending().start_at(after()),
        equal(Collection::Jobs, &["module"]).order_by("created").descending().start_at(after()),
        equal(Collection::Jobs, &["module", "state"])
            .order_by("due")
            .descending()
            .start_at(after()),
        equal(Collection::Events, &["context.documentType", "depth"])
            .order_by("created")
            .within(FieldRange::at_least("created", 1.into()).below(2.into()))
            .descending()
            .start_at(after()),
        equal(Collection::Events, &["unclaimed", "publication"])
            .order_by("created")
            .within(FieldRange::at_least("created", 1.into()).below(2.into()))
            .descending(),
        equal(Collection::Jobs, &["state"])
            .order_by("due")
            .within(FieldRange::at_least("due", 1.into()).below(2.into()))
            .descending()
            .start_at(after()),
        equal(Collection::Jobs, &["module", "state"])
            .order_by("due")
            .within(FieldRange::at_least("due", 1.into()).below(2.into()))
            .descending()
            .start_at(after()),
        Query::all(Collection::Jobs)
            .order_by("created")
            .within(FieldRange::at_least("created", 1.into()).below(2.into())),
        equal(Collection::Jobs, &["correlationId", "state"]).order_by("created").start_at(after()),
        equal(Collection::Events, &["type", "context.documentType"])
            .order_by("created")
            .within(FieldRange::at_least("created", 1.into()))
            .descending()
            .start_at(after()),
        equal(Collection::Jobs, &["correlationId", "state", "module"])
            .order_by("created")
            .descending(),
        equal(Collection::Events, &["unclaimed", "publication", "context.correlationId"])
            .order_by("created")
            .start_at(after()),
        Query::all(Collection::Events)
            .with_term(IndexRange::Is("m\u{1f}=k\u{1f}v".into()))
            .with_term(IndexRange::Is("m\u{1f}=l\u{1f}w".into()))
            .order_by("created")
            .descending()
            .start_at(after()),
        Query::all(Collection::Events)
            .with_term(IndexRange::prefix("m\u{1f}=k\u{1f}".into()))
            .order_by("created")
            .descending()
            .start_at(after()),
        Query::all(Collection::Events)
            .within(FieldRange::at_least("type", "x".into()))
            .order_by("type")
            .limit(1),
        Query::all(Collection::Jobs).within(FieldRange::prefix("id", "3f2b")),
        Query::all(Collection::Events)
            .within(FieldRange::prefix("id", "3f2b"))
            .only(&["context.documentType"])
            .start_at(StartAt::After { value: Value::Null, id: "3f2b1".into() }),
        Query::all(Collection::Events)
            .within(FieldRange::prefix("context.correlationId", "3f2b"))
            .order_by("context.correlationId")
            .only(&["context.correlationId"])
            .limit(1),
        Query::all(Collection::Events)
            .within(FieldRange::at_least("context.correlationId", "3f2b".into()))
            .order_by("context.correlationId")
            .only(&["context.correlationId"])
            .limit(1),
        Query::all(Collection::Events)
            .within(FieldRange::prefix("context.correlationId", "3f2b"))
            .order_by("context.correlationId")
            .descending()
            .only(&["context.correlationId"])
            .limit(1),
    ]
}

/// A query for documents of one collection.
#[derive(Clone, Debug)]
pub struct Query {
    /// The collection to search.
    pub collection: Collection,
    /// The fields and values that a document must have. At least one must be indexed, unless the
    /// range or the order is, or the collection is small.
    pub equals: Vec<Equals>,
    /// A field and the values of which it must have one; `None` for any. The field must be the first
    /// one of an index.
    pub one_of: Option<(&'static str, Vec<Value>)>,
    /// The field by which results are sorted, or the id if `None`. Documents with equal values
    /// come in any order, and documents without the field before all others.
    pub order_by: Option<&'static str>,
    /// Whether the largest value comes first. Otherwise the smallest does.
    pub descending: bool,
    /// The maximum number of results.
    pub limit: usize,
    /// Where the results begin, with documents of equal values sorted by their ids; `None` for the
    /// beginning, without that order.
    pub start_at: Option<StartAt>,
    /// The values that one field may have; `None` for any.
    pub range: Option<FieldRange>,
    /// What the texts in the documents' array `terms` must be; the first condition is the one that
    /// documents are found by.
    pub terms: Vec<IndexRange>,
    /// The fields that the results have, besides their ids; `None` for whole documents. A list
    /// shows one line of a document that may have hundreds of kilobytes.
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
    /// Makes the range of all values from this one on. All documents must have values of one type
    /// in this field; a document without it is in no range.
    pub fn at_least(field: &'static str, value: Value) -> Self {
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
        Self { field, from: prefix.into(), below: prefix_end(prefix).map(Value::from) }
    }
}

/// Where in the sort order the results begin.
#[derive(Clone, Debug, PartialEq)]
pub enum StartAt {
    /// At the first document.
    Beginning,
    /// After this document.
    After {
        /// The document's value in the sort field; null if it has none.
        value: Value,
        /// The document's id.
        id: String,
    },
}

impl StartAt {
    /// Returns the start after this document in an order by this field, or by ids if `None`.
    pub fn after_row(document: &Value, order_by: Option<&str>) -> Self {
        let path = order_by.unwrap_or("id");
        let value = path.split('.').try_fold(document, |at, part| at.get(part)).cloned();
        let id = document["id"].as_str().unwrap_or_default().to_owned();
        Self::After { value: value.unwrap_or_default(), id }
    }
}

impl Query {
    /// Makes a query for all documents of a collection with these values, limited to
    /// [`Query::LIMIT`].
    pub fn equal(collection: Collection, equals: Vec<Equals>) -> Self {
        Self {
            collection,
            equals,
            one_of: None,
            order_by: None,
            descending: false,
            limit: Self::LIMIT,
            start_at: None,
            range: None,
            terms: vec![],
            fields: None,
        }
    }

    /// Makes a query for all documents of a collection, limited to [`Query::LIMIT`].
    pub fn all(collection: Collection) -> Self {
        Self::equal(collection, vec![])
    }

    /// Makes a query for all documents of a collection in which a field has one of these values,
    /// limited to [`Query::LIMIT`]. Each value costs a search of the index, so a caller with many
    /// values asks for a page of them at a time.
    pub fn one_of(collection: Collection, field: &'static str, values: Vec<Value>) -> Self {
        Self { one_of: Some((field, values)), ..Self::all(collection) }
    }

    /// Returns whether the query compares this field with values.
    pub(crate) fn compares(&self, field: &str) -> bool {
        self.equals.iter().any(|(equal, _)| *equal == field)
            || self.one_of.as_ref().is_some_and(|(one, _)| *one == field)
    }

    /// Finds only documents in which a field has a value of this range.
    #[must_use]
    pub fn within(mut self, range: FieldRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Finds only documents of [`Collection::Events`] of which one of the `terms` is in this range.
    /// They must be sorted by `created`. Ranges other than [`IndexRange::Is`] may only be the first
    /// condition. Documents that a range finds are all read before the first is returned.
    #[must_use]
    pub fn with_term(mut self, range: IndexRange) -> Self {
        self.terms.push(range);
        self
    }

    /// Returns only these fields of the documents, and their ids.
    #[must_use]
    pub fn only(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = Some(fields);
        self
    }

    /// The limit of a query that sets none. [`Documents::find_as`] fails when this many documents
    /// match, because there may be more; [`Pages`] reads any number.
    ///
    /// [`Documents::find_as`]: trait.Documents.html#method.find_as
    pub const LIMIT: usize = 1_000_000;

    /// Begins the results there. Documents with equal values in the sort field are sorted by their
    /// ids.
    #[must_use]
    pub fn start_at(mut self, start: StartAt) -> Self {
        self.start_at = Some(start);
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

    /// Returns the parts of the results after the start, in their order. Documents without the sort
    /// field come before all others, or after them in descending order, and are a part of their
    /// own: no comparison finds them.
    pub(crate) fn parts(&self) -> Vec<QueryPart<'_>> {
        let Some(StartAt::After { value, id }) = &self.start_at else {
            return vec![QueryPart::All];
        };
        let is_without_field = self.order_by.is_some() && value.is_null();
        match (is_without_field, self.descending) {
            (true, false) => vec![QueryPart::WithoutField(Some(id)), QueryPart::WithField],
            (true, true) => vec![QueryPart::WithoutField(Some(id))],
            (false, true) if self.order_by.is_some() => {
                vec![QueryPart::After(value, id), QueryPart::WithoutField(None)]
            }
            (false, _) => vec![QueryPart::After(value, id)],
        }
    }

    /// Sets the maximum number of results.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// A time range: at or after `since`, and before `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The first moment of the range; none for the beginning of time.
    pub since: Option<Millis>,
    /// The first moment after the range; none for the end of time.
    pub until: Option<Millis>,
}

impl TimeRange {
    /// Lets a query find only documents of which this field is in the range.
    #[must_use]
    pub fn restrict(self, query: Query, field: &'static str) -> Query {
        let Self { since, until } = self;
        let from = FieldRange::at_least(field, since.unwrap_or(Millis::MIN).into());
        match (since, until) {
            (None, None) => query,
            (_, Some(until)) => query.within(from.below(until.into())),
            (Some(_), None) => query.within(from),
        }
    }
}

/// A part of a query's results.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QueryPart<'q> {
    /// All results.
    All,
    /// Those with a larger value (a smaller one in descending order) than this, or this and such an
    /// id.
    After(&'q Value, &'q str),
    /// Those without the sort field, after this id.
    WithoutField(Option<&'q str>),
    /// Those with the sort field.
    WithField,
}

/// Reads all documents that match a query, however many, one page at a time.
///
/// # Guarantees
/// A document that matches during the whole reading, and whose position in the order does not
/// change, is returned exactly once. A document that is added, removed or moved meanwhile may be
/// returned or not.
#[derive(Clone, Debug)]
pub struct Pages {
    query: Option<Box<Query>>,
}

impl Pages {
    /// The number of documents in a page. One document may have 300 kB: larger pages need more
    /// memory, smaller ones more queries.
    const SIZE: usize = 128;

    /// Reads all documents that match `query`, in the order of `field`. The query's own limit,
    /// order and start have no influence. If it returns only some fields, `field` must be among
    /// them.
    pub fn new(query: Query, field: &'static str) -> Self {
        let query = query.order_by(field).start_at(StartAt::Beginning);
        Self { query: Some(query.into()) }
    }

    /// Reads all documents that match `query`, in the order of their ids. The query's own limit,
    /// order and start have no influence.
    pub fn by_id(query: Query) -> Self {
        let query = Query { order_by: None, ..query.start_at(StartAt::Beginning) };
        Self { query: Some(query.into()) }
    }

    /// Begins after this document, which need not match the query.
    #[must_use]
    pub fn after(self, document: &Value) -> Self {
        let begin = |query: Box<Query>| {
            let start = StartAt::after_row(document, query.order_by);
            query.start_at(start).into()
        };
        Self { query: self.query.map(begin) }
    }

    /// Returns the next page, or `None` after the last one.
    ///
    /// # Errors
    /// When the store cannot be read. The next call then tries the same page again.
    pub async fn next(
        &mut self,
        documents: &dyn Documents,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        self.next_rows(documents, Self::SIZE).await
    }

    /// Returns the next page, of at most `limit` documents, or `None` after the last one.
    ///
    /// # Errors
    /// As [`Pages::next`].
    pub async fn next_rows(
        &mut self,
        documents: &dyn Documents,
        limit: usize,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let Some(query) = &self.query else { return Ok(None) };
        let found = documents.find((**query).clone().limit(limit)).await?;
        // A document that somebody has stored without an id is no place to go on at.
        let last = found.last().filter(|last| found.len() == limit && last["id"].is_string());
        let next_start = last.map(|document| StartAt::after_row(document, query.order_by));
        self.query = next_start.map(|start| (**query).clone().start_at(start).into());
        Ok((!found.is_empty()).then_some(found))
    }
}
