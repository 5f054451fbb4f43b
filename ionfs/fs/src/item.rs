//! What the names of a view stand for: directories that are listed when they are first accessed,
//! and files whose bytes are fetched when they are read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ion_model::clock::Millis;
use ion_model::event::FileEntry;
use ion_stores::StoreError;

use super::{FOREVER, FileKind};

/// What a name in a view stands for.
#[derive(Clone, Debug)]
pub enum ViewItem {
    /// A directory.
    Directory(Arc<dyn Directory>),
    /// A small file: its bytes, held in memory, and its modification time.
    Text(Bytes, Millis),
    /// A file whose bytes are a blob.
    Blob(Arc<FileEntry>),
    /// A local file that grows: the output of a job that runs on this machine.
    Live(PathBuf),
    /// A symbolic link: its target, and its modification time.
    Link(String, Millis),
}

impl ViewItem {
    /// Returns the kind of inode that the name stands for.
    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::Directory(_) => FileKind::Directory,
            Self::Text(..) | Self::Blob(_) | Self::Live(_) => FileKind::File,
            Self::Link(..) => FileKind::Symlink,
        }
    }

    /// Makes a directory whose entries are known and never change.
    pub fn fixed(entries: impl IntoIterator<Item = (String, ViewItem)>) -> Self {
        let listing: Listing = entries.into_iter().collect();
        let directories = listing.iter().filter(|(_, item)| matches!(item, ViewItem::Directory(_)));
        let directories = directories.map(|(name, _)| name.to_owned()).collect();
        Self::Directory(Arc::new(FixedDirectory { listing, directories }))
    }

    /// Makes a directory that `list` lists on access. A listing stays valid for `ttl`.
    pub fn lazy<F, L>(ttl: Duration, list: F) -> Self
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = ListResult> + Send + 'static,
    {
        Self::lazy_at(ttl, 0, list)
    }

    /// Makes a directory like [`ViewItem::lazy`] with a modification time.
    pub fn lazy_at<F, L>(ttl: Duration, mtime: Millis, list: F) -> Self
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = ListResult> + Send + 'static,
    {
        Self::Directory(Arc::new(LazyDirectory { ttl, mtime, list }))
    }

    /// Makes a directory like [`ViewItem::lazy`] in which `find` finds further names: those that
    /// `list` does not list, because there are too many, and those that stand for others. `mtime`
    /// is its modification time.
    pub fn searchable<F, L, S, R>(ttl: Duration, mtime: Millis, list: F, find: S) -> Self
    where
        F: Fn() -> L + Send + Sync + 'static,
        L: Future<Output = ListResult> + Send + 'static,
        S: Fn(String) -> R + Send + Sync + 'static,
        R: Future<Output = FindResult> + Send + 'static,
    {
        let list = LazyDirectory { ttl, mtime, list };
        Self::Directory(Arc::new(SearchableDirectory { list, find }))
    }

    /// Makes a directory of any number of names: `begin` makes a reader of them all, and `find`
    /// finds each of them, and names that stand for others. `mtime` is its modification time.
    pub fn paged<S, R>(
        ttl: Duration,
        mtime: Millis,
        begin: impl Fn() -> Box<dyn NamePages> + Send + Sync + 'static,
        find: S,
    ) -> Self
    where
        S: Fn(String) -> R + Send + Sync + 'static,
        R: Future<Output = FindResult> + Send + 'static,
    {
        Self::Directory(Arc::new(PagedDirectory { ttl, mtime, begin, find }))
    }

    /// Makes a file that holds `value` as pretty-printed JSON with a newline at its end.
    pub fn json(value: &impl serde::Serialize, at: Millis) -> Self {
        let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
        text.push('\n');
        Self::Text(text.into(), at)
    }
}

/// The entries of a directory, or the error of the store that could not list them.
pub(crate) type ListResult = std::result::Result<Vec<(String, ViewItem)>, StoreError>;

/// What a name stands for, if it stands for something, or the error of the store that could not be
/// asked.
pub(crate) type FindResult = std::result::Result<Option<ViewItem>, StoreError>;

/// The next names of a directory, or none after the last ones, or the error of the store that could
/// not be asked.
pub(crate) type NamesResult = std::result::Result<Option<Vec<(String, ViewItem)>>, StoreError>;

/// Reads the names of a directory that may have any number of them, some at a time.
#[async_trait]
pub trait NamePages: Send {
    /// Returns the next names. A part may be empty though names follow, so that a caller can end a
    /// search that finds none.
    async fn next(&mut self) -> NamesResult;

    /// Returns another reader, which goes on where this one is.
    fn bookmark(&self) -> Box<dyn NamePages>;

    /// Returns the file that a caller lists instead of the names that follow, if it ends the reading
    /// before the last one. The file says how to see them.
    fn rest(&self) -> (String, ViewItem);
}

/// The entries of a directory at one moment, sorted by name. Clones share one copy.
#[derive(Clone, Debug, Default)]
pub struct Listing(Arc<[(String, ViewItem)]>);

/// Returns whether a directory may have this name.
pub(super) fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
}

impl FromIterator<(String, ViewItem)> for Listing {
    /// If two items have the same name, the later one is kept. With a name that no directory may
    /// have, the kernel would refuse the whole listing, so such names are left out.
    fn from_iter<I: IntoIterator<Item = (String, ViewItem)>>(items: I) -> Self {
        let valid = items.into_iter().filter(|(name, _)| is_valid_name(name));
        let by_name: BTreeMap<String, ViewItem> = valid.collect();
        Self(by_name.into_iter().collect())
    }
}

