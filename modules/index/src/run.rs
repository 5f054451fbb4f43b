//! A run: every item of an event, from its file to its index.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::aliases::add_alias;
use crate::error::IndexError;
use crate::folder::JobFolder;
use crate::input::{ItemForm, find_item_files};
use crate::reading::{BatchMaker, ReadBatch};
use crate::rejected::{RejectedFile, RejectedItem};
pub use crate::report::Report;
use crate::send::{BatchOutcome, Counts, send_batch};
use crate::server::Server;
use crate::settings::RunSettings;
use crate::templates::Template;

/// Writes every item of an event into its index, or into `rejected.ndjson`.
///
/// Flow: templates are put; the files are read line by line into batches, of which a few are under
/// way at a time; the indices get their alias; the file of rejected items, its event and the
/// insights are written.
///
/// After a crash, or a run that failed: nothing was published, and running the job again sends all
/// items again, which the server recognizes.
///
/// # Errors
/// When a file cannot be read, or the server refuses the documents or is unavailable for too long.
pub async fn run(settings: RunSettings, stop: CancellationToken) -> Result<Report, IndexError> {
    let begun = Instant::now();
    let folder = JobFolder::new(&settings.folder);
    let source = match &settings.source {
        Some(source) => source.clone(),
        None => folder.source()?,
    };
    let templates: Vec<_> =
        settings.templates.iter().map(|path| Template::read(path)).collect::<Result<_, _>>()?;
    let files = find_item_files(&folder.input())?;
    let server = Server::connect(&settings.server)?;
    folder.make_output()?;
    for template in &templates {
        template.put(&server, settings.retry, &stop).await?;
    }
    let mut run = Run {
        rejected: RejectedFile::new(&folder),
        items: 0,
        counts: Counts::default(),
        indices: BTreeSet::new(),
    };
    let reading = BatchMaker::new(&settings, &folder, source.clone());
    run.send_all(&server, reading, files, &settings, &stop).await?;
    if let Some(alias) = &settings.alias {
        add_alias(&server, alias, &run.indices, settings.retry, &stop).await?;
    }
    let report = Report {
        source,
        items: run.items,
        counts: run.counts,
        rejected: run.rejected.finish()?,
        indices: run.indices.len(),
        took: begun.elapsed(),
    };
    report.publish_rejected(&folder, &settings.rejected_event)?;
    report.keep_insights(&folder)?;
    Ok(report)
}

/// What has been done so far.
struct Run {
    rejected: RejectedFile,
    items: u64,
    counts: Counts,
    indices: BTreeSet<Arc<str>>,
}

impl Run {
    /// Reads all files and sends all batches. A failure ends everything that is under way.
    async fn send_all(
        &mut self,
        server: &Server,
        reading: BatchMaker,
        files: Vec<(PathBuf, ItemForm)>,
        settings: &RunSettings,
        stop: &CancellationToken,
    ) -> Result<(), IndexError> {
        // One batch waits while the others are under way. More would only take memory.
        let (sender, mut batches) = mpsc::channel::<ReadBatch>(1);
        let reader = tokio::task::spawn_blocking(move || reading.read_files(&files, sender));
        let mut sending = JoinSet::new();
        let mut is_reading = true;
        while is_reading || !sending.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return Err(IndexError::Stopped),
                Some(sent) = sending.join_next() => {
                    let outcome: BatchOutcome = sent.map_err(IndexError::Task)??;
                    self.counts.add(outcome.counts);
                    self.indices.extend(outcome.indices);
                    self.reject(&outcome.rejected)?;
                }
                read = batches.recv(), if is_reading && sending.len() < settings.in_flight => {
                    let Some(read) = read else {
                        is_reading = false;
                        continue;
                    };
                    self.items += (read.batch.len() + read.rejected.len()) as u64;
                    self.reject(&read.rejected)?;
                    if !read.batch.is_empty() {
                        let (server, stop, retry) = (server.clone(), stop.clone(), settings.retry);
                        sending.spawn(async move {
                            send_batch(&server, read.batch, retry, &stop).await
                        });
                    }
                }
            }
        }
        reader.await.map_err(IndexError::Task)?
    }

    fn reject(&mut self, items: &[RejectedItem]) -> Result<(), IndexError> {
        for item in items {
            if self.rejected.is_empty() {
                tracing::warn!("an item is rejected, the first of this run: {}", item.error());
            }
            self.rejected.add(item)?;
        }
        Ok(())
    }
}
