//! The read-only part of a tree: directories that are listed when they are first accessed, and
//! files whose bytes are fetched when they are read.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ion_model::clock;
use ion_model::errors::error_chain;
use ion_model::event::FileEntry;
use ion_stores::StoreError;

use super::item::{Directory, Listing, NamePages, ViewItem, is_valid_name};
use super::reads::{ReadFailure, ReadLog};
use super::search_time::SearchTime;
use super::{Attr, DirEntry, Errno, FOREVER, FileKind, Ino, LookupOutcome, ROOT, Result};

#[derive(Debug)]
struct ViewInode {
    parent: Ino,
    name: String,
    item: ViewItem,
    /// The kernel's lookup count: lookups that it has not forgotten.
    lookups: u64,
    children: HashMap<String, Ino>,
    listing: Option<(Instant, Listing)>,
    /// Names that `mv` took from `in/data` to `out/data`: this mount no longer shows them.
    moved_away: HashSet<String>,
    /// The file that the last listing showed instead of the names that it did not come to.
    rest: Option<(String, ViewItem)>,
}

/// What a directory has next.
pub(super) enum NextNames {
    /// These names. Others may follow.
    Names(Vec<(String, ViewItem)>),
    /// This file instead of other names: none was found for as long as a search may take.
    Stopped((String, ViewItem)),
    /// Nothing.
    End,
}

/// The read-only inodes of a mount.
#[derive(Debug)]
pub struct View {
    state: Mutex<ViewState>,
    uid: u32,
    gid: u32,
    readers: Readers,
    reads: ReadLog,
}

/// Which users read a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// The user that the daemon runs as.
    Owner,
    /// Users with any ID: in a container or a pod the module runs as a user that the daemon does
    /// not know.
    AnyUser,
}

/// Which listing of a directory a caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListingUse {
    /// The kept listing, while it is valid.
    Kept,
    /// A new listing.
    Fresh,
}

/// What the attributes of a name are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryUse {
    /// The kernel looks the name up, which counts.
    Lookup,
    /// A listing shows the name, which does not count as a lookup.
    Listing,
}

#[derive(Debug)]
struct ViewState {
    inodes: HashMap<Ino, ViewInode>,
    next: Ino,
    /// View inodes that `mv` moved to `out/`, each with the staged inode that it became: the kernel
    /// still uses the old number.
    moved_to_output: HashMap<Ino, Ino>,
    /// The reverse of `moved_to_output`: the number by which the kernel knows a staged inode.
    kernel_numbers: HashMap<Ino, Ino>,
}

impl View {
    /// Makes a view whose root is `root`. Directories that cannot be listed are recorded in
    /// `reads`.
    pub(crate) fn new(root: ViewItem, reads: ReadLog) -> Self {
        let root = ViewInode::new(ROOT, String::new(), root);
        Self {
            state: Mutex::new(ViewState {
                inodes: HashMap::from([(ROOT, root)]),
                next: ROOT + 1,
                moved_to_output: HashMap::new(),
                kernel_numbers: HashMap::new(),
            }),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            readers: Readers::Owner,
            reads,
        }
    }

    /// Makes a view that users with any ID may read. Its modes also allow writing, because the
    /// kernel refuses to link or move a file that belongs to another user and is not writable.
    /// Writes are refused all the same (EROFS).
    pub(crate) fn for_any_user(root: ViewItem, reads: ReadLog) -> Self {
        Self { readers: Readers::AnyUser, ..Self::new(root, reads) }
    }

    fn lock(&self) -> MutexGuard<'_, ViewState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the inode that the kernel means by this number: the staged inode if `mv` moved it to
    /// `out/`, otherwise `ino` itself.
    pub fn current_inode(&self, ino: Ino) -> Ino {
        self.lock().moved_to_output.get(&ino).copied().unwrap_or(ino)
    }

