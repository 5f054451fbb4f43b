//! Stores documents and the bus in one SQLite file, which several processes may share.
//!
//! # How it works
//! The file is in WAL mode. One thread holds the only writing connection. It takes all waiting
//! requests, runs each in a savepoint of one transaction, commits once and answers all: a hundred
//! concurrent writers cost one sync. Readers have connections of their own and never wait for the
//! writer.
//!
//! # When a write is durable
//! A write that must be durable now is committed with `synchronous=FULL`, and is on the disk when
//! it is answered. Any other is committed without a sync. The log is ordered, so the next sync
//! takes such a write along, and a crash never leaves what came after it without it. This serves
//! [`Durability::BeforeNextMessage`] too, but only where the plane's bus is in the same file: see
//! [`Sqlite::with_bus_in_same_file`].
//!
//! # What it never does
//! It never waits without a bound: the queue of requests is bounded, and it waits at most
//! [`BUSY_WAIT`] for another process that holds the file.

mod arrivals;
mod bus;
mod documents;
mod held;
mod terms;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) use held::{HeldBlob, HeldDuring};
use ion_system::home::make_private_folder;
use ion_system::patience::Retry;
use ion_system::run_blocking;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::{self, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

use super::{Collection, Durability, StoreError};

/// How long another process may hold the file before a request fails. A shorter wait fails commits
/// on a slow disk.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// The wait before the next try to open a file that other processes are creating.
const OPEN_AGAIN: Duration = Duration::from_millis(5);

/// The number of requests that wait for the writer. Further callers wait until there is room.
const QUEUE: usize = 1024;

/// The number of requests in one transaction. More delay the first request's answer; fewer cost
/// more syncs.
const BATCH: usize = 256;

/// The number of concurrent readers. SQLite reads from the page cache, so more threads gain
/// nothing.
const READERS: usize = 4;

/// The version of the tables' layout. It is raised when the layout changes.
const SCHEMA_VERSION: i64 = 7;

/// Why the writer did not do one request.
#[derive(Debug)]
enum WriteFailure {
    /// A statement of the request failed.
    Sql(rusqlite::Error),
    /// The guard of the request does not hold.
    Fenced(Collection),
    /// The transaction of the request could not be committed.
    NotCommitted(CommitFailure),
}

/// Why a transaction could not be committed. All requests of the transaction share it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
struct CommitFailure(Arc<rusqlite::Error>);

impl From<rusqlite::Error> for WriteFailure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Answers the caller with the outcome of the transaction's commit.
type WriteAnswer = Box<dyn FnOnce(Result<(), CommitFailure>) + Send>;

/// Does a request's work and returns the function that answers the caller.
type WriteWork = Box<dyn FnOnce(&mut Connection) -> WriteAnswer + Send>;

/// Whether a transaction syncs the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SyncLevel {
    /// The write is on the disk with the next [`SyncLevel::AtOnce`] write. Other processes see it
    /// now.
    Later,
    /// The write is on the disk when it is answered.
    AtOnce,
}

/// Where the bus of a plane is whose documents are in a SQLite file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BusPlace {
    /// In the same file: the log has a message after the documents that were written before it.
    SameFile,
    /// On a broker, or in another file: no order holds between its messages and the documents.
    Elsewhere,
}

impl SyncLevel {
    /// Returns the value of `PRAGMA synchronous`.
    fn pragma_value(self) -> &'static str {
        match self {
            Self::Later => "NORMAL",
            Self::AtOnce => "FULL",
        }
    }
}

/// A request to the writer.
struct WriteRequest {
    level: SyncLevel,
    work: WriteWork,
}

/// Where a database is.
#[derive(Debug)]
enum Database {
    /// In this file, even if its folder has been moved since.
    File(OwnedFd),
    /// In this process, under this name.
    Memory(String),
}

/// A SQLite file that holds documents and the bus.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    database: Arc<Database>,
    writer: Option<mpsc::Sender<WriteRequest>>,
    thread: Option<JoinHandle<()>>,
    readers: Arc<Mutex<Vec<Connection>>>,
    reading: Semaphore,
    arrivals: arrivals::Arrivals,
    bus: BusPlace,
}

