//! Development mode: it needs no store, and writes all contexts, events and insights to files below
//! `.dev/<module>/`, in older Ion's flat shape.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `context.json` | the context in which the module ran |
//! | `contexts/<event file>` | the content of an event's document: context, files, data |
//! | `events/<event file>` | the event's message, whose `context.eventId` starts the next module |
//! | `insights/insights.json` | the values kept for analysis |
//! | `prepared`, `committed` | an empty object: `prepare` or `commit` has succeeded |
//!
//! The rules are those of production, because the same code runs on embedded stores in
//! `.dev/.stores`.

use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use ion_model::event::{
    Context, Event, EventFile, FileEntry, KeyValue, ParsedEventFile, parse_within,
};
use ion_model::id::{CorrelationId, EventId};
use ion_model::limits::Limits;
use ion_plane::commit::{DirectoryContent, insert_for_nobody};
use ion_plane::first::FirstEvent;
use ion_plane::upload::{UploadError, retry_suffix, store_open_file, store_with_retries};
use ion_stores::DataPlane;
use ion_stores::open::{StoreUrls, open};
use serde_json::{Value, json};

use crate::HandlerError;
use crate::commit::HandlerCommit;
use crate::folder::{ModuleFolder, OpenedPath, read_within, utf8_name};

/// The type of a first event, which no module published.
const EVENT_TYPE: &str = "development";

/// The folder to which the runs of one module are dumped.
#[derive(Clone, Debug)]
pub struct Dump {
    base: PathBuf,
    module: String,
}

impl Dump {
    /// Returns the dump of a module below `base`, which is `.dev` by default. The module's name is
    /// part of the path.
    pub fn new(base: impl Into<PathBuf>, module: &str) -> Self {
        Self { base: base.into(), module: module.to_owned() }
    }

    /// Opens the stores of development mode.
    ///
    /// # Errors
    /// Returns an error when their folder cannot be made, or when they cannot be opened.
    pub async fn open_stores(&self) -> Result<DataPlane, HandlerError> {
        let home = self.base.join(".stores");
        std::fs::create_dir_all(&home).map_err(HandlerError::folder(&home, "cannot be made"))?;
        Ok(open(&StoreUrls::embedded(&home)).await?)
    }

    /// Records that the module is prepared, and removes the dump of an earlier run.
    ///
    /// # Errors
    /// Returns an error when a file cannot be removed or written.
    pub fn write_prepared(&self, event: &Event) -> Result<(), HandlerError> {
        let own = self.base.join(&self.module);
        match std::fs::remove_dir_all(&own) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HandlerError::folder(own, "cannot be removed")(error));
            }
            _ => {}
        }
        let context = Context { name: self.module.clone(), ..event.context.clone() };
        self.write("context.json", &json!(context))?;
        self.write("prepared", &json!({}))
    }

    /// Records what the module committed.
    ///
    /// # Errors
    /// Returns an error when a file cannot be written.
    pub fn write_committed(&self, committed: &HandlerCommit) -> Result<(), HandlerError> {
        for event in &committed.events {
            let name = event.file_name.as_deref().unwrap_or(event.id.as_str());
            let files: Vec<&str> = event.files.iter().map(|file| file.name.as_str()).collect();
            let meta = flatten(&event.context, json!({"files": files, "data": event.data}));
            self.write(&format!("contexts/{name}"), &meta)?;
            self.write(&format!("events/{name}"), &json!(event.message()))?;
        }
        if let Some(insights) = &committed.insights {
            let kept =
                flatten(&insights.context, json!({"id": insights.id, "data": insights.data}));
            self.write("insights/insights.json", &kept)?;
        }
        self.write("committed", &json!({}))
    }

    fn write(&self, name: &str, value: &Value) -> Result<(), HandlerError> {
        let path = self.base.join(&self.module).join(name);
        let written = || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, format!("{value:#}\n"))
        };
        written().map_err(HandlerError::folder(&path, "cannot be written"))
    }
}

/// Returns the fields of a context and `others` in one object, as older Ion wrote them.
fn flatten(context: &Context, others: Value) -> Value {
    let mut all = json!(context);
    if let (Value::Object(all), Value::Object(others)) = (&mut all, others) {
        all.extend(others);
    }
    all
}

