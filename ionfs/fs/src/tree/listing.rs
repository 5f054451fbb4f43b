//! Listings of directories.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};

use super::{Tree, TreePart};
use crate::answer::Answer;
use crate::item::Listing;
use crate::open::{OpenInode, OpenListing};
use crate::output::{DOT, DOT_DOT, OUT};
use crate::part::{ListedName, ListedPart, PartReader};
use crate::{Attr, Errno, FileKind, Ino, ROOT, Result};

/// The inode number of a name that was listed without its attributes. The name has a number only
/// once it is looked up. The kernel's own number for this case is the same.
const UNKNOWN: Ino = 0xffff_ffff;

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
    /// A view directory of any number of names, and those that are read now.
    Part(Ino, ListedPart),
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
            Ok(TreePart::Staged(output, ino)) if output.is_inbox_root(ino) && offset == 0 => {
                let output = output.clone();
                return Answer::later(async move {
                    output.make_type_folders().await?;
                    Ok(ListedDirectory::Staged(ino))
                });
            }
            Ok(TreePart::Staged(_, ino)) => {
                return Answer::Now(Ok(ListedDirectory::Staged(ino)));
            }
            Ok(TreePart::View(ino)) => ino,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (tree, kept) = (self.clone(), kept.clone());
        Answer::later(async move {
            let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
            let held = lock().take().filter(|_| offset != 0);
            let (open, listed) = tree.list_view(ino, held, offset).await?;
            *lock() = Some(open);
            Ok(listed)
        })
    }

    /// Lists a view directory from a position on. Returns what its handle holds from now on.
    async fn list_view(
        &self,
        ino: Ino,
        held: Option<OpenListing>,
        offset: u64,
    ) -> Result<(OpenListing, ListedDirectory)> {
        let place = usize::try_from(offset.saturating_sub(DOT_DOT)).unwrap_or(usize::MAX);
        let mut reader = match held {
            Some(OpenListing::Whole(listing)) => {
                let listed = ListedDirectory::View(ino, listing.clone());
                return Ok((OpenListing::Whole(listing), listed));
            }
            Some(OpenListing::Part(reader)) if reader.can_reach(place) => reader,
            _ => match self.view.pages(ino)? {
                Some(pages) => PartReader::begin(pages),
                None => {
                    let listing = self.view.list(ino).await?;
                    let listed = ListedDirectory::View(ino, listing.clone());
                    return Ok((OpenListing::Whole(listing), listed));
                }
            },
        };
        let part = reader.part_at(&self.view, &self.daemon, ino, place).await?;
        Ok((OpenListing::Part(reader), ListedDirectory::Part(ino, part)))
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
            ListedDirectory::View(ino, _) | ListedDirectory::Part(ino, _) => {
                (*ino, self.view.parent(*ino))
            }
        };
        let mut at = place;
        while at < DOT_DOT {
            at += 1;
            let (name, inode) = if at == DOT { (".", ino) } else { ("..", parent) };
            if take(at, OsStr::new(name), self.listed_directory(inode, wanted)?) {
                return Ok(());
            }
        }
        let listing = match directory {
            ListedDirectory::View(_, listing) => listing,
            ListedDirectory::Part(_, part) => {
                return self.list_part_after(ino, part, at, wanted, take);
            }
            ListedDirectory::Staged(_) => return self.list_staged_after(ino, at, wanted, take),
        };
        // In the root, `out/` or `inbox/` stands before the entries of the view.
        let staged = self.output.as_ref().filter(|_| ino == ROOT);
        let before = DOT_DOT + u64::from(staged.is_some());
        if let Some(output) = staged.filter(|_| at < before) {
            at = before;
            let name = OsStr::new(output.root_name());
            if take(at, name, self.listed_directory(OUT, wanted)?) {
                return Ok(());
            }
        }
        let mut next = usize::try_from(at - before).unwrap_or(usize::MAX);
        // Of a plane, a name that is only listed gets no inode, as there may be many.
        if wanted == ListingDetail::Names && !self.is_of_job() {
            for (place, (name, item)) in listing.iter().enumerate().skip(next) {
                let listed = ListedEntry { ino: UNKNOWN, kind: item.kind(), attr: None };
                if take((place + 1) as u64 + before, OsStr::new(name), listed) {
                    break;
                }
            }
            return Ok(());
        }
        while let Some((entry, after)) = match self.view.entry_from(ino, listing, next) {
            Err(_) if at != place => None,
            found => found?,
        } {
            (next, at) = (after, after as u64 + before);
            if take(at, &entry.name, ListedEntry::from_attr(entry.attr)) {
                self.view.forget_unlisted(entry.attr.ino);
                break;
            }
        }
        Ok(())
    }

    /// Passes the entries of a part behind position `place` of its directory to `take`. The root of
    /// a tree is no such directory, so `out/` does not stand before them.
    fn list_part_after(
        &self,
        ino: Ino,
        part: &ListedPart,
        place: u64,
        wanted: ListingDetail,
        mut take: impl FnMut(u64, &OsStr, ListedEntry) -> bool,
    ) -> Result<()> {
        let next = usize::try_from(place - DOT_DOT).unwrap_or(usize::MAX);
        for ListedName { place, name, item } in part.entries_from(next) {
            let listed = match wanted {
                // A name that is only listed gets no inode: there may be millions.
                ListingDetail::Names => ListedEntry { ino: UNKNOWN, kind: item.kind(), attr: None },
                ListingDetail::Attributes => {
                    ListedEntry::from_attr(self.view.listed_attr(ino, name, item)?)
                }
            };
            let after = (place + 1) as u64 + DOT_DOT;
            if take(after, OsStr::new(name), listed) {
                self.view.forget_unlisted(listed.ino);
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
