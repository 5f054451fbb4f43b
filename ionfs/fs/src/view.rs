//! What is only read: directories that are listed when first looked at, files whose bytes are
//! fetched when read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use ion_model::clock::{self, Millis};
use ion_model::errors::chain;
use ion_model::event::FileEntry;
use ion_stores::StoreError;

use super::reads::{ReadFailure, ReadLog};
use super::{Attr, DirEntry, Errno, FOREVER, Ino, Kind, ROOT, Result};

/// What stands under a name.
#[derive(Clone, Debug)]
pub enum Item {
    /// A directory.
    Directory(Arc<dyn Directory>),
    /// A small file whose bytes are at hand, and its time.
    Text(Bytes, Millis),
    /// A file whose bytes are a blob.
    Blob(Arc<FileEntry>),
    /// A local file that grows: the output of a job that runs on this machine.
    Live(PathBuf),
    /// A symbolic link.
    Link(String),
}

impl Item {
    /// A directory whose entries are known and never change.
    pub fn fixed(entries: impl IntoIterator<Item = (String, Item)>) -> Self {
        let listing: Listing = entries.into_iter().collect();
        let directories = listing.iter().filter(|(_, item)| matches!(item, Item::Directory(_)));
        let directories = directories.map(|(name, _)| name.to_owned()).collect();
        Self::Directory(Arc::new(Fixed { listing, directories }))
    }

    /// A directory that is listed when it is looked at; a listing stays true for `ttl`.
    pub fn lazy<F, L>(ttl: Duration, list: F) -> Self
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = Listed> + Send + 'static,
    {
        Self::Directory(Arc::new(Lazy { ttl, list }))
    }

    /// A file that holds a JSON document, pretty, with a newline at its end.
    pub fn json(value: &impl serde::Serialize, at: Millis) -> Self {
        let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
        text.push('\n');
        Self::Text(text.into(), at)
    }
}

/// What is in a directory, or why the stores do not tell.
pub type Listed = std::result::Result<Vec<(String, Item)>, StoreError>;

/// The names in a directory at one moment, sorted. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Listing(Arc<[(String, Item)]>);

impl FromIterator<(String, Item)> for Listing {
    /// Of two items of one name the later one counts.
    fn from_iter<I: IntoIterator<Item = (String, Item)>>(items: I) -> Self {
        let by_name: BTreeMap<String, Item> = items.into_iter().collect();
        Self(by_name.into_iter().collect())
    }
}

impl Listing {
    /// What stands under a name.
    pub fn get(&self, name: &str) -> Option<&Item> {
        let at = self.0.binary_search_by(|(one, _)| one.as_str().cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// All of it, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.0.iter().map(|(name, item)| (name.as_str(), item))
    }

    /// What follows a name, which need not be there.
    pub(super) fn after(&self, name: &str) -> impl Iterator<Item = (&str, &Item)> {
        let from = self.0.partition_point(|(one, _)| one.as_str() <= name);
        self.0[from..].iter().map(|(name, item)| (name.as_str(), item))
    }

    /// The name and the item at a place, counted from 0.
    pub(super) fn at(&self, place: usize) -> Option<(&str, &Item)> {
        self.0.get(place).map(|(name, item)| (name.as_str(), item))
    }
}

/// A directory that can be listed.
#[async_trait]
pub trait Directory: Send + Sync + std::fmt::Debug {
    /// Its names.
    async fn list(&self) -> std::result::Result<Listing, StoreError>;

    /// What is in it, if that is known without asking anybody.
    fn known(&self) -> Option<&Fixed> {
        None
    }

    /// How long a listing stays true.
    fn ttl(&self) -> Duration {
        FOREVER
    }

    /// Its modification time.
    fn mtime(&self) -> Millis {
        0
    }
}

/// A directory that a closure lists.
struct Lazy<F> {
    ttl: Duration,
    list: F,
}

impl<F> std::fmt::Debug for Lazy<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, L> Directory for Lazy<F>
where
    F: Fn() -> L + Send + Sync,
    L: Future<Output = Listed> + Send,
{
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        Ok((self.list)().await?.into_iter().collect())
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }
}

/// A directory whose entries are known.
#[derive(Debug)]
pub struct Fixed {
    listing: Listing,
    /// The names of those that are directories.
    directories: Vec<String>,
}

#[async_trait]
impl Directory for Fixed {
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        Ok(self.listing.clone())
    }

    fn known(&self) -> Option<&Fixed> {
        Some(self)
    }
}

