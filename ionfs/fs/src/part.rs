//! Reading the names of a directory that may have any number of them, one part after the other.
//!
//! A handle holds one part. A position in the directory is the number of names before it. A read
//! that goes on behind the part reads the next one.
//!
//! Where no name is found for the time that a search may take, a file is listed that says so and how
//! to see the rest, and the directory ends there.
//!
//! # Going back
//! telldir() and seekdir() lead back to a part that is no longer held. Of each part, a handle keeps
//! where it begins and the hashes of its names, so it reads the part again and gives each name its
//! former position. A name that was there all the time has one position, whatever came or went
//! beside it. What has come meanwhile is not listed. A read from the start, as after rewinddir(),
//! begins anew.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use ion_plane::node::Node as Daemon;

use crate::item::{NamePages, ViewItem};
use crate::search_time::SearchTime;
use crate::view::{NextNames, View};
use crate::{Ino, Result};

/// To how many parts a handle can go back: a million names of most directories. Each takes up to 3
/// KiB. Further back, positions are counted anew from the start.
const PASSED_MAX: usize = 2048;

/// A name and its position.
#[derive(Clone, Debug)]
pub(crate) struct ListedName {
    pub(crate) place: usize,
    pub(crate) name: String,
    pub(crate) item: ViewItem,
}

/// Some names of a directory that follow each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListedPart {
    first: usize,
    /// The position behind the part.
    end: usize,
    /// The names, by their positions. None are left of the directory if there are none here.
    pub(crate) entries: Arc<[ListedName]>,
}

impl ListedPart {
    fn new(first: usize, names: Vec<(String, ViewItem)>) -> Self {
        let end = first + names.len();
        let names = names.into_iter().zip(first..);
        let entries = names.map(|((name, item), place)| ListedName { place, name, item }).collect();
        Self { first, end, entries }
    }

    /// Returns the names from this position on.
    pub(crate) fn entries_from(&self, place: usize) -> &[ListedName] {
        &self.entries[self.entries.partition_point(|entry| entry.place < place)..]
    }

    fn contains(&self, place: usize) -> bool {
        self.first <= place && place < self.end
    }
}

/// A part that was read.
struct PassedPart {
    first: usize,
    /// The hashes of its names.
    hashes: Box<[u32]>,
    /// Reads the part again.
    reader: Box<dyn NamePages>,
}

impl PassedPart {
    fn end(&self) -> usize {
        self.first + self.hashes.len()
    }
}

/// The part that a handle read last, and how to read the others.
pub(crate) struct PartReader {
    part: ListedPart,
    /// The first part, which is held: it begins at no name, so that another reading of it would begin
    /// with what has come meanwhile.
    first: Option<ListedPart>,
    /// The last parts up to where the directory was read, the held one among them.
    passed: VecDeque<PassedPart>,
    /// The position up to which the directory was read.
    end: usize,
    /// Reads what follows; none once the directory has ended.
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
        Self {
            part: ListedPart::default(),
            first: None,
            passed: VecDeque::new(),
            end: 0,
            rest: Some(pages),
        }
    }

    /// Returns whether the names from this position on can be read.
    pub(crate) fn can_reach(&self, place: usize) -> bool {
        let held = [Some(&self.part), self.first.as_ref()];
        let is_held = held.into_iter().flatten().any(|part| part.contains(place));
        is_held || self.passed.front().is_none_or(|passed| passed.first <= place)
    }

    /// Returns the part that has the name at this position or, if that is gone, the one after it;
    /// a part without names if the directory ends before.
    pub(crate) async fn part_at(
        &mut self,
        view: &View,
        daemon: &Daemon,
        ino: Ino,
        mut place: usize,
    ) -> Result<ListedPart> {
        loop {
            if self.part.contains(place) {
                if !self.part.entries_from(place).is_empty() {
                    return Ok(self.part.clone());
                }
                place = self.part.end;
            }
            if place < self.end {
                self.part = self.read_again(view, daemon, ino, place).await?;
            } else if !self.read_next(view, daemon, ino).await? {
                return Ok(ListedPart::new(self.end, vec![]));
            }
        }
    }

    /// Reads the part behind all others. Returns whether there is one.
    async fn read_next(&mut self, view: &View, daemon: &Daemon, ino: Ino) -> Result<bool> {
        let Some(rest) = &mut self.rest else { return Ok(false) };
        let reader = rest.bookmark();
        let names = match view.next_names(ino, &mut **rest, SearchTime::begin(daemon)).await? {
            NextNames::Names(names) => names,
            NextNames::Stopped(file) => {
                self.rest = None;
                vec![file]
            }
            NextNames::End => {
                self.rest = None;
                return Ok(false);
            }
        };
        let hashes = names.iter().map(|(name, _)| hash_of(name)).collect();
        self.part = ListedPart::new(self.end, names);
        self.end = self.part.end;
        if self.first.is_none() {
            self.first = Some(self.part.clone());
        }
        if self.passed.len() == PASSED_MAX {
            self.passed.pop_front();
        }
        self.passed.push_back(PassedPart { first: self.part.first, hashes, reader });
        Ok(true)
    }

    /// Reads a former part again.
    async fn read_again(
        &mut self,
        view: &View,
        daemon: &Daemon,
        ino: Ino,
        place: usize,
    ) -> Result<ListedPart> {
        if let Some(first) = self.first.as_ref().filter(|first| first.contains(place)) {
            return Ok(first.clone());
        }
        let at = self.passed.partition_point(|part| part.end() <= place);
        let wanted = &self.passed[at];
        let (first, end, mut reader) = (wanted.first, wanted.end(), wanted.reader.bookmark());
        let places = wanted.hashes.iter().copied().zip(wanted.first..);
        let mut places: HashMap<u32, usize> = places.collect();
        let mut entries = Vec::with_capacity(places.len());
        let time = SearchTime::begin(daemon);
        while !places.is_empty() {
            let names = match view.next_names(ino, &mut *reader, time).await? {
                NextNames::Names(names) => names,
                NextNames::Stopped(file) => vec![file],
                NextNames::End => break,
            };
            let before = entries.len();
            for (name, item) in names {
                if let Some(place) = places.remove(&hash_of(&name)) {
                    entries.push(ListedName { place, name, item });
                }
            }
            // The names that are still missing are gone: these come after them.
            if entries.len() == before {
                break;
            }
        }
        entries.sort_by_key(|entry| entry.place);
        Ok(ListedPart { first, end, entries: entries.into() })
    }
}

