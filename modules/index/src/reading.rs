//! From files to batches: reads the items, and hands on what can be sent.
//!
//! At most one batch is held here, so that memory does not grow with the files.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::batch::{Batch, BatchLimits, Origin};
use crate::error::IndexError;
use crate::folder::{JobFolder, relative_name};
use crate::index_name::IndexPattern;
use crate::input::{ItemForm, ItemReader, ItemText};
use crate::item::{ItemFacts, ItemFields};
use crate::rejected::{RejectedContent, RejectedItem};
use crate::settings::RunSettings;
use crate::shape::{Shape, older_ingest};

/// The largest number of indices that a run writes to. 10,000 is 27 years of days; a pattern that
/// makes more is a mistake that would exhaust the server.
const INDICES_MAX: usize = 10_000;

/// Documents to be sent, and items of which no document can be made.
#[derive(Debug, Default)]
pub(crate) struct ReadBatch {
    pub(crate) batch: Batch,
    pub(crate) rejected: Vec<RejectedItem>,
    rejected_bytes: usize,
}

/// Makes batches of the items of files.
pub(crate) struct BatchMaker {
    input: PathBuf,
    source: String,
    fields: ItemFields,
    index: IndexPattern,
    shape: Shape,
    limits: BatchLimits,
    item_bytes_max: usize,
    /// The names of indices so far, each once in memory.
    names: HashMap<String, Arc<str>>,
    read: ReadBatch,
}

/// Why reading ends before the last item.
enum ReadingEnd {
    Failed(IndexError),
    /// The run has ended, and it knows why.
    NobodyReceives,
}

impl From<IndexError> for ReadingEnd {
    fn from(error: IndexError) -> Self {
        Self::Failed(error)
    }
}

impl BatchMaker {
    pub(crate) fn new(settings: &RunSettings, folder: &JobFolder, source: String) -> Self {
        let RunSettings { id, dates, versions, .. } = settings;
        Self {
            input: folder.input(),
            source,
            fields: ItemFields::new(id.clone(), dates.clone(), versions.clone()),
            index: settings.index.clone(),
            shape: settings.shape,
            limits: BatchLimits {
                items_max: settings.batch_items,
                bytes_max: settings.batch_bytes,
            },
            item_bytes_max: settings.item_bytes,
            names: HashMap::new(),
            read: ReadBatch::default(),
        }
    }

    /// Reads the files and hands on their batches, until all are read or nobody takes them.
    pub(crate) fn read_files(
        mut self,
        files: &[(PathBuf, ItemForm)],
        batches: mpsc::Sender<ReadBatch>,
    ) -> Result<(), IndexError> {
        for (path, form) in files {
            let file: Arc<str> = relative_name(path, &self.input).into();
            let mut reader = ItemReader::open(path, *form, self.item_bytes_max)?;
            while let Some((line, text)) = reader.next().map_err(IndexError::file("read", path))? {
                match self.add(&text, Origin { file: file.clone(), line }, &batches) {
                    Ok(()) => {}
                    Err(ReadingEnd::Failed(error)) => return Err(error),
                    Err(ReadingEnd::NobodyReceives) => return Ok(()),
                }
            }
        }
        match self.hand_on(&batches) {
            Err(ReadingEnd::Failed(error)) => Err(error),
            Ok(()) | Err(ReadingEnd::NobodyReceives) => Ok(()),
        }
    }

    /// Adds one item. A batch that has no room for it is handed on before.
    fn add(
        &mut self,
        text: &ItemText<'_>,
        origin: Origin,
        batches: &mpsc::Sender<ReadBatch>,
    ) -> Result<(), ReadingEnd> {
        let (text, facts) = match self.understand(text) {
            Ok(understood) => understood,
            Err((reason, content)) => {
                return self.reject(RejectedItem::unsent(&origin, &reason, content), batches);
            }
        };
        let shaped = self.shaped(text, &facts);
        let document = shaped.as_deref().unwrap_or(text);
        let index = self.index_of(&facts)?;
        if !self.read.batch.has_room(document.len(), self.limits) {
            self.hand_on(batches)?;
        }
        self.read.batch.push(&index, &self.source, &facts, document, origin);
        Ok(())
    }

    /// Returns the text of an item and what it says, or why no document can be made of it.
    fn understand<'a>(
        &self,
        text: &ItemText<'a>,
    ) -> Result<(&'a str, ItemFacts), (String, RejectedContent)> {
        match text {
            ItemText::Text(text) => match self.fields.read(text) {
                Ok(facts) => Ok((text, facts)),
                Err(fault) => Err((fault.to_string(), RejectedContent::of_text(text.as_bytes()))),
            },
            ItemText::NotText(bytes) => {
                Err(("the item is not UTF-8".to_owned(), RejectedContent::of_text(bytes)))
            }
            ItemText::TooLong(bytes) => Err((
                format!(
                    "the item is larger than {} bytes, the most that --item-bytes allows",
                    self.item_bytes_max
                ),
                RejectedContent::Bytes(*bytes),
            )),
        }
    }

    /// Returns the document of an item whose shape changes.
    fn shaped(&self, item: &str, facts: &ItemFacts) -> Option<String> {
        match self.shape {
            Shape::AsItIs => None,
            Shape::OlderIngest => {
                // An item that is nested too deeply to be read has none of the fields.
                let item: Value = serde_json::from_str(item).unwrap_or_default();
                let now = Timestamp::now();
                Some(older_ingest(&item, &self.source, facts.date, now).to_string())
            }
        }
    }

    fn index_of(&mut self, facts: &ItemFacts) -> Result<Arc<str>, IndexError> {
        let name = self.index.name(facts.date);
        if let Some(known) = self.names.get(&name) {
            return Ok(known.clone());
        }
        if self.names.len() >= INDICES_MAX {
            return Err(IndexError::TooManyIndices(INDICES_MAX));
        }
        let shared: Arc<str> = name.as_str().into();
        self.names.insert(name, shared.clone());
        Ok(shared)
    }

    fn reject(
        &mut self,
        item: RejectedItem,
        batches: &mpsc::Sender<ReadBatch>,
    ) -> Result<(), ReadingEnd> {
        self.read.rejected_bytes += item.size();
        self.read.rejected.push(item);
        let is_full = self.read.rejected.len() >= self.limits.items_max
            || self.read.rejected_bytes >= self.limits.bytes_max;
        if is_full { self.hand_on(batches) } else { Ok(()) }
    }

    fn hand_on(&mut self, batches: &mpsc::Sender<ReadBatch>) -> Result<(), ReadingEnd> {
        let read = std::mem::take(&mut self.read);
        batches.blocking_send(read).map_err(|_| ReadingEnd::NobodyReceives)
    }
}
