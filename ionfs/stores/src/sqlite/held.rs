//! Keeps small blobs in the log: see [`crate::held`].

use bytes::Bytes;
use ion_model::event::Event;
use serde_json::Value;

use super::bus::insert_published;
use super::documents::insert_all;
use super::{Sqlite, SyncLevel};
use crate::{Collection, Guard, Inserted, StoreError};

pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS held_blobs \
                                 (seq INTEGER PRIMARY KEY, boot TEXT NOT NULL, key TEXT NOT NULL, \
                                 bytes BLOB NOT NULL);";

/// When held blobs were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldDuring {
    /// During this boot of the machine: their files have the bytes.
    ThisBoot,
    /// During another boot: their files may have any content.
    OtherBoots,
}

/// A blob that the log holds.
#[derive(Debug)]
pub(crate) struct HeldBlob {
    pub(crate) seq: i64,
    pub(crate) key: String,
    pub(crate) bytes: Bytes,
}

impl Sqlite {
    /// In one transaction, holds the bytes that were put under these keys during the boot `boot`,
    /// inserts the documents, and after them inserts and publishes `event`. With an event, all of
    /// it is on the disk when this returns; otherwise with the next [`SyncLevel::AtOnce`] write.
    pub(crate) async fn hold_blobs(
        &self,
        boot: String,
        blobs: Vec<(String, Bytes)>,
        documents: Vec<(Collection, Value)>,
        event: Option<Event>,
        guard: Option<Guard>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let durable = if event.is_some() { SyncLevel::AtOnce } else { SyncLevel::Later };
        let written = self.write_with_level(
            durable,
            "inserting documents and small blobs",
            move |connection| {
                let mut inserted = insert_all(connection, &documents, guard.as_ref())?;
                let mut insert = connection.prepare_cached(
                    "INSERT INTO held_blobs (boot, key, bytes) VALUES (?1, ?2, ?3)",
                )?;
                for (key, bytes) in &blobs {
                    insert.execute((&boot, key, &bytes[..]))?;
                }
                if let Some(event) = event {
                    let published = insert_published(connection, event)?;
                    inserted.push(published.inserted);
                    return Ok((inserted, published.modules));
                }
                Ok((inserted, vec![]))
            },
        );
        let (inserted, modules) = written.await?;
        self.arrivals.ring(modules.iter().map(String::as_str));
        Ok(inserted)
    }

    /// Returns the oldest held blobs: those that were put during the boot `boot`, or those of other
    /// boots.
    pub(crate) async fn list_held_blobs(
        &self,
        boot: &str,
        of: HeldDuring,
        limit: usize,
    ) -> Result<Vec<HeldBlob>, StoreError> {
        let boot = boot.to_owned();
        self.read("reading small blobs", move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT seq, key, bytes FROM held_blobs WHERE (boot = ?1) = ?2 ORDER BY seq LIMIT \
                 ?3",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = select.query_map((boot, of == HeldDuring::ThisBoot, limit), |row| {
                Ok(HeldBlob {
                    seq: row.get(0)?,
                    key: row.get(1)?,
                    bytes: row.get::<_, Vec<u8>>(2)?.into(),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Removes blobs from the log after their files have become durable.
    pub(crate) async fn remove_held_blobs(&self, blobs: &[HeldBlob]) -> Result<(), StoreError> {
        let rows: Vec<(i64, String)> =
            blobs.iter().map(|blob| (blob.seq, blob.key.clone())).collect();
        self.write_with_level(
            SyncLevel::Later,
            "removing small blobs from the log",
            move |connection| {
                // The key is compared too: another process may already have removed the blob, and
                // then SQLite may reuse its number.
                let mut delete = connection
                    .prepare_cached("DELETE FROM held_blobs WHERE seq = ?1 AND key = ?2")?;
                for row in rows {
                    delete.execute(row)?;
                }
                Ok(())
            },
        )
        .await
    }
}
