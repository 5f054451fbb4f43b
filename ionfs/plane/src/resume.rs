//! Where a long walk of a command stands, noted in the plane, so that a command that was interrupted
//! goes on from there when it is started again.
//!
//! # How it works
//! While it walks, the command puts one small document again and again, at most every
//! [`NOTED_EVERY`]. The document has the options that the walk depends on: a command with other
//! options begins anew. So does one that comes later than [`KEPT_FOR`], because too much has changed
//! by then. A command that has come to its end removes the document.
//!
//! # What it never does
//! Decide what is removed or repaired: a position only says what need not be looked at again.

use std::time::{Duration, Instant};

use ion_model::clock::{self, Millis, millis};
use ion_stores::{Collection, DataPlane, StoreError, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How often a position is noted, at most. Each note is a write that is durable; what a walk has seen
/// since the last one is looked at again.
const NOTED_EVERY: Duration = Duration::from_secs(2);

/// How long a position counts.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkStart {
    /// Where an earlier one was interrupted, if one was.
    WhereInterrupted,
    /// At the beginning.
    Anew,
}

/// The note of a command's position.
#[derive(Debug)]
pub struct PositionNote {
    plane: DataPlane,
    id: String,
    options: String,
    noted: Option<Instant>,
}

/// The document of a note.
#[derive(Debug, Serialize, Deserialize)]
struct NotedPosition {
    id: String,
    options: String,
    /// When it was noted.
    at: Millis,
    position: Value,
}

/// A position that an earlier command has noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierPosition<P> {
    /// When it was noted, by the clock of the one who noted it.
    pub at: Millis,
    /// The position.
    pub position: P,
}

impl PositionNote {
    /// Opens the note of a command with these options, and reads the position of an earlier one
    /// that was interrupted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open<P: DeserializeOwned>(
        plane: &DataPlane,
        command: &str,
        options: String,
        start: WalkStart,
    ) -> Result<(Self, Option<EarlierPosition<P>>), StoreError> {
        let note =
            Self { plane: plane.clone(), id: format!("position-{command}"), options, noted: None };
        if start == WalkStart::Anew {
            return Ok((note, None));
        }
        let found = plane.documents.get(Collection::Plane, &note.id).await?;
        // Another version of Ion may have noted its position in a form that this one cannot read. Then
        // the command begins anew.
        let found: Option<NotedPosition> =
            found.and_then(|document| serde_json::from_value(document).ok());
        let is_fresh = |noted: &NotedPosition| {
            noted.options == note.options && (clock::now() - noted.at).abs() < millis(KEPT_FOR)
        };
        let earlier = found.filter(is_fresh).and_then(|noted| {
            let position = serde_json::from_value(noted.position).ok()?;
            Some(EarlierPosition { at: noted.at, position })
        });
        Ok((note, earlier))
    }

    /// Notes a position, unless one was noted a moment ago.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn write(&mut self, position: &impl Serialize) -> Result<(), StoreError> {
        if self.noted.is_some_and(|noted| noted.elapsed() < NOTED_EVERY) {
            return Ok(());
        }
        self.noted = Some(Instant::now());
        let noted = NotedPosition {
            id: self.id.clone(),
            options: self.options.clone(),
            at: clock::now(),
            position: encode(position),
        };
        self.plane.documents.put(Collection::Plane, encode(&noted), None).await
    }

    /// Removes the note: the command has come to its end.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove(self) -> Result<(), StoreError> {
        self.plane.documents.delete(Collection::Plane, &self.id, vec![]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use ion_stores::open::{StoreUrls, open};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_goes_on_only_with_the_options_of_the_one_before_and_not_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let plane = open(&StoreUrls::embedded(folder.path())).await.unwrap();
        let opened = async |options: &str, start| {
            let opened = PositionNote::open::<u32>(&plane, "walk", options.to_owned(), start).await;
            opened.unwrap()
        };
        let (mut note, earlier) = opened("a", WalkStart::WhereInterrupted).await;
        assert_eq!(earlier, None);
        note.write(&7).await.unwrap();
        // A moment later nothing is written.
        note.write(&8).await.unwrap();
        let (_, earlier) = opened("a", WalkStart::WhereInterrupted).await;
        assert_eq!(earlier.unwrap().position, 7);
        assert_eq!(opened("b", WalkStart::WhereInterrupted).await.1, None);
        assert_eq!(opened("a", WalkStart::Anew).await.1, None);
        let mut document =
            plane.documents.get(Collection::Plane, "position-walk").await.unwrap().unwrap();
        document["at"] = (clock::now() - millis(KEPT_FOR)).into();
        plane.documents.put(Collection::Plane, document, None).await.unwrap();
        assert_eq!(opened("a", WalkStart::WhereInterrupted).await.1, None);
        note.remove().await.unwrap();
        assert_eq!(plane.documents.get(Collection::Plane, "position-walk").await.unwrap(), None);
    }
}
