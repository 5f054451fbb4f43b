//! Wakes subscribers when their queues have messages.
//!
//! A subscriber waits for the bell of its module. When this process puts a message into a queue, it
//! rings only that queue's bell. Other processes cannot ring it, and a message that a dead
//! subscriber held becomes free without being put into a queue again. So one thread looks for the
//! queues that have free messages. One query serves all subscribers, however many modules the plane
//! has.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ion_model::clock::{self, Millis};
use rusqlite::Connection;
use tokio::sync::Notify;

use super::{Database, connect};

/// How often the thread looks. A shorter interval costs an idle plane more; a longer one delays
/// what other processes publish.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Selects the queues that have a message which no subscriber holds, with one index lookup for each
/// queue that has messages.
const FREE: &str = "
    WITH RECURSIVE queue (module) AS (
        SELECT min(module) FROM messages
        UNION ALL
        SELECT (SELECT min(module) FROM messages WHERE module > queue.module)
            FROM queue WHERE module IS NOT NULL
    )
    SELECT module FROM queue WHERE EXISTS (
        SELECT 1 FROM messages WHERE messages.module = queue.module AND taken_until <= ?1
    )";

/// The bells: one for each module that this process has subscribed to.
#[derive(Debug, Default)]
struct Bells(Mutex<HashMap<String, Arc<Notify>>>);

impl Bells {
    fn bell(&self, module: &str) -> Arc<Notify> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.entry(module.to_owned()).or_default().clone()
    }

    fn ring(&self, module: &str) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = bells.get(module) {
            bell.notify_waiters();
        }
    }

    fn ring_all(&self) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.values().for_each(|bell| bell.notify_waiters());
    }
}

/// The bells of one store, and the thread that rings them for other processes.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    bells: Arc<Bells>,
    watcher: OnceLock<ArrivalWatcher>,
}

impl Arrivals {
    /// Returns the bell of a module. The caller must begin to listen to it before it looks into the
    /// queue, so that it misses no message. The first call starts the thread that watches
    /// `database`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn bell(
        &self,
        module: &str,
        database: &Arc<Database>,
    ) -> std::io::Result<Arc<Notify>> {
        if self.watcher.get().is_none() {
            // If two threads start a watcher at the same moment, the second watcher is dropped and
            // ends at once.
            let _ = self.watcher.set(ArrivalWatcher::start(self.bells.clone(), database.clone())?);
        }
        Ok(self.bells.bell(module))
    }

    /// Wakes the subscribers of these modules.
    pub(super) fn ring<'a>(&self, modules: impl IntoIterator<Item = &'a str>) {
        modules.into_iter().for_each(|module| self.bells.ring(module));
    }
}

/// The thread that looks for free messages; it ends when this is dropped.
#[derive(Debug)]
struct ArrivalWatcher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ArrivalWatcher {
    fn start(bells: Arc<Bells>, database: Arc<Database>) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let watch = move || {
            let mut connection = None;
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                match find_ready_queues(&mut connection, &database, clock::now()) {
                    Ok(queues) => queues.iter().for_each(|module| bells.ring(module)),
                    Err(error) => {
                        tracing::debug!(error, "the queues cannot be looked at");
                        connection = None;
                        // Each subscriber then looks into its own queue and returns the error to
                        // its caller.
                        bells.ring_all();
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("ion-arrivals".into()).spawn(watch)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ArrivalWatcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type WatchError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the modules that have a message which no subscriber holds. Opens the connection if it is
/// not open.
fn find_ready_queues(
    connection: &mut Option<Connection>,
    database: &Database,
    now: Millis,
) -> Result<Vec<String>, WatchError> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(connect(database)?),
    };
    let mut select = connection.prepare_cached(FREE)?;
    let queues = select.query_map([now], |row| row.get(0))?;
    Ok(queues.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::Sqlite;
    use super::*;
    use crate::{Bus as _, Subscription};
    use ion_model::event::{Context, DocumentType, Message};
    use ion_model::id::{CorrelationId, EventId};

    fn message(id: &str) -> Message {
        let context = Context {
            name: "m".into(),
            event_id: EventId::new(id),
            correlation_id: CorrelationId::new("c"),
            parent_event_id: String::new(),
            document_type: DocumentType::EventMeta,
        };
        Message { context, event_type: "t".into() }
    }

    /// Returns the id of the next message and its tag. Fails if no message comes in time.
    async fn next_message(subscriber: &mut dyn Subscription) -> (String, u64) {
        let next = tokio::time::timeout(Duration::from_secs(20), subscriber.next(1)).await;
        let received = next.expect("a message comes in time").unwrap();
        let delivery = received.into_iter().next().unwrap();
        (delivery.message.unwrap().context.event_id.to_string(), delivery.tag)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_waiting_subscriber_gets_what_another_process_puts_there_or_gives_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ion.db");
        let open = || Arc::new(Sqlite::open(&path).unwrap());
        // Two stores of one file know nothing of each other, as if they were in two processes.
        let (ours, theirs) = (open(), open());
        for module in ["a", "b"] {
            ours.declare(module, &[format!("type-{module}")], &[]).await.unwrap();
        }
        let mut a = ours.clone().subscribe("a", 8).await.unwrap();
        let mut b = ours.clone().subscribe("b", 8).await.unwrap();
        let put = async {
            tokio::time::sleep(LOOK_EVERY * 2).await;
            theirs.send("b", &message("first")).await.unwrap();
        };
        assert_eq!(tokio::join!(next_message(&mut *b), put).0.0, "first");

        let mut other = theirs.clone().subscribe("a", 8).await.unwrap();
        theirs.send("a", &message("second")).await.unwrap();
        let (id, tag) = next_message(&mut *other).await;
        assert_eq!(id, "second");
        let give_back = async {
            tokio::time::sleep(LOOK_EVERY * 2).await;
            other.give_back(tag).await.unwrap();
            drop(other);
        };
        assert_eq!(tokio::join!(next_message(&mut *a), give_back).0.0, "second");
    }
}