    /// Returns the number by which the kernel knows a staged inode, if that is not its own. With
    /// two numbers for one file, the kernel would see two files, each with its own pages and
    /// length.
    pub fn kernel_number_of(&self, staged: Ino) -> Option<Ino> {
        self.lock().kernel_numbers.get(&staged).copied()
    }

    /// Returns what an inode is.
    pub fn item(&self, ino: Ino) -> Result<ViewItem> {
        Ok(self.lock().inodes.get(&ino).ok_or(Errno::STALE)?.item.clone())
    }

    /// Returns the directory of an inode, the listing of that directory, and the inode's name.
    /// Returns none if the directory was not listed yet.
    pub(super) fn place(&self, ino: Ino) -> Option<(Ino, Listing, String)> {
        let state = self.lock();
        let inode = state.inodes.get(&ino)?;
        let (_, listing) = state.inodes.get(&inode.parent)?.listing.as_ref()?;
        Some((inode.parent, listing.clone(), inode.name.clone()))
    }

    /// Returns the parent of a directory.
    pub fn parent(&self, ino: Ino) -> Ino {
        self.lock().inodes.get(&ino).map_or(ROOT, |inode| inode.parent)
    }

    /// Returns the path of an inode from the root.
    pub fn path(&self, ino: Ino) -> String {
        let state = self.lock();
        let mut parts = Vec::new();
        let mut at = ino;
        while let Some(inode) = state.inodes.get(&at).filter(|_| at != ROOT) {
            parts.push(inode.name.clone());
            at = inode.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// Returns an inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let item = self.item(ino)?;
        self.attr(ino, &item)
    }

    /// Looks up a name and increments the lookup count of its inode.
    pub async fn lookup(&self, parent: Ino, name: &str) -> Result<LookupOutcome> {
        if let Some(item) = self.listed_rest(parent, name) {
            return self.entry(parent, name, &item, EntryUse::Lookup).map(LookupOutcome::Found);
        }
        let (directory, kept) = self.kept_listing(parent, ListingUse::Kept)?;
        if kept.as_ref().is_none_or(|listing| listing.get(name).is_none()) {
            let found = directory.find(name).await;
            let found = found.map_err(|error| self.note_failure(parent, &error))?;
            if let Some(item) = found {
                return self.entry(parent, name, &item, EntryUse::Lookup).map(LookupOutcome::Found);
            }
            if directory.pages().is_some() {
                return Ok(LookupOutcome::Missing(directory.ttl()));
            }
        }
        let listing = match kept {
            Some(listing) => listing,
            None => self.list_anew(parent, &*directory).await?,
        };
        match listing.get(name).filter(|_| !self.is_moved_away(parent, name)) {
            Some(item) => {
                self.entry(parent, name, item, EntryUse::Lookup).map(LookupOutcome::Found)
            }
            None => Ok(LookupOutcome::Missing(directory.ttl())),
        }
    }

    /// Returns the current entries of a directory.
    pub async fn list(&self, ino: Ino) -> Result<Listing> {
        match self.kept_listing(ino, ListingUse::Fresh)? {
            (_, Some(listing)) => Ok(listing),
            (directory, None) => self.list_anew(ino, &*directory).await,
        }
    }

    /// Returns the first entry at position `from` or later that was not moved away, with its
    /// current attributes, and the position after it.
    pub fn entry_from(
        &self,
        ino: Ino,
        listing: &Listing,
        from: usize,
    ) -> Result<Option<(DirEntry, usize)>> {
        for place in from.. {
            let Some((name, item)) = listing.entry_at(place) else { break };
            if !self.is_moved_away(ino, name) {
                let attr = self.entry(ino, name, item, EntryUse::Listing)?;
                return Ok(Some((DirEntry { name: name.into(), attr }, place + 1)));
            }
        }
        Ok(None)
    }

    /// Begins to read the names of a directory, if it may have any number of them.
    pub(super) fn pages(&self, ino: Ino) -> Result<Option<Box<dyn NamePages>>> {
        let (directory, _) = self.kept_listing(ino, ListingUse::Kept)?;
        Ok(directory.pages())
    }

    /// Returns what a directory has next, after a search that takes at most `time`.
    pub(super) async fn next_names(
        &self,
        ino: Ino,
        pages: &mut dyn NamePages,
        time: SearchTime,
    ) -> Result<NextNames> {
        loop {
            let read = pages.next().await.map_err(|error| self.note_failure(ino, &error))?;
            let Some(mut names) = read else {
                self.note_rest(ino, None);
                return Ok(NextNames::End);
            };
            // With an invalid name in it, the kernel refuses the whole listing.
            names.retain(|(name, _)| is_valid_name(name));
            if !names.is_empty() {
                return Ok(NextNames::Names(names));
            }
            if time.is_over() {
                let rest = pages.rest();
                self.note_rest(ino, Some(rest.clone()));
                return Ok(NextNames::Stopped(rest));
            }
        }
    }

    /// Records whether the last listing of a directory ended with the file that says how to see the
    /// rest, which has to be found by its name then.
    fn note_rest(&self, ino: Ino, rest: Option<(String, ViewItem)>) {
        if let Some(inode) = self.lock().inodes.get_mut(&ino) {
            inode.rest = rest;
        }
    }

    fn listed_rest(&self, ino: Ino, name: &str) -> Option<ViewItem> {
        let state = self.lock();
        let (rest, item) = state.inodes.get(&ino)?.rest.as_ref()?;
        (rest == name).then(|| item.clone())
    }

    /// Returns the attributes of an entry that a listing shows.
    pub(super) fn listed_attr(&self, ino: Ino, name: &str, item: &ViewItem) -> Result<Attr> {
        self.entry(ino, name, item, EntryUse::Listing)
    }

    /// Removes an inode that was made for a listing in which it had no place any more, if the kernel
    /// does not know it.
    pub(super) fn forget_unlisted(&self, ino: Ino) {
        self.forget(ino, 0);
    }

    /// Returns whether a directory's entries never change. A directory that a name was moved away
    /// from does not count.
    pub fn is_fixed(&self, ino: Ino) -> bool {
        self.lock().inodes.get(&ino).is_some_and(|inode| {
            let stays =
                matches!(&inode.item, ViewItem::Directory(directory) if directory.ttl() == FOREVER);
            stays && inode.moved_away.is_empty()
        })
    }

    /// Returns whether a file's bytes can never change, because its directory is fixed.
    pub fn never_changes(&self, ino: Ino) -> bool {
        self.is_fixed(self.parent(ino))
    }

    /// Increments an inode's lookup count: the kernel received the inode in a listing.
    pub fn remember(&self, ino: Ino) {
        if let Some(inode) = self.lock().inodes.get_mut(&ino) {
            inode.lookups += 1;
        }
    }

    /// Lowers an inode's lookup count by `lookups`, which the kernel forgot. Returns the staged
    /// inodes that the kernel no longer knows by an old number.
    pub fn forget(&self, ino: Ino, lookups: u64) -> Vec<Ino> {
        let mut released = Vec::new();
        let mut state = self.lock();
        let Some(inode) = state.inodes.get_mut(&ino).filter(|_| ino != ROOT) else {
            return released;
        };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups > 0 || !inode.children.is_empty() || !inode.moved_away.is_empty() {
            return released;
        }
        // A parent that was kept only for this child is removed with it.
        let mut at = ino;
        while let Some(inode) = state.inodes.get(&at) {
            if at == ROOT
                || inode.lookups > 0
                || !inode.children.is_empty()
                || !inode.moved_away.is_empty()
            {
                break;
            }
            let (parent, name) = (inode.parent, inode.name.clone());
            state.inodes.remove(&at);
            if let Some(staged) = state.moved_to_output.remove(&at) {
                state.kernel_numbers.remove(&staged);
                released.push(staged);
            }
            if let Some(parent) = state.inodes.get_mut(&parent)
                && parent.children.get(&name) == Some(&at)
            {
                parent.children.remove(&name);
            }
            at = parent;
        }
        released
    }

    /// Records that `mv` took `name` out of `parent`: the name is gone, and its inode is the staged
    /// inode `to` from now on.
    pub fn record_move(&self, parent: Ino, name: &str, to: Ino) {
        let mut state = self.lock();
        let Some(inode) = state.inodes.get_mut(&parent) else { return };
        inode.moved_away.insert(name.to_owned());
        if let Some(ino) = inode.children.remove(name) {
            state.moved_to_output.insert(ino, to);
            state.kernel_numbers.insert(to, ino);
        }
    }

    fn is_moved_away(&self, parent: Ino, name: &str) -> bool {
        self.lock().inodes.get(&parent).is_some_and(|inode| inode.moved_away.contains(name))
    }

    /// Returns a directory, and its kept listing if that may be used. For a directory that never
    /// changes it always may.
    fn kept_listing(
        &self,
        ino: Ino,
        wanted: ListingUse,
    ) -> Result<(Arc<dyn Directory>, Option<Listing>)> {
        let state = self.lock();
        let inode = state.inodes.get(&ino).ok_or(Errno::STALE)?;
        let ViewItem::Directory(directory) = &inode.item else { return Err(Errno::NOTDIR) };
        let ttl = directory.ttl();
        let kept = inode.listing.as_ref().filter(|(since, _)| {
            ttl == FOREVER || (wanted == ListingUse::Kept && since.elapsed() < ttl)
        });
        Ok((directory.clone(), kept.map(|(_, listing)| listing.clone())))
    }

    /// Lists a directory, and keeps the listing.
    async fn list_anew(&self, ino: Ino, directory: &dyn Directory) -> Result<Listing> {
        let listed = directory.list().await;
        let listing = listed.map_err(|error| self.note_failure(ino, &error))?;
        if let Some(inode) = self.lock().inodes.get_mut(&ino) {
            inode.listing = Some((Instant::now(), listing.clone()));
        }
        Ok(listing)
    }

    /// Records that a directory cannot be listed or searched. Returns the error for the kernel.
    fn note_failure(&self, ino: Ino, error: &StoreError) -> Errno {
        let path = self.path(ino);
        tracing::error!(path, error = error_chain(error), "a folder cannot be listed");
        self.reads.note(&path, &ReadFailure::from_store_error(error))
    }

    /// Returns the attributes of a name's inode. Makes the inode if the name has none.
    fn entry(&self, parent: Ino, name: &str, item: &ViewItem, purpose: EntryUse) -> Result<Attr> {
        let mut state = self.lock();
        let next = state.next;
        let directory = state.inodes.get_mut(&parent).ok_or(Errno::STALE)?;
        let ttl = match &directory.item {
            ViewItem::Directory(directory) => directory.ttl(),
            _ => Duration::ZERO,
        };
        let ino = match directory.children.get(name) {
            Some(ino) => *ino,
            None => {
                directory.children.insert(name.to_owned(), next);
                next
            }
        };
        if ino == next {
            state.next += 1;
            state.inodes.insert(ino, ViewInode::new(parent, name.to_owned(), item.clone()));
        }
        let inode = state.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        if ino != next {
            inode.item = item.clone();
        }
        inode.lookups += u64::from(purpose == EntryUse::Lookup);
        drop(state);
        let mut attr = self.attr(ino, item)?;
        attr.ttl = attr.ttl.min(ttl);
        Ok(attr)
    }

    /// Returns the permissions that a blob's file was stored with, made readable for the users who
    /// read this view. Where the module runs as the file's owner, a file that only its owner could
    /// read, such as a key, stays so.
    pub(super) fn stored_mode(&self, entry: &FileEntry) -> u16 {
        let readable = match self.readers {
            Readers::Owner => 0o400,
            Readers::AnyUser => 0o444,
        };
        readable | u16::try_from(entry.mode & 0o777).unwrap_or(0)
    }

    /// Returns the link count of a directory: its name, its `.`, and the `..` of each directory in
    /// it, as on a plain disk. Programs that walk a tree stop looking for directories once they
    /// have found that many. 1 means that the count is not known.
    fn links_of(&self, ino: Ino, directory: &dyn Directory) -> u32 {
        let Some(fixed) = directory.fixed_entries() else { return 1 };
        let state = self.lock();
        let moved_away = state.inodes.get(&ino).map(|inode| &inode.moved_away);
        let is_there =
            |name: &&String| moved_away.is_none_or(|moved_away| !moved_away.contains(*name));
        let directories = fixed.directories.iter().filter(is_there).count();
        u32::try_from(directories + 2).unwrap_or(u32::MAX)
    }

    fn attr(&self, ino: Ino, item: &ViewItem) -> Result<Attr> {
        let more = if self.readers == Readers::AnyUser { 0o222 } else { 0 };
        let (kind, size, at, perm, ttl) = match item {
            ViewItem::Directory(directory) => (
                FileKind::Directory,
                0,
                clock::system_time(directory.mtime()),
                0o755 | more,
                directory.ttl(),
            ),
            ViewItem::Text(bytes, at) => {
                (FileKind::File, bytes.len() as u64, clock::system_time(*at), 0o444, FOREVER)
            }
            ViewItem::Blob(entry) => {
                // The stored mode, so that a copy of the file is writable if the original was.
                // Writing here is refused whatever the mode says (EROFS).
                let perm = self.stored_mode(entry) | more;
                (FileKind::File, entry.size, entry.modified(), perm, FOREVER)
            }
            ViewItem::Live(path) => {
                let metadata = std::fs::metadata(path).map_err(|error| super::errno(&error))?;
                let modified = metadata.modified().map_err(|error| super::errno(&error))?;
                (FileKind::File, metadata.size(), modified, 0o444, Duration::ZERO)
            }
            ViewItem::Link(target, at) => {
                let at = clock::system_time(*at);
                (FileKind::Symlink, target.len() as u64, at, 0o777, FOREVER)
            }
        };
        Ok(Attr {
            ino,
            shown_ino: ino,
            kind,
            size,
            blocks: size.div_ceil(512),
            atime: at,
            mtime: at,
            ctime: at,
            perm,
            nlink: match item {
                ViewItem::Directory(directory) => self.links_of(ino, &**directory),
                _ => 1,
            },
            uid: self.uid,
            gid: self.gid,
            ttl,
        })
    }
}

impl ViewInode {
    fn new(parent: Ino, name: String, item: ViewItem) -> Self {
        Self {
            parent,
            name,
            item,
            lookups: 0,
            children: HashMap::new(),
            listing: None,
            moved_away: HashSet::new(),
            rest: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ion_model::record::ReadFailureCause;

    fn directory_of(view: &View, name: &str) -> Ino {
        view.lock().inodes[&ROOT].children[name]
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_listed_is_a_failed_read_of_that_folder() {
        let reads = ReadLog::default();
        let lost = ViewItem::lazy(FOREVER, || {
            std::future::ready(Err(StoreError::DamagedBlob("k".into())))
        });
        let view = View::new(ViewItem::fixed([("lineage".to_owned(), lost)]), reads.clone());
        assert!(view.lookup(ROOT, "lineage").await.unwrap().found().is_some());
        assert!(reads.failed_reads().is_empty());
        let ino = directory_of(&view, "lineage");
        assert_eq!(view.list(ino).await.unwrap_err(), Errno::IO);
        let failed = reads.failed_reads();
        assert_eq!((failed.first.len(), &*failed.first[0].path), (1, "lineage"));
        assert_eq!(failed.first[0].cause, ReadFailureCause::Damaged);
        assert_eq!(failed.first[0].blob.as_deref(), Some("k"));
    }
}