impl Sqlite {
    /// Opens the file. Makes the file and its folders if they are missing.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or was written by a newer Ion.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            make_private_folder(folder)
                .map_err(|error| unavailable(path, "its folder cannot be made", error))?;
        }
        let file =
            make_file(path).map_err(|error| unavailable(path, "it cannot be opened", error))?;
        Self::open_database(Database::File(file), path.to_owned())
    }

    /// Makes a database in memory. It is lost when the store is dropped.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn in_memory() -> Result<Self, StoreError> {
        let name = Uuid::new_v4().simple().to_string();
        let shown = PathBuf::from(format!("memory/{name}"));
        Self::open_database(Database::Memory(name), shown)
    }

    /// Connects to a database and prepares it. `path` is how errors name it.
    fn open_database(database: Database, path: PathBuf) -> Result<Self, StoreError> {
        let database = Arc::new(database);
        let mut connection =
            connect(&database).map_err(|error| unavailable(&path, "it cannot be opened", error))?;
        make_tables(&mut connection)
            .map_err(|error| unavailable(&path, "it cannot be prepared", error))?;
        let (writer, requests) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("ion-sqlite".into())
            .spawn(move || write_loop(connection, requests))
            .map_err(|error| unavailable(&path, "its thread cannot be started", error))?;
        Ok(Self {
            path,
            database,
            writer: Some(writer),
            thread: Some(thread),
            readers: Arc::default(),
            reading: Semaphore::new(READERS),
            arrivals: arrivals::Arrivals::default(),
            bus: BusPlace::Elsewhere,
        })
    }

    /// Tells the store that its plane's bus is in this file too. Without this,
    /// [`Durability::BeforeNextMessage`] means [`Durability::Now`], which is right for every bus
    /// and costs a sync more.
    #[must_use]
    pub fn with_bus_in_same_file(mut self) -> Self {
        self.bus = BusPlace::SameFile;
        self
    }

    /// Returns whether a write of this durability syncs the log. With the bus in the same file, the
    /// write that adds a message also syncs every write before it.
    fn sync_level(&self, durability: Durability) -> SyncLevel {
        match (durability, self.bus) {
            (Durability::Now, _) | (Durability::BeforeNextMessage, BusPlace::Elsewhere) => {
                SyncLevel::AtOnce
            }
            (Durability::BeforeNextMessage, BusPlace::SameFile) | (Durability::WithNextSync, _) => {
                SyncLevel::Later
            }
        }
    }

    fn unavailable(
        &self,
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        unavailable(&self.path, what, source)
    }

    /// Runs `work` in the writer. Its writes are durable when this returns.
    async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, WriteFailure> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.write_with_level(SyncLevel::AtOnce, what, work).await
    }

    /// Runs `work` in the writer. `level` says when its writes are durable.
    async fn write_with_level<T: Send + 'static>(
        &self,
        level: SyncLevel,
        what: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, WriteFailure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let work: WriteWork = Box::new(move |connection| {
            let outcome = in_savepoint(connection, work);
            Box::new(move |committed| {
                // The caller may have stopped waiting; its write is done all the same.
                let _ = answer.send(committed.map_err(WriteFailure::NotCommitted).and(outcome));
            })
        });
        let writer = self.writer.as_ref().expect("the writer is there until the store is dropped");
        let stopped = "its writer has stopped";
        let request = WriteRequest { level, work };
        writer.send(request).await.map_err(|_| self.unavailable(what, stopped))?;
        let outcome = answered.await.map_err(|_| self.unavailable(what, stopped))?;
        outcome.map_err(|failure| match failure {
            WriteFailure::Fenced(collection) => StoreError::Fenced(collection),
            WriteFailure::Sql(error) => self.unavailable(what, error),
            WriteFailure::NotCommitted(error) => self.unavailable(what, error),
        })
    }

    /// Runs `work` on a reading connection.
    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _slot = self.reading.acquire().await.expect("the semaphore is never closed");
        let (database, readers) = (self.database.clone(), self.readers.clone());
        let outcome = run_blocking(move || {
            let free = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match free {
                Some(connection) => connection,
                None => connect(&database)?,
            };
            let outcome = work(&connection);
            readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(outcome?)
        })
        .await;
        outcome.map_err(|error| self.unavailable(what, error))
    }
}

/// Returns the error of a database. `path` is how errors name the database.
fn unavailable(
    path: &Path,
    what: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Unavailable {
        store: format!("sqlite://{}", path.display()),
        what: what.to_owned(),
        source: source.into(),
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        drop(self.writer.take());
        // The thread's channel is closed, so it ends after the requests that it has received.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the file unless it exists, and returns a path descriptor (O_PATH) of it. Only SQLite opens
/// the file for reading or writing: when a process closes any such descriptor of a file, it loses
/// all its locks on that file.
fn make_file(path: &Path) -> rustix::io::Result<OwnedFd> {
    // SQLite makes its other files beside this one with the same mode.
    match fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()),
        Err(error) => Err(error),
    }
}

/// Opens a connection to the file at its current path. If its folder has been moved, the original
/// path may lead to another file.
fn connect(database: &Database) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let (path, flags) = match database {
        Database::File(file) => {
            (std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?, flags)
        }
        // A name that begins with a slash is one database for all connections of the process
        // (sqlite3 memdb VFS).
        Database::Memory(name) => (
            format!("file:/{name}?vfs=memdb").into(),
            flags | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_CREATE,
        ),
    };
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    enable_wal(&connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(64);
    // SQLite plans statements without looking at the bound values. Otherwise it would prepare
    // statements with a bound limit, and many others, again at each use. Each query has its index
    // whatever the values are.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Turns the write-ahead log on. While other processes open the same new file, SQLite refuses
/// instead of waiting, because two that waited for each other would never end. So this function
/// retries, for at most [`BUSY_WAIT`].
fn enable_wal(connection: &Connection) -> rusqlite::Result<()> {
    Retry::during(BUSY_WAIT).waiting(OPEN_AGAIN).run_blocking(
        |_| connection.pragma_update(None, "journal_mode", "WAL"),
        |failed| failed.error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy),
    )
}

