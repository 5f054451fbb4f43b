//! Views and output under one root.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ion_model::event::FileEntry;
use ion_plane::cache::CachedBlob;
use ion_plane::node::Node as Daemon;
use ion_system::failpoint::linger;

use super::output::{DOT, DOT_DOT, Maker, OUT, Output, Over, open_blob};
use super::reads::{ReadFailure, ReadLog};
use super::view::{Item, Listing, View};
use super::walk::Walks;
use super::{Attr, Errno, FOREVER, Ino, Kind, ROOT, Result, is_staged};

/// The name of what is moved over something else, for a moment.
const BESIDE: &str = ".ion-moved-here";

/// One mounted tree: what is read, and, for a job, what it writes.
#[derive(Debug)]
pub struct Tree {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) view: View,
    pub(crate) output: Option<Arc<Output>>,
    walks: Mutex<Walks>,
    reads: ReadLog,
}

/// What a listing is to tell of each name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListingDetail {
    /// What it names.
    Names,
    /// Its attributes of this moment, too.
    Attributes,
}

/// What a listing tells of a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
    /// None unless wanted.
    pub(crate) attr: Option<Attr>,
}

impl Listed {
    fn with(attr: Attr) -> Self {
        Self { ino: attr.ino, kind: attr.kind, attr: Some(attr) }
    }
}

/// What a name stands for: an inode, or nothing for so long.
pub type Found = std::result::Result<Attr, Duration>;

impl Tree {
    /// A tree of what is read, and, for a job, of what it writes.
    pub(super) fn new(
        daemon: Arc<Daemon>,
        view: View,
        output: Option<Arc<Output>>,
        reads: ReadLog,
    ) -> Arc<Self> {
        Arc::new(Self { daemon, view, output, walks: Mutex::default(), reads })
    }

    /// A read of an inode failed; gives what the module gets.
    pub(crate) fn read_failed(&self, ino: Ino, failure: &ReadFailure) -> Errno {
        let path = match &self.output {
            Some(output) if is_staged(ino) => output.shown_path(ino),
            _ => self.view.path(ino),
        };
        self.reads.note(&path, failure)
    }

    /// Nothing came of a read of an inode in time: EIO.
    pub(crate) fn read_unanswered(&self, ino: Ino) -> Errno {
        self.read_failed(ino, &ReadFailure::unanswered(None))
    }

    /// The output side; EROFS where there is none.
    pub(crate) fn output(&self) -> Result<&Arc<Output>> {
        self.output.as_ref().ok_or(Errno::ROFS)
    }

    /// What an inode number means now.
    pub(crate) fn current(&self, ino: Ino) -> Ino {
        if is_staged(ino) { ino } else { self.view.current(ino) }
    }

    /// What stands under a name.
    pub(crate) async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Found> {
        if is_staged(parent) {
            // Nothing, and not to be remembered: the kernel sees each name made here, but not what
            // `sed` means.
            return Ok(self.output()?.lookup(parent, name)?.ok_or(Duration::ZERO));
        }
        if let (ROOT, Some("out"), Some(output)) = (parent, name.to_str(), &self.output) {
            return output.getattr(OUT).map(Ok);
        }
        match name.to_str() {
            Some(name) => self.view.lookup(parent, name).await,
            None => Ok(Err(FOREVER)),
        }
    }

    /// An inode's attributes.
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr> {
        if is_staged(ino) {
            return self.output()?.getattr(ino).map(|attr| self.as_known(attr));
        }
        let mut attr = self.view.getattr(ino)?;
        // The view does not know of `out/`.
        attr.nlink += u32::from(ino == ROOT && self.output.is_some());
        Ok(attr)
    }

    /// The kernel is given these inodes in a listing.
    pub(crate) fn remember(&self, inodes: &[Ino]) {
        for ino in inodes {
            if is_staged(*ino) { self.remember_staged(*ino) } else { self.view.remember(*ino) }
        }
    }

    /// The attributes of a staged inode under the number by which the kernel knows it.
    pub(crate) fn as_known(&self, attr: Attr) -> Attr {
        match self.view.known_as(attr.ino) {
            Some(ino) if attr.shown_ino == attr.ino => Attr { ino, shown_ino: ino, ..attr },
            Some(ino) => Attr { ino, ..attr },
            None => attr,
        }
    }

    /// The kernel is given this inode that stands below `out/`; of views a lookup itself keeps
    /// count.
    pub(crate) fn remember_staged(&self, ino: Ino) {
        match &self.output {
            Some(output) if is_staged(ino) => output.remember(ino),
            // It was moved here, and the kernel knows it by its old number.
            Some(_) if is_staged(self.view.current(ino)) => self.view.remember(ino),
            _ => {}
        }
    }

    /// The kernel forgets so many times that it was given this inode.
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

    /// The names of a directory of views, now; of what cannot change the same each time.
    pub(crate) async fn list(&self, ino: Ino) -> Result<Listing> {
        self.view.list(ino).await
    }

