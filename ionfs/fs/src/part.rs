//! Reading the names of a directory that may have any number of them, one part after the other.
//!
//! A handle holds one part. A position in the directory is the number of names before it. A read
//! that goes on behind the part reads the next one; a read from before it begins anew, as
//! rewinddir() and seekdir() do.
//!
//! Where no name is found for the time that a search may take, a file is listed that says so and how
//! to see the rest, and the directory ends there.

use std::sync::Arc;

use ion_plane::node::Node as Daemon;

use crate::item::{NamePages, ViewItem};
use crate::search_time::SearchTime;
use crate::view::{NextNames, View};
use crate::{Ino, Result};

/// Some names of a directory that follow each other.
#[derive(Clone, Debug)]
pub(crate) struct ListedPart {
    /// The number of names before them.
    pub(crate) first: usize,
    /// The names. None are left of the directory if there are none here.
    pub(crate) entries: Arc<[(String, ViewItem)]>,
}

impl ListedPart {
    fn end(&self) -> usize {
        self.first + self.entries.len()
    }
}

/// The part that a handle read last, and the reader of what follows.
pub(crate) struct PartReader {
    part: ListedPart,
    /// None once the directory has ended.
    rest: Option<Box<dyn NamePages>>,
}

impl std::fmt::Debug for PartReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartReader").field("first", &self.part.first).finish_non_exhaustive()
    }
}

impl PartReader {
    /// Begins before the first name.
    pub(crate) fn begin(pages: Box<dyn NamePages>) -> Self {
        let part = ListedPart { first: 0, entries: Arc::default() };
        Self { part, rest: Some(pages) }
    }

    /// Returns whether the part, or what follows it, has the names from this position on.
    pub(crate) fn can_reach(&self, place: usize) -> bool {
        place >= self.part.first
    }

    /// Returns the part that has the name at this position, or a part without names if the
    /// directory has fewer.
    pub(crate) async fn part_at(
        &mut self,
        view: &View,
        daemon: &Daemon,
        ino: Ino,
        place: usize,
    ) -> Result<ListedPart> {
        while place >= self.part.end() {
            let first = self.part.end();
            let Some(rest) = &mut self.rest else {
                return Ok(ListedPart { first, entries: Arc::default() });
            };
            let entries = match view.next_names(ino, &mut **rest, SearchTime::begin(daemon)).await?
            {
                NextNames::Names(names) => names,
                NextNames::Stopped(rest) => {
                    self.rest = None;
                    vec![rest]
                }
                NextNames::End => {
                    self.rest = None;
                    continue;
                }
            };
            self.part = ListedPart { first, entries: entries.into() };
        }
        Ok(self.part.clone())
    }
}