/// Makes the event of a first module, which has no event yet: the event's files are those in
/// `in/data`, and its values those in `in/eventmeta.json`. Stores the event, so that `prepare`
/// brings its files and values back.
///
/// # Errors
/// Returns an error when a file cannot be read or stored.
pub async fn make_first_event(
    plane: &DataPlane,
    folder: &ModuleFolder,
    id: Option<EventId>,
    correlation: Option<CorrelationId>,
    limits: &Limits,
) -> Result<Event, HandlerError> {
    let id = id.unwrap_or_else(EventId::random);
    let correlation = correlation.unwrap_or_else(CorrelationId::random);
    let data = folder.full_path("in/data");
    let DirectoryContent { files: names, empty: directories } =
        list_folder(&data).map_err(HandlerError::folder(&data, "cannot be read"))?;
    // Each call has its own prefix: a second call with the same id must not overwrite the files
    // that the first call's event names.
    let prefix = format!("{correlation}/{id}/{}", EventId::random().short());
    let moved = AtomicU64::new(0);
    let mut files: Vec<FileEntry> = Vec::with_capacity(names.len());
    for (n, name) in names.into_iter().enumerate() {
        let file = match folder.open_input(&format!("data/{name}")) {
            Ok(OpenedPath::File(file)) => file,
            Ok(OpenedPath::Missing) => continue,
            Ok(OpenedPath::Other(what)) => {
                return Err(HandlerError::Input { name, reason: format!("it is {what}") });
            }
            Err(error) => return Err(HandlerError::Input { name, reason: error.to_string() }),
        };
        let store = |number| {
            let key = format!("{prefix}/{n}{}/{name}", retry_suffix(number));
            let (name, file, moved) = (name.clone(), &file, &moved);
            async move {
                let reopened = file.try_clone().and_then(|mut same| same.rewind().map(|()| same));
                let same =
                    reopened.map_err(|source| UploadError::Read { path: name.clone(), source })?;
                store_open_file(&*plane.blobs, key, name, same, moved).await
            }
        };
        let stored = store_with_retries(store).await;
        let why = |error| HandlerError::Input {
            name: name.clone(),
            reason: ion_model::errors::error_chain(&error),
        };
        files.push(stored.map_err(why)?);
    }
    let first = FirstEvent {
        id,
        correlation_id: correlation,
        name: EVENT_TYPE.into(),
        parent: String::new(),
        event_type: EVENT_TYPE.into(),
        data: read_values(folder, &files, limits)?,
        directories,
        files,
    };
    let event = first.into_event(plane, &prefix).await.map_err(|error| HandlerError::Input {
        name: "in/data".into(),
        reason: ion_model::errors::error_chain(&error),
    })?;
    let created = insert_for_nobody(plane, event.clone()).await;
    created
        .map_err(|refusal| HandlerError::Rejected { name: "in/eventmeta.json".into(), refusal })?;
    Ok(event)
}

/// Reads the values in `in/eventmeta.json`, without the addresses that an earlier `prepare` added.
fn read_values(
    folder: &ModuleFolder,
    files: &[FileEntry],
    limits: &Limits,
) -> Result<Vec<KeyValue>, HandlerError> {
    let path = folder.full_path("in/eventmeta.json");
    let malformed =
        |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let read = || match folder.open_input("eventmeta.json")? {
        OpenedPath::File(file) => match read_within(&file, limits.event_bytes)? {
            Some(content) => Ok(content),
            None => Err(malformed("it is larger than an event may be")),
        },
        OpenedPath::Missing => Ok(vec![]),
        OpenedPath::Other(what) => Err(malformed(&format!("it is {what}"))),
    };
    let content = match read() {
        Ok(content) => content,
        Err(error) => return Err(HandlerError::folder(path, "cannot be read")(error)),
    };
    let mut values = match parse_within(&content, limits) {
        ParsedEventFile::Complete(file) => EventFile::into_values(file),
        ParsedEventFile::Empty => vec![],
        ParsedEventFile::Invalid(why) | ParsedEventFile::TooBig(why) => {
            return Err(HandlerError::folder(path, "cannot be read")(malformed(&why)));
        }
        ParsedEventFile::Incomplete => {
            return Err(HandlerError::folder(path, "cannot be read")(malformed("it is cut off")));
        }
    };
    let address = |pair: &KeyValue| {
        pair.value.starts_with("ion://") && files.iter().any(|file| file.name == pair.key)
    };
    values.retain(|pair| !address(pair));
    Ok(values)
}

/// Lists the files and empty folders in `folder`. The names in each folder are sorted.
fn list_folder(folder: &Path) -> std::io::Result<DirectoryContent> {
    let mut below = DirectoryContent::default();
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        let mut entries = match std::fs::read_dir(folder.join(&path)) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if entries.is_empty() && !path.is_empty() {
            below.empty.push(path.clone());
        }
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = utf8_name(&entry.file_name())?.to_owned();
            let inside = if path.is_empty() { name } else { format!("{path}/{name}") };
            if entry.file_type()?.is_dir() { todo.push(inside) } else { below.files.push(inside) }
        }
    }
    Ok(below)
}