    /// Whether a directory's names never change: the kernel may keep them. It does not keep them
    /// right when they change while several list them, not even by its own doing (Linux 6.18 looks
    /// at its copy's age at the start of a listing only).
    pub(crate) fn is_fixed(&self, ino: Ino) -> bool {
        !is_staged(ino) && self.view.is_fixed(ino)
    }

    /// Gives the entries of a directory behind a place of its listing to `take`, each with its own
    /// place, until `take` has enough. Of a directory of views `listing` is what it held when it
    /// was read from the start. An entry that cannot be looked at is an error only if none was
    /// taken before: else the next request meets it.
    pub(crate) fn list_behind(
        &self,
        ino: Ino,
        place: u64,
        listing: Option<&Listing>,
        wanted: ListingDetail,
        mut take: impl FnMut(u64, &OsStr, Listed) -> bool,
    ) -> Result<()> {
        let directory = |ino: Ino| -> Result<Listed> {
            let attr =
                if wanted == ListingDetail::Attributes { Some(self.getattr(ino)?) } else { None };
            Ok(Listed { ino, kind: Kind::Directory, attr })
        };
        let mut at = place;
        while at < DOT_DOT {
            at += 1;
            let (name, inode) = match at {
                DOT => (".", ino),
                _ if is_staged(ino) => ("..", self.output()?.parent(ino)),
                _ => ("..", self.view.parent(ino)),
            };
            if take(at, OsStr::new(name), directory(inode)?) {
                return Ok(());
            }
        }
        if is_staged(ino) {
            return match wanted {
                ListingDetail::Names => {
                    self.output()?.names_behind(ino, at, |at, name, ino, kind| {
                        let ino = self.view.known_as(ino).unwrap_or(ino);
                        take(at, name, Listed { ino, kind, attr: None })
                    })
                }
                ListingDetail::Attributes => {
                    self.output()?.entries_behind(ino, at, |at, name, attr| {
                        take(at, name, Listed::with(self.as_known(*attr)))
                    })
                }
            };
        }
        let listing = listing.ok_or(Errno::BADF)?;
        // `out/` stands in the root beside what is listed there.
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
            if take(at, &entry.name, Listed::with(entry.attr)) {
                break;
            }
        }
        Ok(())
    }

    /// The blob an inode's bytes are, and how many of them: of a file of `in/`, or of a reference
    /// in `out/`.
    pub(crate) fn blob_of(&self, ino: Ino) -> Result<Option<(Arc<FileEntry>, u64)>> {
        if is_staged(ino) {
            return self.output()?.referenced(ino);
        }
        Ok(match self.view.item(ino)? {
            Item::Blob(entry) => {
                let size = entry.size;
                Some((entry, size))
            }
            _ => None,
        })
    }

    /// The blob behind an inode's entry, opened.
    pub(crate) fn open_blob(&self, ino: Ino, entry: &FileEntry) -> Result<Arc<CachedBlob>> {
        open_blob(&self.daemon, entry).map_err(|failure| self.read_failed(ino, &failure))
    }

    /// A small file of a view is being read: if somebody goes through its directory, the next ones
    /// are fetched.
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

    /// `ln` of a file of `in/` into `out/data`: a new file that refers to the same blob.
    pub(crate) fn link_in(
        &self,
        ino: Ino,
        parent: Ino,
        name: &OsStr,
        maker: Maker,
    ) -> Result<Attr> {
        let Item::Blob(entry) = self.view.item(ino)? else { return Err(Errno::XDEV) };
        self.output()?.add_link(
            parent,
            name,
            &entry,
            u32::from(self.view.stored_mode(&entry)),
            maker,
            ino,
        )
    }

    /// `mv` of a file or directory of `in/data` into `out/data`: it is gone there and a reference
    /// here. Only the job's own view changes; the event keeps its files.
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
        let Some(target) = output.lookup(newparent, newname)? else {
            return self.move_item(parent, text, newparent, newname, maker).await;
        };
        if target.kind == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        // Beside it first: what is replaced must not be lost if there is no room. The kernel lets
        // nobody list the folder meanwhile.
        let beside = OsStr::new(BESIDE);
        self.move_item(parent, text, newparent, beside, maker).await?;
        output.rename(newparent, beside, newparent, newname, Over::Anything).await
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
        let attr = self.view.lookup(parent, name).await?.map_err(|_| Errno::NOENT)?;
        let moved = match self.view.item(attr.ino)? {
            Item::Blob(entry) => {
                let mode = u32::from(self.view.stored_mode(&entry));
                output.add_reference(newparent, newname, &entry, mode, maker)?.ino
            }
            Item::Directory(_) => {
                let directory = output.mkdir(newparent, newname, 0o755, maker)?.ino;
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
                        // It was moved away before.
                        Err(Errno::NOENT) => {}
                        moved => moved?,
                    }
                }
                directory
            }
            _ => return Err(Errno::XDEV),
        };
        // It stays as long as the kernel knows it by its old number.
        output.remember(moved);
        self.view.carry(parent, name, moved);
        // The lookup above was ours, not the kernel's.
        self.forget(attr.ino, 1);
        Ok(())
    }
}
