//! Directory walks: predicts which files a program reads next when it reads the small files of a
//! directory one after the other.

use std::sync::Arc;

use ion_model::event::FileEntry;

use super::Ino;
use super::item::{Listing, ViewItem};

/// The largest size, in bytes, of a file that is fetched whole: when it is first read, or before.
pub(crate) const SMALL: u64 = 4 << 20;

/// The most directory walks that one mount tracks at the same time.
const WALKS_MAX: usize = 16;

/// The most names that a walk may skip at once and still count as a walk: a program may want only
/// some of the files.
const SKIPPED_MAX: usize = 8;

/// The most files and bytes fetched ahead of a walk: what keeps a remote store busy with some
/// dozens of parallel requests.
const AHEAD_FILES_MAX: usize = 128;
const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// The directories that are being walked.
#[derive(Debug, Default)]
pub(crate) struct DirectoryWalks {
    walks: Vec<DirectoryWalk>,
}

#[derive(Debug)]
struct DirectoryWalk {
    directory: Ino,
    /// The name that was read last.
    last: String,
    /// The name up to which files were fetched ahead.
    ahead: String,
    /// How many of the files fetched ahead have not been read yet.
    left: usize,
    window: usize,
}

impl DirectoryWalks {
    /// Notes that the file `name` of a directory is being read. Returns the files to fetch ahead:
    /// none, unless `name` follows the file that was read before.
    pub(crate) fn note_read(
        &mut self,
        directory: Ino,
        listing: &Listing,
        name: &str,
    ) -> Vec<Arc<FileEntry>> {
        let at = self.walks.iter().position(|walk| walk.directory == directory);
        let Some(at) = at else {
            if self.walks.len() == WALKS_MAX {
                self.walks.remove(0);
            }
            self.walks.push(DirectoryWalk::new(directory, name));
            return vec![];
        };
        // The walk that was used last stays at the end.
        let mut walk = self.walks.remove(at);
        let ahead = walk.advance(listing, name);
        self.walks.push(walk);
        ahead
    }
}

impl DirectoryWalk {
    fn new(directory: Ino, name: &str) -> Self {
        Self { directory, last: name.to_owned(), ahead: name.to_owned(), left: 0, window: 1 }
    }

    fn advance(&mut self, listing: &Listing, name: &str) -> Vec<Arc<FileEntry>> {
        if name == self.last {
            return vec![];
        }
        let passed = listing.entries_after(&self.last).take(SKIPPED_MAX + 1);
        let Some(steps) = passed.map(|(passed, _)| passed).position(|passed| passed == name) else {
            *self = Self::new(self.directory, name);
            return vec![];
        };
        self.last = name.to_owned();
        self.left = self.left.saturating_sub(steps + 1);
        // Fetch more only when half of the files fetched ahead have been read, not for every file.
        if self.left > self.window / 2 {
            return vec![];
        }
        self.window = (self.window * 2).min(AHEAD_FILES_MAX);
        let from = if self.ahead.as_str() > name { self.ahead.clone() } else { name.to_owned() };
        let mut bytes = 0;
        let mut files = Vec::new();
        for (name, item) in listing.entries_after(&from).take(self.window - self.left) {
            let ViewItem::Blob(entry) = item else { continue };
            bytes += entry.size;
            if entry.size > SMALL || bytes > AHEAD_BYTES_MAX {
                break;
            }
            name.clone_into(&mut self.ahead);
            files.push(entry.clone());
        }
        self.left += files.len();
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::checksum;

    fn directory(files: usize, size: u64) -> Listing {
        let entry = |name: &str| FileEntry {
            name: name.to_owned(),
            key: name.to_owned(),
            size,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums: checksum::of(&[]),
        };
        let items = (0..files)
            .map(|n| format!("{n:05}"))
            .map(|name| (name.clone(), ViewItem::Blob(Arc::new(entry(&name)))));
        items.collect()
    }

    #[test]
    fn a_walk_gets_each_file_once_and_ever_more_at_a_time() {
        let listing = directory(1000, 4096);
        let mut walks = DirectoryWalks::default();
        let (mut asked, mut largest) = (Vec::new(), 0);
        for (name, _) in listing.iter() {
            let ahead = walks.note_read(7, &listing, name);
            assert!(ahead.iter().all(|entry| *entry.name > *name), "only names that come later");
            largest = largest.max(ahead.len());
            asked.extend(ahead.iter().map(|entry| entry.name.clone()));
        }
        let all: Vec<&str> = listing.iter().map(|(name, _)| name).skip(2).collect();
        assert_eq!(
            asked.iter().collect::<Vec<_>>(),
            all,
            "all but the first two, each once and in order"
        );
        assert!((AHEAD_FILES_MAX / 2..=AHEAD_FILES_MAX).contains(&largest), "{largest}");
    }

    #[test]
    fn some_may_be_left_out_and_two_programs_may_walk() {
        let listing = directory(200, 4096);
        let mut walks = DirectoryWalks::default();
        let mut asked = [0, 0];
        for n in (0..200).step_by(3) {
            for (at, directory) in [3, 4].into_iter().enumerate() {
                asked[at] += walks.note_read(directory, &listing, &format!("{n:05}")).len();
            }
        }
        assert!(asked.iter().all(|asked| *asked > 150), "{asked:?}");
    }

    #[test]
    fn what_jumps_about_and_what_is_large_is_not_fetched_ahead() {
        let listing = directory(1000, 4096);
        let mut walks = DirectoryWalks::default();
        for n in 0..1000 {
            let name = format!("{:05}", n * 389 % 1000);
            assert!(walks.note_read(1, &listing, &name).is_empty());
            assert!(walks.note_read(1, &listing, &name).is_empty(), "the same again");
        }
        let large = directory(100, SMALL + 1);
        assert!(large.iter().all(|(name, _)| walks.note_read(2, &large, name).is_empty()));
        let halves = directory(100, SMALL);
        let mut first = DirectoryWalks::default();
        let most = halves.iter().map(|(name, _)| first.note_read(2, &halves, name).len()).max();
        assert!(most.is_some_and(|most| most as u64 * SMALL <= AHEAD_BYTES_MAX), "{most:?}");
    }
}
