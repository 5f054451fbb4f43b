//! The documents of a correlation, page by page: its events, then its insights, then its jobs, each
//! kind in the order of times and ids.

use std::fmt;
use std::str::FromStr;

use ion_model::event::{DocumentType, is_staged};
use ion_model::record::InsightRecord;
use ion_stores::{Collection, Documents, Pages, Query, StoreError, decode};
use serde_json::{Value, json};

/// The kinds of documents, in their order.
const KINDS: [DocumentKind; 3] = [DocumentKind::Event, DocumentKind::Insight, DocumentKind::Job];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DocumentKind {
    Event,
    Insight,
    Job,
}

impl DocumentKind {
    fn letter(self) -> char {
        match self {
            Self::Event => 'e',
            Self::Insight => 'i',
            Self::Job => 'j',
        }
    }

    /// Returns the kind that comes after this one.
    fn next(self) -> Option<Self> {
        let at = KINDS.iter().position(|kind| *kind == self)?;
        KINDS.get(at + 1).copied()
    }

    fn pages(self, correlation: &str) -> Pages {
        let of_kind = |kind: DocumentType| {
            let equals = vec![
                ("context.correlationId", json!(correlation)),
                ("context.documentType", json!(kind)),
            ];
            Query::equal(Collection::Events, equals)
        };
        let query = match self {
            Self::Event => of_kind(DocumentType::EventMeta),
            Self::Insight => of_kind(DocumentType::Insight),
            Self::Job => {
                Query::equal(Collection::Jobs, vec![("correlationId", json!(correlation))])
            }
        };
        Pages::new(query, "created")
    }

    /// Returns the document as people see it; none if they may not see it.
    fn shown(self, document: Value) -> Result<Option<Value>, StoreError> {
        if self == Self::Job {
            return Ok(Some(document));
        }
        if is_staged(&document) {
            return Ok(None);
        }
        if self == Self::Event {
            return Ok(Some(document));
        }
        let insight: InsightRecord = decode(Collection::Events, document)?;
        Ok((!insight.staged).then(|| insight.shown_document()))
    }
}

/// A place among the documents of a correlation: after this one. As a text it is
/// `<kind>.<time>.<id>`, with `e`, `i` or `j` for an event, an insight or a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentCursor {
    kind: DocumentKind,
    created: i64,
    id: String,
}

/// A text is no place among documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is none of the places that an earlier answer has named")]
pub struct CursorError;

impl fmt::Display for DocumentCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.kind.letter(), self.created, self.id)
    }
}

impl FromStr for DocumentCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let mut parts = text.splitn(3, '.');
        let letter = parts.next().unwrap_or_default();
        let kind = KINDS.into_iter().find(|kind| letter == kind.letter().to_string());
        let created = parts.next().and_then(|part| part.parse().ok());
        let id = parts.next().filter(|id| !id.is_empty());
        match (kind, created, id) {
            (Some(kind), Some(created), Some(id)) => Ok(Self { kind, created, id: id.to_owned() }),
            _ => Err(CursorError),
        }
    }
}

/// Reads the documents of a correlation.
#[derive(Debug)]
pub struct DocumentPages {
    correlation: String,
    /// The kind that is being read, and its pages; none at the end.
    reading: Option<(DocumentKind, Pages)>,
}

impl DocumentPages {
    /// Begins with the first document.
    pub fn new(correlation: &str) -> Self {
        Self::of_kind(correlation, KINDS[0], |pages| pages)
    }

    /// Begins after a place, whose document may have gone meanwhile.
    pub fn after(correlation: &str, cursor: &DocumentCursor) -> Self {
        let before = json!({"created": cursor.created, "id": cursor.id});
        Self::of_kind(correlation, cursor.kind, |pages| pages.after(&before))
    }

    fn of_kind(correlation: &str, kind: DocumentKind, begin: impl FnOnce(Pages) -> Pages) -> Self {
        let reading = Some((kind, begin(kind.pages(correlation))));
        Self { correlation: correlation.to_owned(), reading }
    }

    /// Returns the next documents, at most `limit`, each with its place; none at the end.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub async fn next(
        &mut self,
        documents: &dyn Documents,
        limit: usize,
    ) -> Result<Vec<(DocumentCursor, Value)>, StoreError> {
        while let Some((kind, pages)) = &mut self.reading {
            let kind = *kind;
            let Some(page) = pages.next_rows(documents, limit).await? else {
                self.reading = kind.next().map(|next| (next, next.pages(&self.correlation)));
                continue;
            };
            let mut found = Vec::new();
            for document in page {
                let cursor = DocumentCursor {
                    kind,
                    created: document["created"].as_i64().unwrap_or_default(),
                    id: document["id"].as_str().unwrap_or_default().to_owned(),
                };
                found.extend(kind.shown(document)?.map(|document| (cursor, document)));
            }
            // A page may hold only documents that nobody may see.
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(vec![])
    }
}

#[cfg(test)]
mod tests {
    use ion_stores::Durability;
    use ion_stores::open::{StoreUrls, open};

    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_nothing_else_is_one() {
        for text in ["e.17.a", "i.0.x-insights", "j.-3.dots.in.id"] {
            assert_eq!(text.parse::<DocumentCursor>().unwrap().to_string(), text);
        }
        for wrong in ["", "e", "e.1", "e.1.", "x.1.a", "e.a.b", "ee.1.a", ".1.a"] {
            assert_eq!(wrong.parse::<DocumentCursor>(), Err(CursorError), "{wrong}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_document_comes_once_from_whichever_place_the_reading_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let documents = open(&StoreUrls::embedded(folder.path())).await.unwrap().documents.clone();
        let mut expected = Vec::new();
        for n in 0..11 {
            let context = json!({"correlationId": "c", "documentType": "eventMeta"});
            // Every third event is only staged.
            let publication = if n % 3 == 2 { "staged" } else { "published" };
            let event = json!({
                "id": format!("e{n:02}"), "created": n / 4, "context": context,
                "publication": publication,
            });
            let job = json!({"id": format!("j{n:02}"), "created": n / 3, "correlationId": "c"});
            for (collection, document) in [(Collection::Events, event), (Collection::Jobs, job)] {
                documents.insert(collection, document, None, Durability::Now).await.unwrap();
            }
            expected.extend((n % 3 != 2).then(|| format!("e{n:02}")));
        }
        expected.extend((0..11).map(|n| format!("j{n:02}")));
        for limit in [1, 2, 3, 4, 5, 100] {
            let mut found = Vec::new();
            let mut pages = DocumentPages::new("c");
            loop {
                let page = pages.next(&*documents, limit).await.unwrap();
                let Some((cursor, _)) = page.last() else { break };
                assert!(page.len() <= limit);
                let cursor: DocumentCursor = cursor.to_string().parse().unwrap();
                pages = DocumentPages::after("c", &cursor);
                found.extend(
                    page.iter().map(|(_, document)| document["id"].as_str().unwrap().to_owned()),
                );
            }
            assert_eq!(found, expected, "{limit}");
        }
    }
}
