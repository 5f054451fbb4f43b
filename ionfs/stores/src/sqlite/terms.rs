//! The index that finds events' documents by the texts in their arrays `terms`.
//!
//! # How it works
//! A row for each text of each document would make each document change as many pages of the index
//! as it has texts. So an insert writes no rows. Documents are indexed later, in the order of their
//! row numbers and many at a time: by a dispatcher in its spare time ([`Documents::maintain`]), and
//! before each search. A table has the row number up to which the index is complete. When an
//! indexed document is replaced or removed, triggers change the index in the same transaction.

use rusqlite::Connection;

use super::Sqlite;
#[cfg(doc)]
use crate::Documents;
use crate::{Durability, StoreError};

/// The tables and their triggers. When the last document is removed, its row number is used again,
/// so the index then goes back to the last document that is left.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS event_terms (
        term TEXT NOT NULL, created INTEGER NOT NULL, event INTEGER NOT NULL,
        PRIMARY KEY (term, created, event)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS event_terms_state (
        id INTEGER PRIMARY KEY CHECK (id = 1), indexed INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO event_terms_state (id, indexed) VALUES (1, 0);
    CREATE TRIGGER IF NOT EXISTS event_terms_update AFTER UPDATE OF document ON events
    WHEN (
        json_type(old.document, '$.terms') = 'array'
        OR json_type(new.document, '$.terms') = 'array'
    ) AND old.rowid <= (SELECT indexed FROM event_terms_state)
    BEGIN
        DELETE FROM event_terms WHERE (term, created, event) IN (
            SELECT value, json_extract(old.document, '$.created'), old.rowid
            FROM json_each(old.document, '$.terms'));
        INSERT OR IGNORE INTO event_terms
        SELECT value, json_extract(new.document, '$.created'), new.rowid
        FROM json_each(new.document, '$.terms');
    END;
    CREATE TRIGGER IF NOT EXISTS event_terms_delete AFTER DELETE ON events
    BEGIN
        DELETE FROM event_terms WHERE (term, created, event) IN (
            SELECT value, json_extract(old.document, '$.created'), old.rowid
            FROM json_each(old.document, '$.terms'));
        UPDATE event_terms_state
        SET indexed = min(indexed, ifnull((SELECT max(rowid) FROM events), 0))
        WHERE old.rowid > ifnull((SELECT max(rowid) FROM events), 0);
    END;
";

/// The most documents that are indexed in one transaction. Other writers wait longer for more, and
/// with fewer the same pages of the index are written more often.
const AT_ONCE: i64 = 2000;

/// From how many documents on a search says that it has to index them first. A second is enough for
/// some ten thousand.
const SAID_FROM: i64 = 50_000;

/// Returns how many rows of documents are not indexed yet.
fn rows_behind(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT ifnull((SELECT max(rowid) FROM events), 0) - indexed FROM event_terms_state";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// Indexes the next documents.
fn index_some(connection: &Connection) -> rusqlite::Result<()> {
    let insert = "INSERT OR IGNORE INTO event_terms
        SELECT text.value, json_extract(document, '$.created'), events.rowid
        FROM event_terms_state AS state
        CROSS JOIN events ON events.rowid > state.indexed AND events.rowid <= state.indexed + ?1
        CROSS JOIN json_each(document, '$.terms') AS text
        WHERE json_type(document, '$.terms') = 'array'
        ORDER BY 1, 2, 3";
    connection.prepare_cached(insert)?.execute([AT_ONCE])?;
    // Another process may have indexed some of them since the caller looked.
    let step = rows_behind(connection)?.clamp(0, AT_ONCE);
    let update = "UPDATE event_terms_state SET indexed = indexed + ?1";
    connection.prepare_cached(update)?.execute([step]).map(drop)
}

impl Sqlite {
    /// Indexes some documents if there are any that are not indexed. Returns how many rows were not
    /// indexed before.
    pub(super) async fn index_some_terms(&self) -> Result<i64, StoreError> {
        let behind = self.read("looking at the index of terms", rows_behind).await?;
        if behind > 0 {
            let level = self.sync_level(Durability::WithNextSync);
            let index = |connection: &Connection| Ok(index_some(connection)?);
            self.write_with_level(level, "indexing terms", index).await?;
        }
        Ok(behind)
    }

    /// Indexes all documents that are not indexed.
    pub(super) async fn index_all_terms(&self) -> Result<(), StoreError> {
        let behind = self.index_some_terms().await?;
        if behind > SAID_FROM {
            tracing::info!(documents = behind, "indexing the values of insights");
        }
        if behind > AT_ONCE {
            while self.index_some_terms().await? > AT_ONCE {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ion_model::term::IndexRange;
    use serde_json::json;

    use super::*;
    use crate::{Collection, Documents as _, Query};

    /// Row numbers of removed documents are used again, in whatever order documents were removed.
    #[tokio::test]
    async fn what_takes_the_place_of_removed_documents_is_found() {
        let store = Sqlite::in_memory().unwrap();
        let insert = async |id: &str| {
            let document = json!({"id": id, "created": 1, "terms": [format!("t-{id}")]});
            store.insert(Collection::Events, document, None, Durability::Now).await.unwrap();
        };
        let delete = async |id: &str| {
            assert!(store.delete(Collection::Events, id, vec![]).await.unwrap());
        };
        let found = async || {
            let all = Query::all(Collection::Events).with_term(IndexRange::prefix("t-".into()));
            let mut ids: Vec<String> = store
                .find(all.order_by("created"))
                .await
                .unwrap()
                .iter()
                .map(|document| document["id"].as_str().unwrap().to_owned())
                .collect();
            ids.sort();
            ids
        };
        let rows = async || {
            let count = |connection: &Connection| {
                connection.query_row("SELECT count(*) FROM event_terms", [], |row| row.get(0))
            };
            store.read("counting", count).await.unwrap()
        };
        for removed in [["b", "c"], ["c", "b"], ["a", "c"], ["c", "a"]] {
            for id in ["a", "b", "c"] {
                insert(id).await;
            }
            assert_eq!(found().await, ["a", "b", "c"]);
            for id in removed {
                delete(id).await;
            }
            insert("d").await;
            insert("e").await;
            let left = ["a", "b", "c"].into_iter().find(|id| !removed.contains(id)).unwrap();
            assert_eq!(found().await, [left, "d", "e"], "{removed:?}");
            assert_eq!(rows().await, 3_i64, "{removed:?}");
            for id in [left, "d", "e"] {
                delete(id).await;
            }
            assert_eq!((found().await.len(), rows().await), (0, 0_i64));
        }
    }
}
