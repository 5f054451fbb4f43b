//! The file of rejected items: each line is one item that is not in the index, with the reason.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::batch::{Batch, Origin};
use crate::error::IndexError;
use crate::folder::JobFolder;

/// The name of the file below `out/data`.
pub(crate) const FILE_NAME: &str = "rejected.ndjson";

/// The bytes that are kept of an item that is no JSON. 4 KiB shows what it is.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// An item that the index does not get.
#[derive(Debug, Serialize)]
pub(crate) struct RejectedItem {
    /// The file, relative to `in/data`.
    file: String,
    /// The line of the item in its file.
    line: u64,
    /// What the server answered; without it the item was never sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// The server's own error, or a reason in words.
    error: Box<RawValue>,
    /// What the server was asked to do: the index and the id are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Box<RawValue>>,
    #[serde(flatten)]
    content: RejectedContent,
}

/// The item itself, as far as it can be repeated.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RejectedContent {
    /// The document.
    Item(Box<RawValue>),
    /// The beginning of an item that is no JSON.
    Text(String),
    /// The size of an item that was too large to be read.
    Bytes(u64),
}

impl RejectedContent {
    /// Returns the content of an item that may be no JSON.
    pub(crate) fn of_text(text: &[u8]) -> Self {
        match serde_json::from_slice::<&RawValue>(text) {
            Ok(item) => Self::Item(item.to_owned()),
            Err(_) => {
                let beginning = &text[..text.len().min(TEXT_BYTES_MAX)];
                Self::Text(String::from_utf8_lossy(beginning).into_owned())
            }
        }
    }
}

impl RejectedItem {
    /// Returns an item that was not sent to the server.
    pub(crate) fn unsent(origin: &Origin, reason: &str, content: RejectedContent) -> Self {
        let error = serde_json::value::to_raw_value(reason).expect("a text is JSON");
        Self {
            file: origin.file.to_string(),
            line: origin.line,
            status: None,
            error,
            action: None,
            content,
        }
    }

    /// Returns a document that the server does not take.
    pub(crate) fn refused(batch: &Batch, n: usize, status: u16, error: Box<RawValue>) -> Self {
        let (action, document, origin) = batch.lines(n);
        let json = |text: &str| RawValue::from_string(text.to_owned());
        Self {
            file: origin.file.to_string(),
            line: origin.line,
            status: Some(status),
            error,
            action: Some(json(action).expect("an action is JSON")),
            content: RejectedContent::Item(json(document).expect("a document is JSON")),
        }
    }

    /// Returns about how much memory it takes.
    pub(crate) fn size(&self) -> usize {
        let content = match &self.content {
            RejectedContent::Item(item) => item.get().len(),
            RejectedContent::Text(text) => text.len(),
            RejectedContent::Bytes(_) => 0,
        };
        content + self.error.get().len() + self.file.len()
    }

    /// Returns the reason as JSON.
    pub(crate) fn error(&self) -> &str {
        self.error.get()
    }
}

/// Writes the file of rejected items. It is made with the first of them, and has its name when the
/// job has succeeded.
#[derive(Debug)]
pub(crate) struct RejectedFile {
    draft: PathBuf,
    path: PathBuf,
    writer: Option<BufWriter<File>>,
    count: u64,
}

impl RejectedFile {
    pub(crate) fn new(folder: &JobFolder) -> Self {
        Self {
            draft: folder.output(&format!(".{FILE_NAME}")),
            path: folder.output(FILE_NAME),
            writer: None,
            count: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn add(&mut self, item: &RejectedItem) -> Result<(), IndexError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let file = File::create(&self.draft);
                let file = file.map_err(IndexError::file("written", &self.draft))?;
                self.writer.insert(BufWriter::new(file))
            }
        };
        serde_json::to_writer(&mut *writer, item)
            .map_err(std::io::Error::from)
            .and_then(|()| writer.write_all(b"\n"))
            .map_err(IndexError::file("written", &self.draft))?;
        self.count += 1;
        Ok(())
    }

    /// Closes the file and gives it its name. Returns how many items it has; with none there is no
    /// file, not even one of an earlier run.
    pub(crate) fn finish(mut self) -> Result<u64, IndexError> {
        let Some(writer) = self.writer.take() else {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(IndexError::file("removed", &self.path)(error))
                }
                _ => Ok(0),
            };
        };
        writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&self.draft, &self.path))
            .map_err(IndexError::file("written", &self.path))?;
        Ok(self.count)
    }
}

impl Drop for RejectedFile {
    /// A run that fails leaves no draft.
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::batch_of;

    #[test]
    fn each_line_has_the_item_and_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(root.path());
        folder.make_output().unwrap();
        let mut file = RejectedFile::new(&folder);
        let batch = batch_of(&["{\"a\":1}", "{\"a\": \"x\"}"]);
        let error = RawValue::from_string("{\"type\":\"t\"}".into()).unwrap();
        file.add(&RejectedItem::refused(&batch, 1, 400, error)).unwrap();
        let origin = Origin { file: "a/items.ndjson".into(), line: 7 };
        for content in [
            RejectedContent::of_text(b"[1]"),
            RejectedContent::of_text(b"{\xFF"),
            RejectedContent::Bytes(99),
        ] {
            file.add(&RejectedItem::unsent(&origin, "a reason", content)).unwrap();
        }
        assert!(!root.path().join("out/data/rejected.ndjson").exists());
        assert_eq!(file.finish().unwrap(), 4);
        let text = std::fs::read_to_string(root.path().join("out/data/rejected.ndjson")).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["item"]["a"], &lines[0]["status"]), (&"x".into(), &400.into()));
        assert_eq!((&lines[0]["error"]["type"], &lines[0]["line"]), (&"t".into(), &2.into()));
        assert_eq!(lines[0]["action"]["create"]["_index"], "i");
        assert_eq!((&lines[1]["item"][0], &lines[1]["error"]), (&1.into(), &"a reason".into()));
        assert_eq!((&lines[1]["file"], &lines[1]["line"]), (&"a/items.ndjson".into(), &7.into()));
        assert_eq!(lines[2]["text"], "{\u{fffd}");
        assert_eq!(lines[3]["bytes"], 99);
    }

    #[test]
    fn without_rejected_items_or_success_there_is_no_file() {
        let root = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(root.path());
        folder.make_output().unwrap();
        std::fs::write(root.path().join("out/data/rejected.ndjson"), "of an earlier run").unwrap();
        assert_eq!(RejectedFile::new(&folder).finish().unwrap(), 0);
        let mut failed = RejectedFile::new(&folder);
        let origin = Origin { file: "item.json".into(), line: 1 };
        let item = RejectedItem::unsent(&origin, "x", RejectedContent::Bytes(1));
        failed.add(&item).unwrap();
        drop(failed);
        let left = std::fs::read_dir(root.path().join("out/data")).unwrap().count();
        assert_eq!(left, 0);
    }
}
