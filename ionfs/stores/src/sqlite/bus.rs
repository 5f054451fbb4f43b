//! The bus on SQLite: queues, their bindings and their messages.
//!
//! A message that a subscriber has received is hidden from others for [`TAKEN`]. If it is not
//! acknowledged by then, it is delivered again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ion_model::clock::{self, Millis};
use ion_model::event::{Event, Message, PublicationState};
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Sqlite, SyncLevel, WriteFailure, documents, force_sync};
use crate::{
    Bus, Collection, DeadLetter, Delivery, Inserted, Routed, StoreError, Subscription, Unreadable,
    encode,
};

/// How long a subscriber may hold a message. In that time it only claims the job. A longer time
/// delays the messages that a dead dispatcher held.
const TAKEN: Duration = Duration::from_secs(30);

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS queues (module TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS bindings (
        event_type TEXT, module TEXT, PRIMARY KEY (event_type, module)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, module TEXT NOT NULL, body TEXT NOT NULL,
        taken_until INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS messages_module ON messages (module, seq);
    CREATE TABLE IF NOT EXISTS dead_letters (
        module TEXT, event_id TEXT, body TEXT NOT NULL, reason TEXT NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (module, event_id)
    ) WITHOUT ROWID;
";

fn encode_message(message: &Message) -> String {
    serde_json::to_string(message).expect("a message has string keys only, so it has a JSON form")
}

fn enqueue(connection: &Connection, module: &str, body: &str) -> Result<(), WriteFailure> {
    connection
        .prepare_cached("INSERT INTO messages (module, body) VALUES (?1, ?2)")?
        .execute((module, body))?;
    Ok(())
}

fn enqueue_each(
    connection: &Connection,
    modules: &[String],
    message: &Message,
) -> Result<(), WriteFailure> {
    let body = encode_message(message);
    modules.iter().try_for_each(|module| enqueue(connection, module, &body))
}

/// Returns the modules whose queues are bound to an event type.
fn bound_modules(connection: &Connection, event_type: &str) -> rusqlite::Result<Vec<String>> {
    let mut bound =
        connection.prepare_cached("SELECT module FROM bindings WHERE event_type = ?1")?;
    bound.query_map([event_type], |row| row.get(0))?.collect()
}

/// The outcome of [`insert_published`].
pub(super) struct PublishedInsert {
    pub(super) inserted: Inserted,
    /// The modules whose queues have received the message.
    pub(super) modules: Vec<String>,
}

/// Inserts an event as published, and puts its message into the queues bound to its type. An event
/// that exists already stays unchanged and is not published.
pub(super) fn insert_published(
    connection: &Connection,
    event: Event,
) -> Result<PublishedInsert, WriteFailure> {
    let (modules, message) = (bound_modules(connection, &event.event_type)?, event.message());
    let event = Event { publication: PublicationState::Published, ..event };
    let inserted = documents::insert(connection, Collection::Events, &encode(&event))?;
    if inserted != Inserted::New {
        return Ok(PublishedInsert { inserted, modules: vec![] });
    }
    enqueue_each(connection, &modules, &message)?;
    Ok(PublishedInsert { inserted, modules })
}

#[async_trait]
impl Bus for Sqlite {
    async fn declare(
        &self,
        module: &str,
        event_types: &[String],
        former: &[String],
    ) -> Result<(), StoreError> {
        let (module, event_types, former) =
            (module.to_owned(), event_types.to_vec(), former.to_vec());
        self.write("declaring a queue", move |connection| {
            connection.execute(
                "INSERT INTO queues (module) VALUES (?1) ON CONFLICT DO NOTHING",
                [&module],
            )?;
            for event_type in former {
                let unbind = "DELETE FROM bindings WHERE event_type = ?1 AND module = ?2";
                connection.execute(unbind, (event_type, &module))?;
            }
            for event_type in event_types {
                connection.execute(
                    "INSERT INTO bindings (event_type, module) VALUES (?1, ?2) ON CONFLICT DO \
                     NOTHING",
                    (event_type, &module),
                )?;
            }
            Ok(())
        })
        .await
    }

    async fn remove_queue(&self, module: &str) -> Result<(), StoreError> {
        let module = module.to_owned();
        self.write("removing a queue", move |connection| {
            for table in ["bindings", "messages", "queues"] {
                connection.execute(&format!("DELETE FROM {table} WHERE module = ?1"), [&module])?;
            }
            Ok(())
        })
        .await
    }

    async fn publish(&self, message: &Message) -> Result<Routed, StoreError> {
        let message = message.clone();
        let modules = self
            .write("publishing", move |connection| {
                let modules = bound_modules(connection, &message.event_type)?;
                enqueue_each(connection, &modules, &message)?;
                if modules.is_empty() {
                    // The event's document was written to this log before, and must be on the disk
                    // even if no queue takes the message.
                    force_sync(connection)?;
                }
                Ok(modules)
            })
            .await?;
        self.arrivals.ring(modules.iter().map(String::as_str));
        Ok(if modules.is_empty() { Routed::Nowhere } else { Routed::To(modules.len()) })
    }

    async fn send(&self, module: &str, message: &Message) -> Result<(), StoreError> {
        let (queue, body) = (module.to_owned(), encode_message(message));
        self.write("sending", move |connection| enqueue(connection, &queue, &body)).await?;
        self.arrivals.ring([module]);
        Ok(())
    }

    async fn subscribe(
        self: Arc<Self>,
        module: &str,
        prefetch: usize,
    ) -> Result<Box<dyn Subscription>, StoreError> {
        let bell = self.arrivals.bell(module, &self.database);
        let bell = bell.map_err(|error| self.unavailable("subscribing", error))?;
        Ok(Box::new(SqliteSubscriber {
            bell,
            store: self,
            module: module.to_owned(),
            prefetch: prefetch.max(1),
            held: Vec::new(),
            taking: None,
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    async fn peek(&self, module: &str, limit: usize) -> Result<Vec<Message>, StoreError> {
        let module = module.to_owned();
        self.read("looking into a queue", move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT body FROM messages WHERE module = ?1 ORDER BY seq LIMIT ?2",
            )?;
            let bodies = select
                .query_map((module, i64::try_from(limit).unwrap_or(i64::MAX)), |row| {
                    row.get::<_, String>(0)
                })?;
            let mut messages = Vec::new();
            for body in bodies {
                messages.extend(serde_json::from_str(&body?).ok());
            }
            Ok(messages)
        })
        .await
    }

    async fn count_messages(&self, module: &str, most: usize) -> Result<Option<usize>, StoreError> {
        let (module, most) = (module.to_owned(), i64::try_from(most).unwrap_or(i64::MAX));
        self.read("counting messages", move |connection| {
            let there = "SELECT EXISTS (SELECT 1 FROM queues WHERE module = ?1)";
            if !connection
                .prepare_cached(there)?
                .query_row([&module], |row| row.get::<_, bool>(0))?
            {
                return Ok(None);
            }
            let count = "SELECT COUNT(*) FROM (SELECT 1 FROM messages WHERE module = ?1 LIMIT ?2)";
            let count: i64 =
                connection.prepare_cached(count)?.query_row((&module, most), |row| row.get(0))?;
            Ok(Some(usize::try_from(count).unwrap_or(0)))
        })
        .await
    }

    async fn add_dead_letter(&self, letter: DeadLetter) -> Result<(), StoreError> {
        self.write("adding a dead letter", move |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO dead_letters (module, event_id, body, \
                     reason, at) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute((letter.module, letter.event_id, letter.body, letter.reason, letter.at))?;
            Ok(())
        })
        .await
    }

    async fn list_dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.read("listing dead letters", move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT module, event_id, body, reason, at FROM dead_letters ORDER BY at LIMIT ?1",
            )?;
            let letters = select.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok(DeadLetter {
                    module: row.get(0)?,
                    event_id: row.get(1)?,
                    body: row.get(2)?,
                    reason: row.get(3)?,
                    at: row.get(4)?,
                })
            })?;
            letters.collect()
        })
        .await
    }

    async fn remove_dead_letters(&self, letters: &[(String, String)]) -> Result<usize, StoreError> {
        let letters = letters.to_vec();
        self.write("removing dead letters", move |connection| {
            let mut remove = connection
                .prepare_cached("DELETE FROM dead_letters WHERE module = ?1 AND event_id = ?2")?;
            let removed = letters.iter().map(|letter| remove.execute((&letter.0, &letter.1)));
            Ok(removed.sum::<rusqlite::Result<usize>>()?)
        })
        .await
    }
}

