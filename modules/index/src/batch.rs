//! Batches: the documents of one bulk request, in the form in which they are sent.

use std::sync::Arc;

use crate::document_id::document_id;
use crate::item::ItemFacts;

/// The longest action line but for the name of its index: the frame, the id and a version.
const ACTION_BYTES: usize = 160;

/// How large a batch may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    pub(crate) items_max: usize,
    /// A document that is larger has a batch of its own.
    pub(crate) bytes_max: usize,
}

/// Where an item comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The file, relative to `in/data`.
    pub(crate) file: Arc<str>,
    /// The line, counted from 1.
    pub(crate) line: u64,
}

/// The documents of one bulk request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// For each document one line that says what to do, and one with the document.
    body: Vec<u8>,
    entries: Vec<Entry>,
}

/// Where a document stands in the body of its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    action: usize,
    document: usize,
    end: usize,
    index: Arc<str>,
    origin: Origin,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Says whether a document of so many bytes fits into the batch. Any fits into an empty one.
    pub(crate) fn has_room(&self, document_bytes: usize, limits: BatchLimits) -> bool {
        let bytes = self.body.len() + ACTION_BYTES + document_bytes;
        self.is_empty() || (self.len() < limits.items_max && bytes <= limits.bytes_max)
    }

    /// Adds a document, which has to be one line of JSON.
    pub(crate) fn push(
        &mut self,
        index: &Arc<str>,
        source: &str,
        facts: &ItemFacts,
        document: &str,
        origin: Origin,
    ) {
        let id = document_id(source, &facts.id);
        // Neither the name of an index nor an id has a character that JSON would escape.
        let action = match facts.version {
            None => format!(r#"{{"create":{{"_index":"{index}","_id":"{id}"}}}}"#),
            Some(version) => format!(
                r#"{{"index":{{"_index":"{index}","_id":"{id}","version":{version},"version_type":"external_gte"}}}}"#
            ),
        };
        self.push_lines(&action, document, index.clone(), origin);
    }

    fn push_lines(&mut self, action: &str, document: &str, index: Arc<str>, origin: Origin) {
        let action_at = self.body.len();
        self.body.extend_from_slice(action.as_bytes());
        self.body.push(b'\n');
        let document_at = self.body.len();
        self.body.extend_from_slice(document.as_bytes());
        self.body.push(b'\n');
        self.entries.push(Entry {
            action: action_at,
            document: document_at,
            end: self.body.len(),
            index,
            origin,
        });
    }

    /// Returns the line that says what to do with a document, the document, and where it comes from.
    pub(crate) fn lines(&self, n: usize) -> (&str, &str, &Origin) {
        let Entry { action, document, end, origin, .. } = &self.entries[n];
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&self.body[from..to - 1]).expect("a batch is made of texts")
        };
        (text(*action, *document), text(*document, *end), origin)
    }

    /// Returns the index of a document.
    pub(crate) fn index(&self, n: usize) -> &Arc<str> {
        &self.entries[n].index
    }

    /// Returns a batch of some of the documents, in their order.
    pub(crate) fn subset(&self, documents: impl IntoIterator<Item = usize>) -> Self {
        let mut subset = Self::default();
        for n in documents {
            let (action, document, origin) = self.lines(n);
            subset.push_lines(action, document, self.index(n).clone(), origin.clone());
        }
        subset
    }

    /// Returns the two halves of a batch of at least two documents.
    pub(crate) fn halves(&self) -> Option<(Self, Self)> {
        let middle = self.len() / 2;
        (middle > 0).then(|| (self.subset(0..middle), self.subset(middle..self.len())))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn batch_of(documents: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for (n, document) in documents.iter().enumerate() {
            let facts = ItemFacts { id: n.to_string(), date: None, version: None };
            let origin = Origin { file: "items.ndjson".into(), line: n as u64 + 1 };
            batch.push(&"i".into(), "s", &facts, document, origin);
        }
        batch
    }

    #[test]
    fn a_batch_is_the_body_of_a_bulk_request() {
        let mut batch = batch_of(&["{\"a\":1}"]);
        let facts = ItemFacts { id: "x".into(), date: None, version: Some(u64::MAX) };
        let origin = Origin { file: "item.json".into(), line: 1 };
        batch.push(&"news-2026.01".into(), "s", &facts, "{}", origin.clone());
        let (first, second) = (document_id("s", "0"), document_id("s", "x"));
        let expected = format!(
            "{{\"create\":{{\"_index\":\"i\",\"_id\":\"{first}\"}}}}\n{{\"a\":1}}\n\
             {{\"index\":{{\"_index\":\"news-2026.01\",\"_id\":\"{second}\",\"version\":{},\
             \"version_type\":\"external_gte\"}}}}\n{{}}\n",
            u64::MAX
        );
        assert_eq!(std::str::from_utf8(batch.body()).unwrap(), expected);
        let (action, document, from) = batch.lines(1);
        assert!(action.starts_with("{\"index\":") && action.len() <= ACTION_BYTES);
        assert_eq!((document, from), ("{}", &origin));
        serde_json::from_str::<serde_json::Value>(action).unwrap();
    }

    #[test]
    fn a_batch_is_full_by_items_or_by_bytes() {
        let limits = BatchLimits { items_max: 2, bytes_max: 400 };
        assert!(Batch::default().has_room(10_000, limits));
        let one = batch_of(&["{}"]);
        let room = limits.bytes_max - ACTION_BYTES - one.body().len();
        assert!(one.has_room(room, limits));
        assert!(!one.has_room(room + 1, limits));
        assert!(!batch_of(&["{}", "{}"]).has_room(0, limits));
    }

    #[test]
    fn halves_and_subsets_keep_each_document_once_and_in_order() {
        let batch = batch_of(&["{\"a\":0}", "{\"a\":1}", "{\"a\":2}", "{\"a\":3}", "{\"a\":4}"]);
        let (first, second) = batch.halves().unwrap();
        assert_eq!((first.len(), second.len()), (2, 3));
        let joined = [first.body(), second.body()].concat();
        assert_eq!(joined, batch.body());
        assert_eq!(second.lines(2), batch.lines(4));
        assert_eq!(batch.subset(0..5), batch);
        let some = batch.subset([1, 3]);
        assert_eq!(some.lines(1), batch.lines(3));
        assert_eq!(batch.subset([4]).halves(), None);
        assert_eq!(Batch::default().halves(), None);
    }
}