fn hash_of(name: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    // The lower half is as good a hash.
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use async_trait::async_trait;
    use ion_plane::node::NodeSettings;
    use ion_stores::DataPlane;

    use super::*;
    use crate::item::NamesResult;
    use crate::reads::ReadLog;
    use crate::{FOREVER, ROOT};

    /// The names of a directory, which may change, in their reversed order and three at a time.
    #[derive(Clone)]
    struct Shelf {
        names: Arc<Mutex<Vec<String>>>,
        last: Option<String>,
    }

    #[async_trait]
    impl NamePages for Shelf {
        async fn next(&mut self) -> NamesResult {
            let mut names = self.names.lock().unwrap().clone();
            names.sort_unstable_by(|one, other| other.cmp(one));
            names.retain(|name| self.last.as_ref().is_none_or(|last| name < last));
            names.truncate(3);
            self.last = names.last().cloned().or(self.last.take());
            let item = ViewItem::Text("".into(), 0);
            let named = names.into_iter().map(|name| (name, item.clone())).collect::<Vec<_>>();
            Ok((!named.is_empty()).then_some(named))
        }

        fn bookmark(&self) -> Box<dyn NamePages> {
            Box::new(self.clone())
        }

        fn rest(&self) -> (String, ViewItem) {
            ("MORE".to_owned(), ViewItem::Text("".into(), 0))
        }
    }

    /// Reads from a position to the end: each name with its position.
    async fn read_from(
        reader: &mut PartReader,
        view: &View,
        node: &Daemon,
        mut place: usize,
    ) -> Vec<(usize, String)> {
        let mut read = Vec::new();
        loop {
            let part = reader.part_at(view, node, ROOT, place).await.unwrap();
            let Some(entry) = part.entries_from(place).first() else { return read };
            read.push((entry.place, entry.name.clone()));
            place = entry.place + 1;
        }
    }

    #[tokio::test]
    async fn a_name_keeps_its_position_whatever_comes_and_goes_beside_it() {
        let home = tempfile::tempdir().unwrap();
        let settings = NodeSettings {
            read_deadline: Duration::from_secs(600),
            ..NodeSettings::new(home.path().join("home"))
        };
        let node = Daemon::new(DataPlane::in_memory().unwrap(), settings).unwrap();
        let names: Vec<String> = (10..40).map(|n| format!("n{n}")).collect();
        let shelf = Shelf { names: Arc::new(Mutex::new(names)), last: None };
        let (begin, names) = (shelf.clone(), shelf.names.clone());
        let none = |_| std::future::ready(Ok(None));
        let root = ViewItem::paged(FOREVER, 0, move || Box::new(begin.clone()), none);
        let view = View::new(root, ReadLog::default());
        let mut reader = PartReader::begin(Box::new(shelf));
        let all = read_from(&mut reader, &view, &node, 0).await;
        assert_eq!(all.len(), 30);
        assert_eq!((all[0].1.as_str(), all[29].1.as_str()), ("n39", "n10"));
        assert_eq!(read_from(&mut reader, &view, &node, 7).await, all[7..]);

        // Names come at the beginning, in the middle and at the end, and others go: one of them is
        // the last of a part, and three are a whole part.
        let gone = ["n38", "n34", "n30", "n29", "n28", "n11"];
        names.lock().unwrap().retain(|name| !gone.contains(&name.as_str()));
        let come = ["n99", "n98", "n97", "n96", "n35x", "n20x", "n20y", "n00"];
        names.lock().unwrap().extend(come.map(str::to_owned));
        for place in [29, 15, 4, 10, 1, 27, 0, 9] {
            let read = read_from(&mut reader, &view, &node, place).await;
            // The first part is held as it was.
            let is_there = |name: &str| name == "n38" || !gone.contains(&name);
            let expected: Vec<_> =
                all[place..].iter().filter(|(_, name)| is_there(name)).cloned().collect();
            assert_eq!(read, expected, "from {place}");
        }
    }
}
