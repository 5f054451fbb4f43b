//! Uploaded files: each is staged on this host's disk as fast as its sender sends, and then stored
//! like any file that a job writes.
//!
//! Files are not streamed to the store, because a slow sender would hold a connection and buffers
//! of the store. A staged file has no name on the disk, so a killed gateway leaves nothing there.
//! Its checksums are computed as it arrives and compared with those of the bytes read back from the
//! disk.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::http::header::CONTENT_DISPOSITION;
use bytes::Bytes;
use futures_util::Stream;
use ion_model::checksum::BlockChecksummer;
use ion_model::errors::error_chain;
use ion_model::event::{FileEntry, KeyValue, clean_path};
use ion_model::text::quote;
use ion_plane::commit::FileNames;
use ion_plane::upload::retry_suffix;
use multer::{Constraints, Field, Multipart, SizeLimit};
use tokio::io::AsyncWriteExt as _;

use super::SharedState;
use super::body::{BodyError, IncomingBody, MemoryReservation};
use super::disposition::Disposition;
use super::encoding;
use super::problem::{Problem, ProblemKind};

/// The maximum bytes that may arrive before the parser of forms returns anything. The parser holds
/// a part's head, or what comes before the first part, in memory until that ends. Pieces of 64 KiB
/// arrive while it looks for the end of a head, so the limit is larger than any sensible head.
const HEAD_MAX: u64 = 1 << 20;

/// The files of one event, stored as blobs below a prefix of their own.
pub(super) struct Uploads {
    gate: SharedState,
    prefix: String,
    entries: Vec<FileEntry>,
    names: FileNames,
    /// The memory reserved for the values of a form, until its event is committed: many forms may
    /// arrive slowly at once.
    values: MemoryReservation,
    /// Whether no event names the blobs, so that they are removed on drop.
    unnamed: bool,
}

impl Uploads {
    /// Returns an empty set of uploads. No other request may store anything below `prefix`.
    pub(super) fn new(gate: &SharedState, prefix: String) -> Self {
        let values = gate.room.new_reservation();
        Self {
            gate: gate.clone(),
            prefix,
            entries: vec![],
            names: FileNames::default(),
            values,
            unnamed: true,
        }
    }

    /// Returns the prefix of the blobs.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the entries of the stored files.
    pub(super) fn entries(&self) -> &[FileEntry] {
        &self.entries
    }

    /// Marks the blobs as named by an event: from now on they are kept.
    pub(super) fn mark_named(&mut self) {
        self.unnamed = false;
    }

    /// Marks the blobs as not named by any event: they are removed on drop.
    pub(super) fn mark_unnamed(&mut self) {
        self.unnamed = true;
    }

    /// Stages and stores the file `name` from its pieces.
    async fn store_file(
        &mut self,
        name: String,
        pieces: &mut impl FilePieces,
    ) -> Result<(), Problem> {
        let limits = &self.gate.node.settings.limits;
        let too_long = name.len() as u64 > limits.path_bytes
            || name.split('/').count() as u64 > limits.path_depth;
        if too_long {
            let detail = format!(
                "file {} has a name of more than {} bytes or {} parts",
                quote(&name),
                limits.path_bytes,
                limits.path_depth
            );
            return Err(Problem::new(ProblemKind::Refused, detail));
        }
        let named = self.names.add(&name);
        named.map_err(|clash| Problem::new(ProblemKind::Refused, clash.to_string()))?;
        if self.entries.len() as u64 >= limits.event_files {
            return Err(Problem::new(
                ProblemKind::TooBig,
                format!("an event may name {} files", limits.event_files),
            ));
        }
        let disk = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let detail = format!(
                    "the gateway's disk has no room for file {name:?}; send it again later"
                );
                Problem::new(ProblemKind::DiskFull, detail)
            }
            _ => Problem::new(
                ProblemKind::Internal,
                format!("file {name:?} cannot be staged: {error}"),
            ),
        };
        let folder = self.gate.staging.clone();
        let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
        let file = file.map_err(io::Error::other).and_then(|made| made).map_err(disk)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut sums = BlockChecksummer::default();
        while let Some(piece) = pieces.next().await? {
            sums.update(&piece);
            file.write_all(&piece).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        let at = format!("{}/{}", self.prefix, self.entries.len());
        let key = |number| format!("{at}{}/{name}", retry_suffix(number));
        let entry = self.gate.node.store_file(key, name.clone(), file.into_std().await).await?;
        let damaged = entry.checksums != sums.finish();
        self.entries.push(entry);
        if damaged {
            let detail = format!(
                "the gateway's disk returned other bytes for file {name:?} than were written; send \
                 it again"
            );
            return Err(Problem::new(ProblemKind::Internal, detail));
        }
        Ok(())
    }

    /// Stores a body as the file `name`.
    pub(super) async fn store_body(
        &mut self,
        name: &str,
        mut body: IncomingBody,
    ) -> Result<(), Problem> {
        self.store_file(name.to_owned(), &mut body).await
    }

    /// Stores bytes from memory as the file `name`.
    pub(super) async fn store_bytes(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), Problem> {
        self.store_file(name.to_owned(), &mut Some(Bytes::from(bytes))).await
    }

    /// Reads a form: stores its files, and returns its fields as values.
    pub(super) async fn read_form(
        &mut self,
        body: IncomingBody,
        boundary: &str,
    ) -> Result<Vec<KeyValue>, Problem> {
        // `body` limits the size of the whole form.
        let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(u64::MAX));
        let since = Arc::new(AtomicU64::new(0));
        let body = HeadLimitedBody { body: Box::pin(body.into_pieces()), since: since.clone() };
        let mut form = Multipart::with_constraints(body, boundary, limits);
        let (mut values, mut value_bytes) = (Vec::new(), 0);
        while let Some(field) = form.next_field().await.map_err(form_problem)? {
            since.store(0, Ordering::Relaxed);
            let mut field = FormPart { field, since: &since };
            encoding::check_part(field.field.headers())?;
            let header = field.field.headers().get(CONTENT_DISPOSITION);
            let called =
                header.map(|header| Disposition::parse(header.as_bytes())).unwrap_or_default();
            match (called.file_name, called.name) {
                // A browser sends an empty file name when no file was chosen.
                (Some(name), _) if name.is_empty() => while field.next().await?.is_some() {},
                (Some(name), _) => {
                    let path = clean_path(&name).ok_or_else(|| {
                        let name = quote(&name);
                        Problem::new(
                            ProblemKind::Refused,
                            format!("{name} is not a path below the event's files"),
                        )
                    })?;
                    self.store_file(path, &mut field).await?;
                }
                (None, Some(key)) if !key.is_empty() => {
                    let value = self.read_value(&key, &mut field, &mut value_bytes).await?;
                    values.push(KeyValue { key, value });
                }
                (None, _) => {
                    let detail = "a part of the form has neither a name nor a file name";
                    return Err(Problem::new(ProblemKind::Malformed, detail));
                }
            }
            if values.len() as u64 > self.gate.node.settings.limits.event_values {
                let most = self.gate.node.settings.limits.event_values;
                return Err(Problem::new(
                    ProblemKind::TooBig,
                    format!("an event may have {most} values"),
                ));
            }
        }
        Ok(values)
    }

    async fn read_value(
        &mut self,
        key: &str,
        field: &mut impl FilePieces,
        taken: &mut u64,
    ) -> Result<String, Problem> {
        let most = self.gate.node.settings.limits.event_value_bytes;
        let mut text = Vec::new();
        self.values.add(key.len())?;
        *taken += key.len() as u64;
        while let Some(piece) = field.next().await? {
            *taken += piece.len() as u64;
            if *taken > most {
                let key = quote(key);
                let detail = format!(
                    "the values of an event may have {most} bytes in all; send {key} as a file"
                );
                return Err(Problem::new(ProblemKind::TooBig, detail));
            }
            self.values.add(piece.len())?;
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).map_err(|_| {
            Problem::new(
                ProblemKind::Refused,
                format!("value {} is not UTF-8; send it as a file", quote(key)),
            )
        })
    }
}

