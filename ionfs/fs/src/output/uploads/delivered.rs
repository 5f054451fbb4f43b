//! The files of a delivery, stored for the event that it becomes.

use std::io::{self, Read as _};
use std::sync::Arc;

use futures_util::future::try_join_all;
use ion_model::event::{self, FileEntry, KeyValue, ParsedEventFile};
use ion_plane::commit::{DirectoryContent, Refusal, check_directories};
use rustix::fs::OFlags;

use super::paths::{NamedFolder, check_name, directory_content, resolve_file};
use super::{StagedUploads, UploadPlace};
use crate::{Errno, Ino, errno};

/// The file of a folder that holds the values of its event, and that is not one of its files.
const VALUES: &str = "values.json";

/// What a delivery gives its event.
#[derive(Clone, Debug, Default)]
pub(in crate::output) struct DeliveredContent {
    pub(in crate::output) files: Vec<FileEntry>,
    /// Its empty directories.
    pub(in crate::output) directories: Vec<String>,
    pub(in crate::output) values: Vec<KeyValue>,
}

impl StagedUploads {
    /// Stores a single file under the name that it has in its event. A handle may still be open,
    /// but nobody may write.
    pub(in crate::output) async fn store_delivered_file(
        &self,
        ino: Ino,
        name: &str,
        prefix: &Arc<str>,
    ) -> Result<DeliveredContent, Refusal> {
        check_name(&self.staging, name)?;
        let place = UploadPlace { path: name.to_owned(), prefix: prefix.clone() };
        let stored = self.store_for_event(ino, &place).await?;
        let files = vec![self.entry_for_event(ino, name, stored)?];
        Ok(DeliveredContent { files, ..DeliveredContent::default() })
    }

    /// Stores all files below a folder, in which nobody may change anything.
    pub(in crate::output) async fn store_delivered_folder(
        &self,
        folder: Ino,
        prefix: &Arc<str>,
    ) -> Result<DeliveredContent, Refusal> {
        let folder = NamedFolder { ino: folder, words: "the folder" };
        let found = directory_content(&self.staging, folder, "")?;
        let DirectoryContent { mut files, empty } = found.unwrap_or_default();
        let most = self.staging.limits().job_limits().event_files;
        if files.len() as u64 > most {
            return Err(Refusal::TooBig(format!("an event may name {most} files")));
        }
        check_directories(&empty).map_err(|error| Refusal::TooBig(error.to_string()))?;
        let values = match files.iter().position(|path| path == VALUES) {
            Some(at) => {
                files.remove(at);
                self.read_values(folder).await?
            }
            None => vec![],
        };
        let store = |path: &String| {
            let place = UploadPlace { path: path.clone(), prefix: prefix.clone() };
            async move {
                check_name(&self.staging, &place.path)?;
                let ino = resolve_file(&self.staging, folder, &place.path)?;
                self.wait_until_closed(ino, &place.path).await?;
                let stored = self.store_for_event(ino, &place).await?;
                self.entry_for_event(ino, &place.path, stored)
            }
        };
        let files = try_join_all(files.iter().map(store)).await?;
        Ok(DeliveredContent { files, directories: empty, values })
    }

    /// Reads the values of a folder's event.
    async fn read_values(&self, folder: NamedFolder) -> Result<Vec<KeyValue>, Refusal> {
        let unreadable =
            |source: io::Error| Refusal::Unreadable { path: VALUES.to_owned(), source };
        let ino = resolve_file(&self.staging, folder, VALUES)?;
        self.wait_until_closed(ino, VALUES).await?;
        let file = self.staging.open_file(&self.staging.lock(), ino, OFlags::RDONLY);
        let file = file.map_err(|errno| unreadable(errno.into()))?;
        let limits = *self.staging.limits().job_limits();
        let read = ion_system::run_blocking(move || {
            let mut content = Vec::new();
            file.take(limits.event_bytes + 1)
                .read_to_end(&mut content)
                .map_err(|error| errno(&error))?;
            let fits = content.len() as u64 <= limits.event_bytes;
            if fits { Ok(content) } else { Err(Errno::TOOBIG) }
        });
        let content = read.await.map_err(|errno| unreadable(errno.into()))?;
        let invalid = |why: &str| Err(Refusal::Invalid(format!("{VALUES}: {why}")));
        match event::parse_within(&content, &limits) {
            ParsedEventFile::Complete(file) if file.event_type.is_some() => {
                invalid("it has an \"eventType\"; the folder's place says the type")
            }
            ParsedEventFile::Complete(file) if file.has_files_key => {
                invalid("it has \"files\"; the event has all files of the folder")
            }
            ParsedEventFile::Complete(file) => Ok(file.data),
            ParsedEventFile::Empty => Ok(vec![]),
            ParsedEventFile::Incomplete => invalid("the JSON document is cut off"),
            ParsedEventFile::Invalid(why) => invalid(&why),
            ParsedEventFile::TooBig(why) => Err(Refusal::TooBig(format!("{VALUES}: {why}"))),
        }
    }

    /// Returns a beginning of keys for the list of an event's files, which no other list has.
    pub(in crate::output) fn list_prefix(&self, prefix: &str) -> String {
        let key = self.own_blobs.fresh_key(prefix, "");
        key.trim_end_matches('/').to_owned()
    }

    /// Forgets the blobs that an event names: they stay.
    pub(in crate::output) fn forget_named(&self, files: &[FileEntry]) {
        self.own_blobs.forget_named(files.iter().map(|entry| entry.key.as_str()));
    }
}