/// The directory that holds these files under their paths; directories come of the slashes, and of
/// `empty` those in which nothing is.
pub fn files_tree(files: &[FileEntry], empty: &[String]) -> Item {
    #[derive(Default)]
    struct Branch {
        branches: BTreeMap<String, Branch>,
        leaves: BTreeMap<String, Arc<FileEntry>>,
    }
    fn grown(branch: Branch) -> Item {
        let leaves = branch.leaves.into_iter().map(|(name, entry)| (name, Item::Blob(entry)));
        // A directory wins over a file of the same name: its files could not be reached otherwise.
        let branches = branch.branches.into_iter().map(|(name, branch)| (name, grown(branch)));
        Item::fixed(leaves.chain(branches))
    }
    let mut root = Branch::default();
    for file in files {
        let mut branch = &mut root;
        let mut parts = file.name.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                branch = branch.branches.entry(part.to_owned()).or_default();
            } else {
                branch.leaves.insert(part.to_owned(), Arc::new(file.clone()));
            }
        }
    }
    for directory in empty {
        let mut branch = &mut root;
        for part in directory.split('/') {
            branch = branch.branches.entry(part.to_owned()).or_default();
        }
    }
    grown(root)
}

#[derive(Debug)]
struct Inode {
    parent: Ino,
    name: String,
    item: Item,
    /// How often the kernel looked it up and has not forgotten it.
    lookups: u64,
    children: HashMap<String, Ino>,
    listing: Option<(Instant, Listing)>,
    /// Names that were moved away (`mv` from `in/data` to `out/data`): gone for this mount.
    moved_away: HashSet<String>,
}

/// The inodes of what is only read.
#[derive(Debug)]
pub struct View {
    state: Mutex<State>,
    uid: u32,
    gid: u32,
    readers: Readers,
    reads: ReadLog,
}

/// Who reads a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// The daemon's own user.
    Owner,
    /// Users of any number: in a container or a pod the module has a user of its own, unknown here.
    AnyUser,
}

#[derive(Debug)]
struct State {
    inodes: HashMap<Ino, Inode>,
    next: Ino,
    /// Inodes that `mv` carried over to `out/`, and what they are there: the kernel still calls
    /// them by their old number.
    carried: HashMap<Ino, Ino>,
    /// The same the other way round: by which number the kernel knows a staged inode.
    known_as: HashMap<Ino, Ino>,
}

impl View {
    /// A view whose root is `root`. Directories that cannot be listed are recorded in `reads`.
    pub(crate) fn new(root: Item, reads: ReadLog) -> Self {
        let root = Inode::new(ROOT, String::new(), root);
        Self {
            state: Mutex::new(State {
                inodes: HashMap::from([(ROOT, root)]),
                next: ROOT + 1,
                carried: HashMap::new(),
                known_as: HashMap::new(),
            }),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            readers: Readers::Owner,
            reads,
        }
    }