impl Listing {
    /// Returns the item of a name.
    pub fn get(&self, name: &str) -> Option<&ViewItem> {
        let at = self.0.binary_search_by(|(one, _)| one.as_str().cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// Returns all entries in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ViewItem)> {
        self.0.iter().map(|(name, item)| (name.as_str(), item))
    }

    /// Returns the entries whose names sort after `name`, which need not be in the listing.
    pub(super) fn entries_after(&self, name: &str) -> impl Iterator<Item = (&str, &ViewItem)> {
        let from = self.0.partition_point(|(one, _)| one.as_str() <= name);
        self.0[from..].iter().map(|(name, item)| (name.as_str(), item))
    }

    /// Returns the name and the item at a position, counted from 0.
    pub(super) fn entry_at(&self, place: usize) -> Option<(&str, &ViewItem)> {
        self.0.get(place).map(|(name, item)| (name.as_str(), item))
    }
}

/// A directory that can be listed.
#[async_trait]
pub trait Directory: Send + Sync + std::fmt::Debug {
    /// Lists the directory's entries.
    async fn list(&self) -> std::result::Result<Listing, StoreError>;

    /// Returns the item of a name that is in no listing. Most directories have no such names.
    async fn find(&self, _name: &str) -> FindResult {
        Ok(None)
    }

    /// Begins to read the names of a directory that may have any number of them. Such a directory
    /// is never listed as a whole, and finds each of its names.
    fn pages(&self) -> Option<Box<dyn NamePages>> {
        None
    }

    /// Returns the entries if they are known without asking a store.
    fn fixed_entries(&self) -> Option<&FixedDirectory> {
        None
    }

    /// Returns how long a listing stays valid.
    fn ttl(&self) -> Duration {
        FOREVER
    }

    /// Returns the directory's modification time.
    fn mtime(&self) -> Millis {
        0
    }
}

/// A directory that a closure lists.
struct LazyDirectory<F> {
    ttl: Duration,
    mtime: Millis,
    list: F,
}

impl<F> std::fmt::Debug for LazyDirectory<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, L> Directory for LazyDirectory<F>
where
    F: Fn() -> L + Send + Sync,
    L: Future<Output = ListResult> + Send,
{
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        Ok((self.list)().await?.into_iter().collect())
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    fn mtime(&self) -> Millis {
        self.mtime
    }
}

/// A directory in which a closure finds names that are not listed.
struct SearchableDirectory<F, S> {
    list: LazyDirectory<F>,
    find: S,
}

impl<F, S> std::fmt::Debug for SearchableDirectory<F, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Searchable").field("list", &self.list).finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, L, S, R> Directory for SearchableDirectory<F, S>
where
    F: Fn() -> L + Send + Sync,
    L: Future<Output = ListResult> + Send,
    S: Fn(String) -> R + Send + Sync,
    R: Future<Output = FindResult> + Send,
{
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        self.list.list().await
    }

    async fn find(&self, name: &str) -> FindResult {
        (self.find)(name.to_owned()).await
    }

    fn ttl(&self) -> Duration {
        self.list.ttl
    }

    fn mtime(&self) -> Millis {
        self.list.mtime
    }
}

/// A directory whose names closures read and find.
struct PagedDirectory<B, S> {
    ttl: Duration,
    mtime: Millis,
    begin: B,
    find: S,
}

impl<B, S> std::fmt::Debug for PagedDirectory<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paged").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

#[async_trait]
impl<B, S, R> Directory for PagedDirectory<B, S>
where
    B: Fn() -> Box<dyn NamePages> + Send + Sync,
    S: Fn(String) -> R + Send + Sync,
    R: Future<Output = FindResult> + Send,
{
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        Ok(Listing::default())
    }

    async fn find(&self, name: &str) -> FindResult {
        (self.find)(name.to_owned()).await
    }

    fn pages(&self) -> Option<Box<dyn NamePages>> {
        Some((self.begin)())
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    fn mtime(&self) -> Millis {
        self.mtime
    }
}

/// A directory whose entries are known and never change.
#[derive(Debug)]
pub struct FixedDirectory {
    listing: Listing,
    /// The names of the entries that are directories.
    pub(super) directories: Vec<String>,
}

#[async_trait]
impl Directory for FixedDirectory {
    async fn list(&self) -> std::result::Result<Listing, StoreError> {
        Ok(self.listing.clone())
    }

    fn fixed_entries(&self) -> Option<&FixedDirectory> {
        Some(self)
    }
}

/// Makes the directory that holds these files under their paths. Slashes in the paths become
/// directories; `empty` names directories that hold nothing.
pub(crate) fn files_tree(files: &[FileEntry], empty: &[String]) -> ViewItem {
    #[derive(Default)]
    struct Branch {
        branches: BTreeMap<String, Branch>,
        leaves: BTreeMap<String, Arc<FileEntry>>,
    }
    fn item_of(branch: Branch) -> ViewItem {
        let leaves = branch.leaves.into_iter().map(|(name, entry)| (name, ViewItem::Blob(entry)));
        // A directory wins over a file of the same name: its files could not be reached otherwise.
        let branches = branch.branches.into_iter().map(|(name, branch)| (name, item_of(branch)));
        ViewItem::fixed(leaves.chain(branches))
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
    item_of(root)
}