/// One subscriber of one queue.
struct SqliteSubscriber {
    store: Arc<Sqlite>,
    module: String,
    /// Rings when the queue has a message that may be taken.
    bell: Arc<Notify>,
    prefetch: usize,
    /// The tags of the messages that were delivered and not yet acknowledged.
    held: Vec<u64>,
    /// The task that takes messages. It outlives the call that began it, so that a dropped call
    /// loses no message. It is a task and not a future, because a task continues without a waiting
    /// caller: a future that nobody polls could hold one of the store's readers and keep it from
    /// all others.
    taking: Option<JoinHandle<Result<Vec<Delivery>, StoreError>>>,
    runtime: tokio::runtime::Handle,
}

/// Takes the next messages of a queue, at most `most`, and hides them from others for [`TAKEN`].
async fn take_messages(
    store: Arc<Sqlite>,
    module: String,
    most: usize,
) -> Result<Vec<Delivery>, StoreError> {
    let now = clock::now();
    // The queue is read before it is written: an idle subscriber must not sync the disk.
    let queue = module.clone();
    let waiting = store.read("looking into a queue", move |connection| {
        connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE module = ?1 AND taken_until <= ?2)",
            )?
            .query_row((queue, now), |row| row.get::<_, bool>(0))
    });
    if !waiting.await? {
        return Ok(vec![]);
    }
    let until: Millis = now + clock::millis(TAKEN);
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    // If this write is lost, the messages are delivered again and their receiver finds the existing
    // jobs.
    let taken = store.write_with_level(SyncLevel::Later, "receiving", move |connection| {
        let mut update = connection.prepare_cached(
            "UPDATE messages SET taken_until = ?1 WHERE seq IN (
                SELECT seq FROM messages WHERE module = ?2 AND taken_until <= ?3
                ORDER BY seq LIMIT ?4
             ) RETURNING seq, body",
        )?;
        let rows = update.query_map((until, &module, now, most), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    });
    let mut taken = taken.await?;
    // The rows of an update come in any order.
    taken.sort_unstable_by_key(|(seq, _)| *seq);
    let deliver = |(seq, body): (i64, String)| {
        let message = serde_json::from_str(&body)
            .map_err(|error| Unreadable { reason: error.to_string(), body: body.into_bytes() });
        Delivery { tag: seq.cast_unsigned(), message }
    };
    Ok(taken.into_iter().map(deliver).collect())
}