    /// The same for users of any number: everybody may read, and the kernel lets nobody link or
    /// move what is another's and cannot be written. Writing is refused all the same (EROFS).
    pub(crate) fn for_any_user(root: Item, reads: ReadLog) -> Self {
        Self { readers: Readers::AnyUser, ..Self::new(root, reads) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernel means by this number: itself, or the staged inode it became by `mv`.
    pub fn current(&self, ino: Ino) -> Ino {
        self.lock().carried.get(&ino).copied().unwrap_or(ino)
    }

    /// By which number the kernel knows a staged inode, if not by its own. Two numbers of one file
    /// would be two files to the kernel, each with pages and a length of its own.
    pub fn known_as(&self, staged: Ino) -> Option<Ino> {
        self.lock().known_as.get(&staged).copied()
    }

    /// What an inode is.
    pub fn item(&self, ino: Ino) -> Result<Item> {
        Ok(self.lock().inodes.get(&ino).ok_or(Errno::STALE)?.item.clone())
    }

    /// Where an inode stands: its directory, what is in there, and its name. None: its directory
    /// was not listed yet.
    pub(super) fn place(&self, ino: Ino) -> Option<(Ino, Listing, String)> {
        let state = self.lock();
        let inode = state.inodes.get(&ino)?;
        let (_, listing) = state.inodes.get(&inode.parent)?.listing.as_ref()?;
        Some((inode.parent, listing.clone(), inode.name.clone()))
    }

    /// The parent of a directory.
    pub fn parent(&self, ino: Ino) -> Ino {
        self.lock().inodes.get(&ino).map_or(ROOT, |inode| inode.parent)
    }

    /// The name an inode is known by, from the root down.
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

    /// An inode's attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let item = self.item(ino)?;
        self.attr(ino, &item)
    }

    /// What stands under a name; counts as a lookup by the kernel. None: nothing, for so long.
    pub async fn lookup(
        &self,
        parent: Ino,
        name: &str,
    ) -> Result<std::result::Result<Attr, Duration>> {
        let (listing, ttl) = self.listing(parent, false).await?;
        match listing.get(name).filter(|_| !self.is_moved_away(parent, name)) {
            Some(item) => self.entry(parent, name, item, true).map(Ok),
            None => Ok(Err(ttl)),
        }
    }

    /// The names of a directory now.
    pub async fn list(&self, ino: Ino) -> Result<Listing> {
        self.listing(ino, true).await.map(|(listing, _)| listing)
    }

    /// The first entry of a listing that still stands, from a place on, and the place after it. Its
    /// attributes are those of this moment.
    pub fn entry_from(
        &self,
        ino: Ino,
        listing: &Listing,
        from: usize,
    ) -> Result<Option<(DirEntry, usize)>> {
        for place in from.. {
            let Some((name, item)) = listing.at(place) else { break };
            if !self.is_moved_away(ino, name) {
                let attr = self.entry(ino, name, item, false)?;
                return Ok(Some((DirEntry { name: name.into(), attr }, place + 1)));
            }
        }
        Ok(None)
    }

    /// Whether what stands in a directory never changes: nothing was moved away from it either.
    pub fn is_fixed(&self, ino: Ino) -> bool {
        self.lock().inodes.get(&ino).is_some_and(|inode| {
            let stays =
                matches!(&inode.item, Item::Directory(directory) if directory.ttl() == FOREVER);
            stays && inode.moved_away.is_empty()
        })
    }

    /// Whether a file's bytes can never change: it stands in a fixed directory.
    pub fn stays(&self, ino: Ino) -> bool {
        self.is_fixed(self.parent(ino))
    }

    /// The kernel was given this inode in a listing: one more lookup.
    pub fn remember(&self, ino: Ino) {
        if let Some(inode) = self.lock().inodes.get_mut(&ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel forgets so many lookups of an inode. Gives the staged inodes that it does not
    /// know by an old number any more.
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
        // A parent that was waiting only for this child goes with it.
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
            if let Some(staged) = state.carried.remove(&at) {
                state.known_as.remove(&staged);
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

    /// `mv` took `name` away from here: it is gone, and `ino` is the staged inode `to` from now on.
    pub fn carry(&self, parent: Ino, name: &str, to: Ino) {
        let mut state = self.lock();
        let Some(inode) = state.inodes.get_mut(&parent) else { return };
        inode.moved_away.insert(name.to_owned());
        if let Some(ino) = inode.children.remove(name) {
            state.carried.insert(ino, to);
            state.known_as.insert(to, ino);
        }
    }

    fn is_moved_away(&self, parent: Ino, name: &str) -> bool {
        self.lock().inodes.get(&parent).is_some_and(|inode| inode.moved_away.contains(name))
    }

    /// A directory's listing, kept as long as it may be; `afresh` asks again if it can change at
    /// all.
    async fn listing(&self, ino: Ino, afresh: bool) -> Result<(Listing, Duration)> {
        let directory = {
            let state = self.lock();
            let inode = state.inodes.get(&ino).ok_or(Errno::STALE)?;
            let Item::Directory(directory) = &inode.item else { return Err(Errno::NOTDIR) };
            let ttl = directory.ttl();
            if let Some((since, listing)) = &inode.listing
                && (ttl == FOREVER || (!afresh && since.elapsed() < ttl))
            {
                return Ok((listing.clone(), ttl));
            }
            directory.clone()
        };
        let listed = directory.list().await;
        let listing = listed.map_err(|error| {
            let path = self.path(ino);
            tracing::error!(path, error = chain(&error), "a folder cannot be listed");
            self.reads.note(&path, &ReadFailure::of_store(&error))
        })?;
        if let Some(inode) = self.lock().inodes.get_mut(&ino) {
            inode.listing = Some((Instant::now(), listing.clone()));
        }
        Ok((listing, directory.ttl()))
    }

    /// The inode of a name, made if there is none yet.
    fn entry(&self, parent: Ino, name: &str, item: &Item, looked_up: bool) -> Result<Attr> {
        let mut state = self.lock();
        let next = state.next;
        let directory = state.inodes.get_mut(&parent).ok_or(Errno::STALE)?;
        let ttl = match &directory.item {
            Item::Directory(directory) => directory.ttl(),
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
            state.inodes.insert(ino, Inode::new(parent, name.to_owned(), item.clone()));
        }
        let inode = state.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        if ino != next {
            inode.item = item.clone();
        }
        inode.lookups += u64::from(looked_up);
        drop(state);
        let mut attr = self.attr(ino, item)?;
        attr.ttl = attr.ttl.min(ttl);
        Ok(attr)
    }

    /// The permissions that a blob's file was stored with, made readable for whoever reads this
    /// view. What its owner alone might read, such as a key, stays so where the module is that
    /// owner.
    pub(super) fn stored_mode(&self, entry: &FileEntry) -> u16 {
        let readable = match self.readers {
            Readers::Owner => 0o400,
            Readers::AnyUser => 0o444,
        };
        readable | u16::try_from(entry.mode & 0o777).unwrap_or(0)
    }

    /// The links of a directory: its name, its `.`, and the `..` of each directory in it, as on a
    /// plain disk; programs that walk a tree stop asking when they have met so many. 1 says that
    /// the number is not known.
    fn links_of(&self, ino: Ino, directory: &dyn Directory) -> u32 {
        let Some(fixed) = directory.known() else { return 1 };
        let state = self.lock();
        let moved_away = state.inodes.get(&ino).map(|inode| &inode.moved_away);
        let is_there =
            |name: &&String| moved_away.is_none_or(|moved_away| !moved_away.contains(*name));
        let directories = fixed.directories.iter().filter(is_there).count();
        u32::try_from(directories + 2).unwrap_or(u32::MAX)
    }

    fn attr(&self, ino: Ino, item: &Item) -> Result<Attr> {
        let more = if self.readers == Readers::AnyUser { 0o222 } else { 0 };
        let (kind, size, at, perm, ttl) = match item {
            Item::Directory(directory) => (
                Kind::Directory,
                0,
                clock::system_time(directory.mtime()),
                0o755 | more,
                directory.ttl(),
            ),
            Item::Text(bytes, at) => {
                (Kind::File, bytes.len() as u64, clock::system_time(*at), 0o444, FOREVER)
            }
            Item::Blob(entry) => {
                // As it was stored: a copy of it can be written then. Writing here is refused
                // whatever it says (EROFS).
                let perm = self.stored_mode(entry) | more;
                (Kind::File, entry.size, entry.modified(), perm, FOREVER)
            }
            Item::Live(path) => {
                let metadata = std::fs::metadata(path).map_err(|error| super::errno(&error))?;
                let modified = metadata.modified().map_err(|error| super::errno(&error))?;
                (Kind::File, metadata.size(), modified, 0o444, Duration::ZERO)
            }
            Item::Link(target) => {
                (Kind::Symlink, target.len() as u64, SystemTime::UNIX_EPOCH, 0o777, FOREVER)
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
                Item::Directory(directory) => self.links_of(ino, &**directory),
                _ => 1,
            },
            uid: self.uid,
            gid: self.gid,
            ttl,
        })
    }
}

impl Inode {
    fn new(parent: Ino, name: String, item: Item) -> Self {
        Self {
            parent,
            name,
            item,
            lookups: 0,
            children: HashMap::new(),
            listing: None,
            moved_away: HashSet::new(),
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
        let lost =
            Item::lazy(FOREVER, || std::future::ready(Err(StoreError::DamagedBlob("k".into()))));
        let view = View::new(Item::fixed([("lineage".to_owned(), lost)]), reads.clone());
        assert!(view.lookup(ROOT, "lineage").await.unwrap().is_ok());
        assert!(reads.so_far().is_empty());
        let ino = directory_of(&view, "lineage");
        assert_eq!(view.list(ino).await.unwrap_err(), Errno::IO);
        let failed = reads.so_far();
        assert_eq!((failed.first.len(), &*failed.first[0].path), (1, "lineage"));
        assert_eq!(failed.first[0].cause, ReadFailureCause::Damaged);
        assert_eq!(failed.first[0].blob.as_deref(), Some("k"));
    }
}
