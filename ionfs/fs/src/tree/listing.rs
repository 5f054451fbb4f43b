//! Listings of directories.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};

use super::{Tree, TreePart};
use crate::answer::Answer;
use crate::open::OpenInode;
use crate::output::{DOT, DOT_DOT, OUT};
use crate::view::Listing;
use crate::{Attr, Errno, FileKind, Ino, ROOT, Result};

/// What a listing reports of each name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListingDetail {
    /// Its inode and kind.
    Names,
    /// Its current attributes as well.
    Attributes,
}

/// What a listing reports of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListedEntry {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    /// The attributes; may be none if only names were requested.
    pub(crate) attr: Option<Attr>,
}

impl ListedEntry {
    fn from_attr(attr: Attr) -> Self {
        Self { ino: attr.ino, kind: attr.kind, attr: Some(attr) }
    }
}

/// A directory whose names are being read.
#[derive(Clone, Debug)]
pub(crate) enum ListedDirectory {
    /// A directory below `out/`, whose names are read from the table each time.
    Staged(Ino),
    /// A view directory, and what it held when it was last read from the start.
    View(Ino, Listing),
}

impl Tree {
    /// Prepares to read the names of an open directory from a position on. A directory below `out/`
    /// is ready at once. A view directory is listed when it is read from the start, because the
    /// kernel does not report rewinddir(); a read that goes on uses that same listing.
    pub(crate) fn list(
        self: &Arc<Self>,
        ino: Ino,
        open: &OpenInode,
        offset: u64,
    ) -> Answer<ListedDirectory> {
        let OpenInode::Directory(kept) = open else { return Answer::Now(Err(Errno::NOTDIR)) };
        let ino = match self.part(ino) {
            Ok(TreePart::Staged(_, ino)) => {
                return Answer::Now(Ok(ListedDirectory::Staged(ino)));
            }
            Ok(TreePart::View(ino)) => ino,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (tree, kept) = (self.clone(), kept.clone());
        Answer::later(async move {
            let held = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let listing = match held.filter(|_| offset != 0) {
                Some(listing) => listing,
                None => {
                    let listing = tree.view.list(ino).await?;
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.insert(listing).clone()
                }
            };
            Ok(ListedDirectory::View(ino, listing))
        })
    }

    /// Passes the entries of a directory behind position `place` of its listing to `take`, each
    /// with its own position, until `take` returns true. An entry whose attributes cannot be read
    /// is an error only if no entry was passed before it; otherwise the next request returns the
    /// error.
    pub(crate) fn list_after(
        &self,
        directory: &ListedDirectory,
        place: u64,
        wanted: ListingDetail,
        mut take: impl FnMut(u64, &OsStr, ListedEntry) -> bool,
    ) -> Result<()> {
        let (ino, parent) = match directory {
            ListedDirectory::Staged(ino) => (*ino, self.output()?.names.parent(*ino)),
            ListedDirectory::View(ino, _) => (*ino, self.view.parent(*ino)),
        };
        let mut at = place;
        while at < DOT_DOT {
            at += 1;
            let (name, inode) = if at == DOT { (".", ino) } else { ("..", parent) };
            if take(at, OsStr::new(name), self.listed_directory(inode, wanted)?) {
                return Ok(());
            }
        }
        let ListedDirectory::View(_, listing) = directory else {
            return self.list_staged_after(ino, at, wanted, take);
        };
        // In the root, `out/` stands before the entries of the view.
        let before = DOT_DOT + u64::from(ino == ROOT && self.output.is_some());
        if at < before {
            at = before;
            if take(at, OsStr::new("out"), self.listed_directory(OUT, wanted)?) {
                return Ok(());
            }
        }
        let mut next = usize::try_from(at - before).unwrap_or(usize::MAX);
        while let Some((entry, after)) = match self.view.entry_from(ino, listing, next) {
            Err(_) if at != place => None,
            found => found?,
        } {
            (next, at) = (after, after as u64 + before);
            if take(at, &entry.name, ListedEntry::from_attr(entry.attr)) {
                break;
            }
        }
        Ok(())
    }

    fn list_staged_after(
        &self,
        ino: Ino,
        place: u64,
        wanted: ListingDetail,
        mut take: impl FnMut(u64, &OsStr, ListedEntry) -> bool,
    ) -> Result<()> {
        let names = &self.output()?.names;
        match wanted {
            ListingDetail::Names => names.names_after(ino, place, |at, name, ino, kind| {
                let ino = self.view.kernel_number_of(ino).unwrap_or(ino);
                take(at, name, ListedEntry { ino, kind, attr: None })
            }),
            ListingDetail::Attributes => names.entries_after(ino, place, |at, name, attr| {
                take(at, name, ListedEntry::from_attr(self.with_kernel_number(*attr)))
            }),
        }
    }

    fn listed_directory(&self, ino: Ino, wanted: ListingDetail) -> Result<ListedEntry> {
        let attr = match wanted {
            ListingDetail::Names => None,
            ListingDetail::Attributes => Some(self.getattr(ino)?),
        };
        Ok(ListedEntry { ino, kind: FileKind::Directory, attr })
    }
}
