//! The view and the output of one mount, under one root.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ion_model::event::FileEntry;
use ion_plane::cache::CachedBlob;
use ion_plane::node::Node as Daemon;
use ion_system::failpoint::linger;

use super::blob::open_blob;
use super::output::{DOT, DOT_DOT, Maker, OUT, Output, RenameOver};
use super::reads::{ReadFailure, ReadLog};
use super::view::{Listing, View, ViewItem};
use super::walk::DirectoryWalks;
use super::{Attr, Errno, FOREVER, FileKind, Ino, LookupOutcome, ROOT, Result, is_staged};

/// The temporary name of a file that is being moved over another file.
const BESIDE: &str = ".ion-moved-here";

/// One mounted tree: the view that is read and, for a job, the output that it writes.
#[derive(Debug)]
pub struct Tree {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) view: View,
    pub(crate) output: Option<Arc<Output>>,
    walks: Mutex<DirectoryWalks>,
    reads: ReadLog,
}

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
    fn with(attr: Attr) -> Self {
        Self { ino: attr.ino, kind: attr.kind, attr: Some(attr) }
    }
}

impl Tree {
    /// Makes a tree of a view and, for a job, of its output.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        view: View,
        output: Option<Arc<Output>>,
        reads: ReadLog,
    ) -> Arc<Self> {
        Arc::new(Self { daemon, view, output, walks: Mutex::default(), reads })
    }

    /// Records that a read of an inode failed. Returns the errno that the module receives.
    pub(crate) fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        let path = match &self.output {
            Some(output) if is_staged(ino) => output.shown_path(ino),
            _ => self.view.path(ino),
        };
        self.reads.note(&path, failure)
    }

    /// Records that a read of an inode was not answered within its deadline. Returns EIO.
    pub(crate) fn read_unanswered(&self, ino: Ino) -> Errno {
        self.read_failed(ino, &ReadFailure::unanswered(None))
    }

    /// Returns the output, or EROFS if the tree has none.
    pub(crate) fn output(&self) -> Result<&Arc<Output>> {
        self.output.as_ref().ok_or(Errno::ROFS)
    }

    /// Returns the inode that the kernel means by this number now.
    pub(crate) fn current(&self, ino: Ino) -> Ino {
        if is_staged(ino) { ino } else { self.view.current(ino) }
    }

    /// Looks up a name.
    pub(crate) async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<LookupOutcome> {
        if is_staged(parent) {
            // Zero: the kernel must not remember that the name does not exist.
            let missing = LookupOutcome::Missing(Duration::ZERO);
            return Ok(self
                .output()?
                .names
                .lookup(parent, name)?
                .map_or(missing, LookupOutcome::Found));
        }
        if let (ROOT, Some("out"), Some(output)) = (parent, name.to_str(), &self.output) {
            return output.content.getattr(OUT).map(LookupOutcome::Found);
        }
        match name.to_str() {
            Some(name) => self.view.lookup(parent, name).await,
            None => Ok(LookupOutcome::Missing(FOREVER)),
        }
    }

    /// Returns an inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        if is_staged(ino) {
            return self.output()?.content.getattr(ino).map(|attr| self.as_known(attr));
        }
        let mut attr = self.view.getattr(ino)?;
        // The view's own link count does not include `out/`.
        attr.nlink += u32::from(ino == ROOT && self.output.is_some());
        Ok(attr)
    }

    /// Increments the kernel's lookup count of these inodes, which it receives in a listing.
    pub(crate) fn remember(&self, inodes: &[Ino]) {
        for ino in inodes {
            if is_staged(*ino) { self.remember_staged(*ino) } else { self.view.remember(*ino) }
        }
    }

    /// Returns the attributes of a staged inode under the number by which the kernel knows it.
    pub(crate) fn as_known(&self, attr: Attr) -> Attr {
        match self.view.known_as(attr.ino) {
            Some(ino) if attr.shown_ino == attr.ino => Attr { ino, shown_ino: ino, ..attr },
            Some(ino) => Attr { ino, ..attr },
            None => attr,
        }
    }

    /// Increments the kernel's lookup count of an inode below `out/`. For the inodes of a view, the
    /// lookup itself does that.
    pub(crate) fn remember_staged(&self, ino: Ino) {
        match &self.output {
            Some(output) if is_staged(ino) => output.names.remember(ino),
            // It was moved to `out/`, and the kernel knows it by its old number.
            Some(_) if is_staged(self.view.current(ino)) => self.view.remember(ino),
            _ => {}
        }
    }

    /// Lowers the kernel's lookup count of an inode by `times`.
    pub(crate) fn forget(&self, ino: Ino, times: u64) {
        linger("forget");
        match &self.output {
            Some(output) if is_staged(ino) => output.forget(ino, times),
            output => {
                for staged in self.view.forget(ino, times) {
                    output.as_ref().inspect(|output| output.forget(staged, 1));
                }
            }
        }
    }

    /// Returns the current entries of a view directory. For a directory that cannot change they are
    /// the same each time.
    pub(crate) async fn list(&self, ino: Ino) -> Result<Listing> {
        self.view.list(ino).await
    }

    /// Returns whether a directory's names never change, so that the kernel may cache its listing.
    /// The cached listing goes wrong when names change while several processes list the directory,
    /// even if the change came through the kernel itself (Linux 6.18 checks the age of its copy
    /// only at the start of a listing).
    pub(crate) fn is_fixed(&self, ino: Ino) -> bool {
        !is_staged(ino) && self.view.is_fixed(ino)
    }

    /// Passes the entries of a directory behind position `place` of its listing to `take`, each
    /// with its own position, until `take` returns true. For a view directory, `listing` is what
    /// the directory held when it was read from the start. An entry whose attributes cannot be read
    /// is an error only if no entry was passed before it; otherwise the next request returns the
    /// error.
    pub(crate) fn list_behind(
        &self,
        ino: Ino,
        place: u64,
        listing: Option<&Listing>,
        wanted: ListingDetail,
        mut take: impl FnMut(u64, &OsStr, ListedEntry) -> bool,
    ) -> Result<()> {
        let directory = |ino: Ino| -> Result<ListedEntry> {
            let attr =
                if wanted == ListingDetail::Attributes { Some(self.getattr(ino)?) } else { None };
            Ok(ListedEntry { ino, kind: FileKind::Directory, attr })
        };
        let mut at = place;
        while at < DOT_DOT {
            at += 1;
            let (name, inode) = match at {
                DOT => (".", ino),
                _ if is_staged(ino) => ("..", self.output()?.names.parent(ino)),
                _ => ("..", self.view.parent(ino)),
            };
            if take(at, OsStr::new(name), directory(inode)?) {
                return Ok(());
            }
        }
        if is_staged(ino) {
            return match wanted {
                ListingDetail::Names => {
                    self.output()?.names.names_behind(ino, at, |at, name, ino, kind| {
                        let ino = self.view.known_as(ino).unwrap_or(ino);
                        take(at, name, ListedEntry { ino, kind, attr: None })
                    })
                }
                ListingDetail::Attributes => {
                    self.output()?.names.entries_behind(ino, at, |at, name, attr| {
                        take(at, name, ListedEntry::with(self.as_known(*attr)))
                    })
                }
            };
        }
        let listing = listing.ok_or(Errno::BADF)?;
        // In the root, `out/` stands before the entries of the view.
        let before = DOT_DOT + u64::from(ino == ROOT && self.output.is_some());
        if at < before {
            at = before;
            if take(at, OsStr::new("out"), directory(OUT)?) {
                return Ok(());
            }
        }
        let mut next = usize::try_from(at - before).unwrap_or(usize::MAX);
        while let Some((entry, after)) = match self.view.entry_from(ino, listing, next) {
            Err(_) if at != place => None,
            found => found?,
        } {
            (next, at) = (after, after as u64 + before);
            if take(at, &entry.name, ListedEntry::with(entry.attr)) {
                break;
            }
        }
        Ok(())
    }

    /// Returns the blob that holds an inode's bytes, and how many of the blob's bytes the inode
    /// has: for a file of `in/`, or a reference in `out/`. Returns none for other inodes.
    pub(crate) fn blob_of(&self, ino: Ino) -> Result<Option<(Arc<FileEntry>, u64)>> {
        if is_staged(ino) {
            return self.output()?.content.blob_of(ino);
        }
        Ok(match self.view.item(ino)? {
            ViewItem::Blob(entry) => {
                let size = entry.size;
                Some((entry, size))
            }
            _ => None,
        })
    }

    /// Opens the blob of an inode's entry. Records a failure as a failed read of the inode.
    pub(crate) fn open_blob(&self, ino: Ino, entry: &FileEntry) -> Result<Arc<CachedBlob>> {
        open_blob(&self.daemon, entry).map_err(|failure| self.read_failed(ino, &failure))
    }

    /// Notes that a small file of a view is being read. If a program walks the file's directory,
    /// starts to fetch the next files.
    pub(crate) fn walked_to(&self, ino: Ino) {
        let Some((directory, listing, name)) = self.view.place(ino) else { return };
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = walks.reached(directory, &listing, &name);
        drop(walks);
        for entry in ahead {
            if let Ok(blob) = open_blob(&self.daemon, &entry) {
                blob.fetch_ahead();
            }
        }
    }

    /// Handles `ln` of a file of `in/` into `out/data`: makes a new file that refers to the same
    /// blob.
    pub(crate) fn link_in(
        &self,
        ino: Ino,
        parent: Ino,
        name: &OsStr,
        maker: Maker,
    ) -> Result<Attr> {
        let ViewItem::Blob(entry) = self.view.item(ino)? else { return Err(Errno::XDEV) };
        self.output()?.names.add_link(
            parent,
            name,
            &entry,
            u32::from(self.view.stored_mode(&entry)),
            maker,
            ino,
        )
    }

    /// Handles `mv` of a file or directory of `in/data` into `out/data`: removes the name from
    /// `in/data` and makes a reference in `out/data`. Only the job's own view changes; the event
    /// keeps its files.
    pub(crate) async fn move_in(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        maker: Maker,
    ) -> Result<()> {
        let Some(text) = name.to_str() else { return Err(Errno::NOENT) };
        let path = PathBuf::from(self.view.path(parent));
        if !path.starts_with("in/data") {
            return Err(Errno::ROFS);
        }
        let output = self.output()?;
        let Some(target) = output.names.lookup(newparent, newname)? else {
            return self.move_item(parent, text, newparent, newname, maker).await;
        };
        if target.kind == FileKind::Directory {
            return Err(Errno::ISDIR);
        }
        // Move it to a temporary name first: the file that it replaces must not be lost if there is
        // no room. The kernel lets no process list the folder meanwhile.
        let beside = OsStr::new(BESIDE);
        self.move_item(parent, text, newparent, beside, maker).await?;
        output.rename(newparent, beside, newparent, newname, RenameOver::Anything).await
    }

    async fn move_item(
        &self,
        parent: Ino,
        name: &str,
        newparent: Ino,
        newname: &OsStr,
        maker: Maker,
    ) -> Result<()> {
        let output = self.output()?;
        let attr = self.view.lookup(parent, name).await?.found().ok_or(Errno::NOENT)?;
        let moved = match self.view.item(attr.ino)? {
            ViewItem::Blob(entry) => {
                let mode = u32::from(self.view.stored_mode(&entry));
                output.names.add_reference(newparent, newname, &entry, mode, maker)?.ino
            }
            ViewItem::Directory(_) => {
                let directory = output.names.mkdir(newparent, newname, 0o755, maker)?.ino;
                for (child, _) in self.view.list(attr.ino).await?.iter() {
                    match Box::pin(self.move_item(
                        attr.ino,
                        child,
                        directory,
                        OsStr::new(child),
                        maker,
                    ))
                    .await
                    {
                        // The child was moved away earlier.
                        Err(Errno::NOENT) => {}
                        moved => moved?,
                    }
                }
                directory
            }
            _ => return Err(Errno::XDEV),
        };
        // The staged inode is kept as long as the kernel knows it by its old number.
        output.names.remember(moved);
        self.view.carry(parent, name, moved);
        // The lookup above was the daemon's, not the kernel's.
        self.forget(attr.ino, 1);
        Ok(())
    }
}