impl Drop for Uploads {
    /// Removes the blobs that no event names; if that fails, `ion gc` removes them.
    fn drop(&mut self) {
        if !self.unnamed || self.entries.is_empty() {
            return;
        }
        let (plane, entries) = (self.gate.node.plane.clone(), std::mem::take(&mut self.entries));
        self.gate.tasks.spawn(async move {
            for entry in entries {
                if let Err(error) = plane.blobs.delete(&entry.key).await {
                    tracing::warn!(
                        key = entry.key,
                        error = error_chain(&error),
                        "a blob that no event names cannot be removed; `ion gc` removes it"
                    );
                }
            }
        });
    }
}

/// A source of a file's bytes, read piece by piece.
trait FilePieces: Send {
    /// Returns the next piece, or none at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Problem>> + Send;
}

impl FilePieces for IncomingBody {
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        Ok(IncomingBody::next(self).await?)
    }
}

impl FilePieces for Option<Bytes> {
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        Ok(self.take())
    }
}

/// One part of a form.
struct FormPart<'f> {
    field: Field<'f>,
    since: &'f AtomicU64,
}

impl FilePieces for FormPart<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let piece = self.field.chunk().await.map_err(form_problem)?;
        self.since.store(0, Ordering::Relaxed);
        Ok(piece)
    }
}

/// A form's body that fails when the parser of forms holds too many bytes without returning
/// anything.
struct HeadLimitedBody {
    body: Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>,
    since: Arc<AtomicU64>,
}

/// The reasons a form's body fails. The parser of forms passes them through.
#[derive(Debug, thiserror::Error)]
enum FormError {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("a part of the form has a head of more than {HEAD_MAX} bytes")]
    Head,
}

impl Stream for HeadLimitedBody {
    type Item = Result<Bytes, FormError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The check comes before this piece is counted: a piece may have any length.
        if self.since.load(Ordering::Relaxed) > HEAD_MAX {
            return Poll::Ready(Some(Err(FormError::Head)));
        }
        let next = self.body.as_mut().poll_next(context);
        if let Poll::Ready(Some(Ok(piece))) = &next {
            self.since.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        next.map(|piece| piece.map(|piece| piece.map_err(FormError::from)))
    }
}

fn form_problem(error: multer::Error) -> Problem {
    let malformed = |why: String| {
        Problem::new(ProblemKind::Malformed, format!("the form cannot be read: {why}"))
    };
    match error {
        multer::Error::StreamReadFailed(source) => match source.downcast::<FormError>() {
            Ok(passed) => match *passed {
                FormError::Body(error) => error.into(),
                error @ FormError::Head => Problem::new(ProblemKind::TooBig, error.to_string()),
            },
            Err(source) => malformed(source.to_string()),
        },
        error => malformed(error_chain(&error)),
    }
}

/// Returns the staging folder of a gateway, below a home.
pub(super) fn staging_folder(home: &std::path::Path) -> PathBuf {
    home.join("gateway")
}
