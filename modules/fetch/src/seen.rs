//! Which items a source has seen, and which of those it is shown are to be published.
//!
//! An item is published if and only if it is remembered for the first time, or anew after a change.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use jiff::Timestamp;

use crate::feed::ItemId;

/// How many readings of a source an item may be missing from before it is forgotten. Some feeds are
/// served by several machines, of which one is behind: fewer publish its items twice, more keep ids
/// that never come back.
pub(crate) const MISSING_MAX: u32 = 10;

/// How much of what is there the first run publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Nothing: only what comes later.
    New,
    /// Everything.
    All,
    /// So many of the newest.
    Newest(usize),
}

impl std::str::FromStr for First {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "new" => Ok(Self::New),
            "all" => Ok(Self::All),
            number => match number.parse() {
                Ok(number) => Ok(Self::Newest(number)),
                Err(_) => Err(format!("{number:?} is not \"new\", \"all\" or a number")),
            },
        }
    }
}

/// An item that a source shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: ItemId,
    /// A hash of what it says.
    pub fingerprint: String,
    /// Its date.
    pub date: Option<Timestamp>,
}

/// What is to be published.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// How much of what is there the first run publishes.
    pub first: First,
    /// Whether an item that was changed is published again.
    pub updates: bool,
    /// How many items one run publishes. The next runs publish the others.
    pub most: usize,
}

/// An item to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its place among those shown.
    pub index: usize,
    /// Whether it was published before, and has been changed.
    pub is_update: bool,
}

/// The items that a source has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenItems(HashMap<ItemId, Seen>);

/// What is remembered of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    fingerprint: String,
    /// How many readings in a row it was missing from.
    missing: u32,
}

/// Which items are published, and whether all that are new are among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What is published.
    pub publish: Vec<Publication>,
    /// Whether some are left to the next run.
    pub is_partial: bool,
}

impl SeenItems {
    /// Reads the lines that [`SeenItems::lines`] wrote. A line that is damaged is passed over.
    pub fn read(text: &str) -> Self {
        let mut all = HashMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(id), Some(fingerprint)) =
                (words.next().and_then(ItemId::parse), words.next())
            else {
                continue;
            };
            let missing = words.next().and_then(|count| count.parse().ok()).unwrap_or_default();
            all.insert(id, Seen { fingerprint: fingerprint.to_owned(), missing });
        }
        Self(all)
    }

    /// Returns the items, one line for each: id, fingerprint, missed readings.
    pub fn lines(&self) -> String {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(id, _)| *id);
        let mut lines = String::with_capacity(all.len() * 56);
        for (id, seen) in all {
            let _ = writeln!(lines, "{id} {} {}", seen.fingerprint, seen.missing);
        }
        lines
    }

    /// Whether the item is remembered.
    pub fn has(&self, id: &ItemId) -> bool {
        self.0.contains_key(id)
    }

    /// Returns how many items are remembered.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no item is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets an item that could not be published, so that the next run publishes it.
    pub fn forget(&mut self, id: &ItemId) {
        self.0.remove(id);
    }

    /// Remembers the items that the source shows, and returns those to publish. `is_first` says
    /// that the source was not read before.
    pub fn choose(&mut self, items: &[Shown], choice: &Choice, is_first: bool) -> Chosen {
        let mut shown = HashSet::new();
        // Of two items with one id, the first counts.
        let items: Vec<(usize, &Shown)> =
            items.iter().enumerate().filter(|(_, item)| shown.insert(&item.id)).collect();
        let mut publish: Vec<Publication> = items
            .iter()
            .filter_map(|(index, item)| match self.0.get(&item.id) {
                None => Some(Publication { index: *index, is_update: false }),
                Some(seen) => (choice.updates && seen.fingerprint != item.fingerprint)
                    .then_some(Publication { index: *index, is_update: true }),
            })
            .collect();
        if is_first {
            publish.retain(|one| !one.is_update);
            keep_newest(&mut publish, &items, choice.first);
        }
        // The last items are the oldest, and the next that the source stops showing.
        let deferred: HashSet<usize> = if publish.len() > choice.most {
            publish.drain(..publish.len() - choice.most).map(|one| one.index).collect()
        } else {
            HashSet::new()
        };
        for (id, seen) in &mut self.0 {
            seen.missing = if shown.contains(id) { 0 } else { seen.missing + 1 };
        }
        self.0.retain(|_, seen| seen.missing <= MISSING_MAX);
        for (_, item) in items.iter().filter(|(index, _)| !deferred.contains(index)) {
            let seen = Seen { fingerprint: item.fingerprint.clone(), missing: 0 };
            self.0.insert(item.id.clone(), seen);
        }
        Chosen { publish, is_partial: !deferred.is_empty() }
    }
}

/// Keeps what the first run publishes.
fn keep_newest(publish: &mut Vec<Publication>, items: &[(usize, &Shown)], first: First) {
    let count = match first {
        First::All => return,
        First::New => 0,
        First::Newest(count) => count,
    };
    let dates: HashMap<usize, Option<Timestamp>> =
        items.iter().map(|(index, item)| (*index, item.date)).collect();
    let mut newest: Vec<usize> = publish.iter().map(|one| one.index).collect();
    // Without a date for each, the order of the feed says which are new.
    if newest.iter().all(|index| dates[index].is_some()) {
        newest.sort_by_key(|index| std::cmp::Reverse(dates[index]));
    }
    newest.truncate(count);
    publish.retain(|one| newest.contains(&one.index));
}