/// Makes the tables and indexes unless they exist. In a file of an older Ion, each index is made in
/// a transaction of its own: if the process is killed in between, the next process makes the rest.
fn make_tables(
    connection: &mut Connection,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > SCHEMA_VERSION {
        return Err(format!(
            "it was written by a newer Ion (layout {version}, this one knows {SCHEMA_VERSION})"
        )
        .into());
    }
    if version == SCHEMA_VERSION {
        return Ok(());
    }
    for collection in Collection::ALL {
        documents::rebuild_older_table(&transaction, collection)?;
        transaction.execute_batch(&documents::table_sql(collection))?;
    }
    transaction.execute_batch(terms::SCHEMA)?;
    transaction.execute_batch(bus::SCHEMA)?;
    transaction.execute_batch(held::SCHEMA)?;
    transaction.commit()?;
    for collection in Collection::ALL {
        documents::make_missing_indexes(connection, collection)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for collection in Collection::ALL {
        documents::drop_former_indexes(&transaction, collection)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(())
}

/// Writes a page without changing its content. A transaction that writes nothing syncs nothing,
/// even if earlier transactions are not yet on the disk.
fn force_sync(connection: &Connection) -> rusqlite::Result<()> {
    // Writes the version that the file has: a newer Ion may have changed the layout of the tables
    // while this process runs.
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "user_version", version)
}

fn in_savepoint<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Connection) -> Result<T, WriteFailure>,
) -> Result<T, WriteFailure> {
    let savepoint = connection.savepoint()?;
    let value = work(&savepoint)?;
    savepoint.commit()?;
    Ok(value)
}

/// Runs the writer: does all waiting requests in one transaction, then answers them.
fn write_loop(mut connection: Connection, mut requests: mpsc::Receiver<WriteRequest>) {
    // `connect` has set this level.
    let mut level = SyncLevel::AtOnce;
    while let Some(first) = requests.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = requests.try_recv()
        {
            batch.push(next);
        }
        let wanted = batch.iter().map(|request| request.level).max().unwrap_or(SyncLevel::AtOnce);
        let begun = match wanted == level {
            true => Ok(()),
            false => connection
                .pragma_update(None, "synchronous", wanted.pragma_value())
                .map(|()| level = wanted),
        };
        if let Err(error) = begun.and_then(|()| connection.execute_batch("BEGIN IMMEDIATE")) {
            // The requests are dropped unanswered, and their callers receive the error that the
            // writer has stopped.
            tracing::error!(
                %error,
                "the database cannot be written; the requests of this batch fail"
            );
            continue;
        }
        let answers: Vec<WriteAnswer> =
            batch.into_iter().map(|request| (request.work)(&mut connection)).collect();
        let committed = connection.execute_batch("COMMIT").map_err(|error| {
            let _ = connection.execute_batch("ROLLBACK");
            CommitFailure(Arc::new(error))
        });
        for answer in answers {
            answer(committed.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_new_file_may_be_opened_by_many_at_once() {
        const OPENERS: usize = 8;
        let folder = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let path = folder.path().join(format!("{n}.db"));
            let together = Barrier::new(OPENERS);
            let open = || {
                together.wait();
                Sqlite::open(&path).map(drop)
            };
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
                all.into_iter().for_each(|one| one.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn a_write_before_a_message_leaves_the_sync_to_a_message_of_the_same_file_only() {
        let level = |store: &Sqlite| store.sync_level(Durability::BeforeNextMessage);
        let store = Sqlite::in_memory().unwrap();
        assert_eq!(level(&store), SyncLevel::AtOnce);
        let store = store.with_bus_in_same_file();
        assert_eq!(level(&store), SyncLevel::Later);
        assert_eq!(store.sync_level(Durability::Now), SyncLevel::AtOnce);
    }

    #[tokio::test]
    async fn a_file_whose_folder_was_moved_is_read_and_written_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (before, now) = (folder.path().join("home"), folder.path().join("away"));
        let store = Sqlite::open(&before.join("ion.db")).unwrap();
        std::fs::rename(&before, &now).unwrap();
        std::fs::create_dir(&before).unwrap();
        store
            .write("adding", |file| Ok(file.execute_batch("CREATE TABLE moved (a)")?))
            .await
            .unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'moved'";
        let count = |file: &Connection| file.query_row(tables, [], |row| row.get::<_, i64>(0));
        assert_eq!(store.read("counting", count).await.unwrap(), 1);
        let other = Sqlite::open(&now.join("ion.db")).unwrap();
        assert_eq!(other.read("counting", count).await.unwrap(), 1);
        assert_eq!(before.read_dir().unwrap().count(), 0, "nothing is made where it was");
    }
}