impl SqliteSubscriber {
    async fn take_messages(&mut self, most: usize) -> Result<Vec<Delivery>, StoreError> {
        let (store, module) = (self.store.clone(), self.module.clone());
        let taken = self
            .taking
            .get_or_insert_with(|| tokio::spawn(take_messages(store, module, most)))
            .await;
        self.taking = None;
        let taken = taken.map_err(|error| self.store.unavailable("receiving", error)).flatten()?;
        self.held.extend(taken.iter().map(|delivery| delivery.tag));
        Ok(taken)
    }

    /// Stops holding messages: runs `statement`, which removes or frees a row, for each.
    async fn settle_messages(
        &mut self,
        tags: &[u64],
        statement: &'static str,
    ) -> Result<(), StoreError> {
        let tags: HashSet<u64> = tags.iter().copied().collect();
        self.held.retain(|held| !tags.contains(held));
        self.store
            // If this write is lost, the messages are only delivered again, as with
            // `take_messages`.
            .write_with_level(SyncLevel::Later, "settling messages", move |connection| {
                let mut settle = connection.prepare_cached(statement)?;
                for tag in tags {
                    settle.execute([tag.cast_signed()])?;
                }
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl Subscription for SqliteSubscriber {
    async fn next(&mut self, most: usize) -> Result<Vec<Delivery>, StoreError> {
        let bell = self.bell.clone();
        loop {
            // Listens before it looks, so that it does not miss a message that arrives in between.
            let mut ring = std::pin::pin!(bell.notified());
            ring.as_mut().enable();
            let room = self.prefetch.saturating_sub(self.held.len());
            if room > 0 {
                let taken = self.take_messages(most.min(room)).await?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
            }
            ring.await;
        }
    }

    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), StoreError> {
        self.settle_messages(tags, "DELETE FROM messages WHERE seq = ?1").await
    }

    async fn give_back(&mut self, tag: u64) -> Result<(), StoreError> {
        self.settle_messages(&[tag], "UPDATE messages SET taken_until = 0 WHERE seq = ?1").await?;
        self.bell.notify_waiters();
        Ok(())
    }

    async fn pause(&mut self) -> Result<Vec<Delivery>, StoreError> {
        // Nothing is sent ahead, except messages that a dropped call was taking.
        match self.taking.is_some() {
            true => self.take_messages(1).await,
            false => Ok(vec![]),
        }
    }
}

impl Drop for SqliteSubscriber {
    fn drop(&mut self) {
        let (taking, mut held) = (self.taking.take(), std::mem::take(&mut self.held));
        if held.is_empty() && taking.is_none() {
            return;
        }
        let (store, bell) = (self.store.clone(), self.bell.clone());
        // Best effort: a message that is not given back now is delivered again after [`TAKEN`].
        self.runtime.spawn(async move {
            if let Some(taking) = taking {
                let taken = taking.await.map_err(|error| store.unavailable("receiving", error));
                held.extend(
                    taken.flatten().unwrap_or_default().iter().map(|delivery| delivery.tag),
                );
            }
            for tag in held {
                let give_back = move |connection: &Connection| {
                    Ok(connection.execute(
                        "UPDATE messages SET taken_until = 0 WHERE seq = ?1",
                        [tag.cast_signed()],
                    )?)
                };
                let _ = store.write("giving back a message", give_back).await;
            }
            bell.notify_waiters();
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Documents as _, Durability};
    use ion_model::event::{Context, DocumentType};
    use ion_model::id::{CorrelationId, EventId};

    /// SQLite syncs the log only at the end of a transaction that has added to it.
    #[tokio::test]
    async fn a_message_that_nobody_gets_is_a_sync_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ion.db");
        let store = Sqlite::open(&path).unwrap();
        let logged = || std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
        let first = json!({"id": "1"});
        store.insert(Collection::Events, first, None, Durability::WithNextSync).await.unwrap();
        let before = logged();
        let context = Context {
            name: "m".into(),
            event_id: EventId::new("1"),
            correlation_id: CorrelationId::new("c"),
            parent_event_id: String::new(),
            document_type: DocumentType::EventMeta,
        };
        let routed =
            store.publish(&Message { context, event_type: "nobody".into() }).await.unwrap();
        assert_eq!(routed, Routed::Nowhere);
        let published = logged();
        assert!(published > before, "{published} bytes, and {before} before");
        store.sync().await.unwrap();
        assert!(logged() > published);
    }
}
