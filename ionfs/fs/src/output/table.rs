//! The names below `out/`: where each inode stands, and what is known of each file.
//!
//! The staged tree changes only through this filesystem, so the table is the truth and the staging
//! folder its image: no lookup asks the disk, and a path is made by walking up the table.

mod deliveries;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use ion_model::event::{FileEntry, is_event_draft};
use ion_system::beneath::Pinned;
use rustix::fs::Stat;
use tokio::sync::OnceCell;

pub(super) use self::deliveries::DeliveryPlace;
use super::super::eventfile::{ContentChange, EventState};
use super::super::{Errno, FileKind, Ino, Result, STAGED};
use super::delivery::Delivery;
use super::handle::ContentWriter;
use super::in_order::InOrder;
use super::reference::Reference;
use super::request::ValueFileNames;

/// `out`
pub(crate) const OUT: Ino = STAGED;
/// `out/data`
pub(crate) const DATA: Ino = STAGED + 1;
/// `out/events`
pub(crate) const EVENTS: Ino = STAGED + 2;
/// `out/state`, which only runs of sources have.
pub(crate) const STATE: Ino = STAGED + 3;

/// The name of the file in `out/` by which a module says that its job has failed, and why.
pub(super) const FAILED_NAME: &str = "failed";

/// The most files without a name whose content one job may keep for processes that looked the file
/// up and have not opened it yet. The kernel forgets such files within a moment. For files beyond
/// this number it gets the answer that they are gone, as on a faster disk.
const HELD_UNNAMED_MAX: usize = 256;

/// The blob of one generation of a file, stored or still being stored.
pub(super) type BlobCell = Arc<OnceCell<FileEntry>>;

/// The blob of one generation of a file.
#[derive(Debug)]
pub(super) struct StoredContent {
    pub(super) generation: u64,
    /// What the blob's key begins with.
    pub(super) prefix: Arc<str>,
    pub(super) blob: BlobCell,
}

/// A write that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedWrite {
    /// The offset from which the file may lack what was written.
    pub(super) at: u64,
    pub(super) errno: Errno,
}

/// The file of `in/` that a file is a hard link of.
#[derive(Clone, Copy, Debug)]
pub(super) struct InputLink {
    pub(super) ino: Ino,
    /// The generation of the linking file when the link was made.
    pub(super) generation: u64,
}

#[derive(Debug, Default)]
pub(super) struct FileNode {
    /// Open handles.
    pub(super) opens: u32,
    /// Open handles of programs that run from the file.
    pub(super) programs: u32,
    /// Open handles that may write.
    pub(super) writers: Vec<Arc<ContentWriter>>,
    /// Raised by every change of content.
    pub(super) generation: u64,
    pub(super) reference: Option<Reference>,
    /// Bytes that count against the job's limit.
    pub(super) charged: u64,
    /// A write that failed. Until its offset is written again, the file does not hold what its
    /// writer meant.
    pub(super) failed: Option<FailedWrite>,
    /// Present if each byte was written once and in order. None otherwise, and while bytes are
    /// being written.
    pub(super) in_order: Option<InOrder>,
    /// The blob of the file's content, or of an earlier generation of it.
    pub(super) stored: Option<StoredContent>,
    /// Whether a background upload waits for its turn.
    pub(super) upload_waits: bool,
    /// The attributes that the file had before the daemon copied bytes of its blob into the staged
    /// file. They are shown until the module changes the file: filling a reference is not a change
    /// that the module made.
    pub(super) shown: Option<Box<Stat>>,
    /// The file of `in/` that this file is a hard link of. The file shows that inode's number while
    /// their content is the same.
    pub(super) linked_to: Option<InputLink>,
    /// Present for files in `out/events` and for `insights.json`.
    pub(super) event: Option<Box<EventState>>,
}

impl FileNode {
    /// Returns EROFS if the content may not change, because it is an event or is being committed as
    /// one.
    pub(super) fn check_change(&self) -> Result<()> {
        match &self.event {
            Some(event) if event.is_fixed() => Err(Errno::ROFS),
            _ => Ok(()),
        }
    }

    /// Returns EROFS if the file may not get another name, because it is an event. A file that is
    /// being committed may still be renamed: its own commit gives it its name.
    pub(super) fn check_move(&self) -> Result<()> {
        match &self.event {
            Some(event) if event.is_committed => Err(Errno::ROFS),
            _ => Ok(()),
        }
    }

    /// Notes that the content changes.
    pub(super) fn note_change(&mut self, change: ContentChange) {
        self.generation += 1;
        self.in_order = None;
        self.shown = None;
        if let Some(event) = &mut self.event {
            event.note_change(change);
        }
    }

    /// Returns the number of the file of `in/` that this file is a hard link of, if it still has
    /// that file's content.
    pub(super) fn shares_number_with(&self) -> Option<Ino> {
        self.linked_to.filter(|link| link.generation == self.generation).map(|link| link.ino)
    }
}

#[derive(Debug)]
pub(super) enum NodeBody {
    Directory(DirectoryNames),
    File(Box<FileNode>),
    Symlink,
    /// A pipe or a socket. The kernel handles its content, and asks only for its name and
    /// attributes.
    Special(FileKind),
}

impl NodeBody {
    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::Directory(_) => FileKind::Directory,
            Self::File(_) => FileKind::File,
            Self::Symlink => FileKind::Symlink,
            Self::Special(kind) => *kind,
        }
    }
}

/// A file that is gone, and of which something was stored.
#[derive(Debug)]
pub(super) struct OrphanedFile {
    /// The blob that was stored of it, or is still being stored.
    pub(super) blob: BlobCell,
    /// Its staged content, if the table still held it.
    pub(super) known: Option<Arc<Pinned>>,
}

/// The files that are gone since the orphans were last taken. The caller must let the
/// uploads discard their blobs.
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Orphans(pub(super) Vec<OrphanedFile>);

/// What is kept of an inode without a name.
#[derive(Clone, Debug)]
pub(super) enum UnnamedRemains {
    /// The content of an open file.
    Open(Arc<Pinned>),
    /// The content of a file that the kernel knows and that no process has open: a process that
    /// looked its name up may be about to open it.
    Known(Arc<Pinned>),
    /// The last attributes of another inode: of a directory that a process still uses, or of a
    /// pipe.
    Seen(Box<Stat>),
}

/// The positions of `.` and `..` in every listing; the first name follows them. A listing continues
/// behind a position, so 0 is its start.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;

/// A directory's names. Each name has a position in the listing that is never used again. So a
/// listing that continues behind a position neither repeats nor misses a name that existed all the
/// time, whatever is added and removed meanwhile.
#[derive(Debug)]
pub(super) struct DirectoryNames {
    places: HashMap<Arc<OsStr>, u64>,
    entries: BTreeMap<u64, (Arc<OsStr>, Ino)>,
    last: u64,
}

impl Default for DirectoryNames {
    fn default() -> Self {
        Self { places: HashMap::new(), entries: BTreeMap::new(), last: DOT_DOT }
    }
}

impl DirectoryNames {
    fn get(&self, name: &OsStr) -> Option<Ino> {
        self.places.get(name).and_then(|place| self.entries.get(place)).map(|(_, ino)| *ino)
    }

    fn insert(&mut self, name: Arc<OsStr>, ino: Ino) {
        self.last += 1;
        self.places.insert(name.clone(), self.last);
        self.entries.insert(self.last, (name, ino));
    }

    fn remove(&mut self, name: &OsStr) -> Option<Ino> {
        let place = self.places.remove(name)?;
        self.entries.remove(&place).map(|(_, ino)| ino)
    }

    /// Returns the names behind a position, each with its own position and its inode.
    pub(super) fn entries_after(
        &self,
        place: u64,
    ) -> impl Iterator<Item = (u64, &Arc<OsStr>, Ino)> {
        let from = place.max(DOT_DOT).saturating_add(1);
        self.entries.range(from..).map(|(place, (name, ino))| (*place, name, *ino))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<OsStr>, Ino)> {
        self.entries.values().map(|(name, ino)| (name, *ino))
    }
}

#[derive(Debug)]
pub(super) struct OutputNode {
    /// Its names, each with the directory that holds it. Empty if it is unlinked; more than one for
    /// hard links.
    pub(super) links: Vec<(Ino, Arc<OsStr>)>,
    pub(super) body: NodeBody,
    /// The kernel's lookup count: how often it received the inode and has not forgotten it. While
    /// it is above 0, the kernel may ask for the inode by number, even if the inode has no name.
    pub(super) known: u64,
    /// What is kept of it once its last name is gone.
    pub(super) remains: Option<UnnamedRemains>,
    /// Bytes that count against the job's limit in addition to its content: extended attributes,
    /// and the target of a symbolic link.
    extra_bytes: u64,
}

#[derive(Debug)]
pub(super) struct OutputTable {
    nodes: HashMap<Ino, OutputNode>,
    next: Ino,
    /// The sum of the bytes that all inodes are charged.
    staged_bytes: u64,
    /// Files that are gone, of which something was stored or is still being stored.
    orphans: Vec<OrphanedFile>,
    /// Inodes without a name that no process has open. On a disk they would be gone; here they stay
    /// until the kernel reports, a moment later, that it has forgotten them.
    unused: HashSet<Ino>,
    /// Inodes without a name whose content is held.
    held: HashSet<Ino>,
    insights: &'static [&'static str],
    /// The deliveries of an inbox; none in the output of a job.
    deliveries: Option<HashMap<Ino, Delivery>>,
}

impl OutputTable {
    /// Makes the table of a job's output.
    pub(super) fn new(names: ValueFileNames) -> Self {
        let mut table = Self::with_insights(match names {
            ValueFileNames::Current => &["insights.json"],
            ValueFileNames::WithMetaJson => &["insights.json", "meta.json"],
        });
        table.add_fixed_folder("data", DATA);
        table.add_fixed_folder("events", EVENTS);
        table
    }

    /// Makes a table without any name.
    fn with_insights(insights: &'static [&'static str]) -> Self {
        let out = OutputNode {
            links: vec![],
            body: NodeBody::Directory(DirectoryNames::default()),
            known: 0,
            remains: None,
            extra_bytes: 0,
        };
        Self {
            nodes: HashMap::from([(OUT, out)]),
            next: STATE + 1,
            staged_bytes: 0,
            orphans: vec![],
            unused: HashSet::new(),
            held: HashSet::new(),
            insights,
            deliveries: None,
        }
    }

    /// Adds a folder of `out/` that cannot be moved or removed.
    pub(super) fn add_fixed_folder(&mut self, name: &str, ino: Ino) {
        let name: Arc<OsStr> = OsStr::new(name).into();
        let node = OutputNode {
            links: vec![(OUT, name.clone())],
            body: NodeBody::Directory(DirectoryNames::default()),
            known: 0,
            remains: None,
            extra_bytes: 0,
        };
        self.nodes.insert(ino, node);
        if let Some(NodeBody::Directory(names)) = self.nodes.get_mut(&OUT).map(|out| &mut out.body)
        {
            names.insert(name, ino);
        }
    }

    /// Returns whether an inode is one of the folders that cannot be moved or removed.
    pub(super) fn is_fixed_folder(&self, ino: Ino) -> bool {
        matches!(ino, DATA | EVENTS | STATE) || self.is_type_folder(ino)
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&OutputNode> {
        self.nodes.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut OutputNode> {
        self.nodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn file(&self, ino: Ino) -> Result<&FileNode> {
        match &self.node(ino)?.body {
            NodeBody::File(file) => Ok(file),
            NodeBody::Directory(_) => Err(Errno::ISDIR),
            NodeBody::Symlink | NodeBody::Special(_) => Err(Errno::INVAL),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> Result<&mut FileNode> {
        match &mut self.node_mut(ino)?.body {
            NodeBody::File(file) => Ok(file),
            NodeBody::Directory(_) => Err(Errno::ISDIR),
            NodeBody::Symlink | NodeBody::Special(_) => Err(Errno::INVAL),
        }
    }

    /// Returns whether a file has a name or is open, so that its content can still matter.
    pub(super) fn is_in_use(&self, ino: Ino) -> bool {
        self.node(ino).is_ok_and(|node| {
            !node.links.is_empty() || matches!(&node.body, NodeBody::File(file) if file.opens > 0)
        })
    }

    pub(super) fn directory(&self, ino: Ino) -> Result<&DirectoryNames> {
        match &self.node(ino)?.body {
            NodeBody::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut DirectoryNames> {
        match &mut self.node_mut(ino)?.body {
            NodeBody::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn child(&self, parent: Ino, name: &OsStr) -> Result<Option<Ino>> {
        Ok(self.directory(parent)?.get(name))
    }

    /// Returns the directory that holds an inode, and the inode's name there; none if it is
    /// unlinked.
    pub(super) fn place(&self, ino: Ino) -> Option<(Ino, &Arc<OsStr>)> {
        self.nodes.get(&ino)?.links.first().map(|(parent, name)| (*parent, name))
    }

    /// Returns the files of one directory.
    pub(super) fn files_in(&self, parent: Ino) -> Vec<(Arc<OsStr>, Ino)> {
        let entries = self.directory(parent).into_iter().flat_map(DirectoryNames::iter);
        entries
            .filter(|(_, ino)| self.file(*ino).is_ok())
            .map(|(name, ino)| (name.clone(), ino))
            .collect()
    }

    /// Returns the number of the job's inodes that count against its limit: those with a name or
    /// open. Other inodes, which the kernel has not reported as forgotten yet, are free as long as
    /// there are no more of them than of those.
    pub(super) fn counted_inodes(&self) -> u64 {
        let unused = self.unused.len() as u64;
        let fixed = (OUT..=STATE).filter(|ino| self.nodes.contains_key(ino)).count() as u64;
        (self.nodes.len() as u64).saturating_sub(fixed + unused).max(unused)
    }

    /// Returns the path of an inode below the staging folder; none if it is unlinked.
    pub(super) fn path(&self, ino: Ino) -> Option<PathBuf> {
        if ino == OUT {
            return Some(PathBuf::from("."));
        }
        let mut parts: Vec<&OsStr> = Vec::new();
        let mut at = ino;
        while at != OUT {
            let (parent, name) = self.nodes.get(&at)?.links.first()?;
            parts.push(name);
            at = *parent;
        }
        Some(parts.iter().rev().collect())
    }

    /// Returns the path of a name in a directory.
    pub(super) fn path_in(&self, parent: Ino, name: &OsStr) -> Result<PathBuf> {
        self.directory(parent)?;
        Ok(self.path(parent).ok_or(Errno::NOENT)?.join(name))
    }

    /// Returns whether `ino` is `ancestor` or lies below it.
    pub(super) fn is_below(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.links.first()) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    /// Returns an error if a directory may not hold this name and kind: one of the directories that
    /// every tree begins with.
    pub(super) fn check_place(&self, parent: Ino, name: &OsStr, kind: FileKind) -> Result<()> {
        if self.is_inbox() {
            return self.check_inbox_place(parent, name, kind);
        }
        match parent {
            // An event is identified by its name, in documents that hold only UTF-8.
            EVENTS if name.to_str().is_none() => Err(Errno::ILSEQ),
            EVENTS if kind != FileKind::File => Err(Errno::PERM),
            // Editors and `sed -i` put a draft beside a file; anything else in `out/` is a mistake
            // worth an error.
            OUT if kind != FileKind::File => Err(Errno::PERM),
            OUT if !self.is_insights(parent, name)
                && name != FAILED_NAME
                && !is_event_draft(&name.to_string_lossy()) =>
            {
                Err(Errno::PERM)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn add(&mut self, parent: Ino, name: &OsStr, body: NodeBody) -> Result<Ino> {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(
            ino,
            OutputNode { links: vec![], body, known: 0, remains: None, extra_bytes: 0 },
        );
        self.link(ino, parent, name)?;
        Ok(ino)
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        let name: Arc<OsStr> = name.into();
        self.directory_mut(parent)?.insert(name.clone(), ino);
        self.node_mut(ino)?.links.push((parent, name));
        self.update_delivery(ino);
        self.update_unnamed(ino);
        self.note_change(ino);
        Ok(())
    }

    /// Removes a name. `remains` is what is kept of the inode if that was its last name.
    pub(super) fn unlink(
        &mut self,
        parent: Ino,
        name: &OsStr,
        remains: Option<UnnamedRemains>,
    ) -> Result<()> {
        let ino = self.directory_mut(parent)?.remove(name).ok_or(Errno::NOENT)?;
        let node = self.node_mut(ino)?;
        node.links.retain(|(at, as_name)| !(*at == parent && **as_name == *name));
        if node.links.is_empty() {
            node.remains = remains;
        }
        self.update_delivery(ino);
        self.note_change(ino);
        self.update_unnamed(ino);
        Ok(())
    }

    /// Returns whether the content of one more file without a name may be held.
    pub(super) fn has_room_for_unnamed(&self) -> bool {
        self.held.len() < HELD_UNNAMED_MAX
    }

    /// Drops the content that is held of files that no process can reach any more, and returns
    /// whether there was any. On a disk its space would be free already.
    pub(super) fn drop_held(&mut self) -> bool {
        let held: Vec<Ino> = self.held.intersection(&self.unused).copied().collect();
        for ino in &held {
            self.drop_remains(*ino);
        }
        !held.is_empty()
    }

    fn drop_remains(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino)
            && !matches!(node.remains, Some(UnnamedRemains::Seen(_)))
        {
            node.remains = None;
        }
        self.held.remove(&ino);
        self.charge(ino, 0, u64::MAX);
        self.charge_extra(ino, 0, u64::MAX);
    }

    /// Records that a file is gone: nothing can name its blob any more.
    fn add_orphan(&mut self, node: OutputNode) {
        let known = match node.remains {
            Some(UnnamedRemains::Known(pinned)) => Some(pinned),
            _ => None,
        };
        if let NodeBody::File(file) = node.body
            && let Some(StoredContent { blob, .. }) = file.stored
        {
            self.orphans.push(OrphanedFile { blob, known });
        }
    }

    /// Returns the files that are gone since the last call.
    pub(super) fn take_orphans(&mut self) -> Orphans {
        Orphans(std::mem::take(&mut self.orphans))
    }

    /// Updates what is kept of an inode. Of an inode without a name that no process has open, only
    /// what the kernel may ask for is kept, and nothing once the kernel has forgotten it.
    pub(super) fn update_unnamed(&mut self, ino: Ino) {
        let may_hold = self.has_room_for_unnamed();
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino > STATE) else { return };
        let open = matches!(&node.body, NodeBody::File(file) if file.opens > 0);
        if !node.links.is_empty() || open {
            self.unused.remove(&ino);
            return;
        }
        if node.known == 0 {
            let _ = self.charge(ino, 0, u64::MAX);
            let _ = self.charge_extra(ino, 0, u64::MAX);
            self.unused.remove(&ino);
            self.held.remove(&ino);
            if let Some(node) = self.nodes.remove(&ino) {
                self.add_orphan(node);
            }
            return;
        }
        self.unused.insert(ino);
        match node.remains.take() {
            Some(UnnamedRemains::Open(content) | UnnamedRemains::Known(content))
                if may_hold || self.held.contains(&ino) =>
            {
                node.remains = Some(UnnamedRemains::Known(content));
                self.held.insert(ino);
            }
            seen @ Some(UnnamedRemains::Seen(_)) => {
                node.remains = seen;
                self.drop_remains(ino);
            }
            _ => self.drop_remains(ino),
        }
    }

    /// Notes that the module changed an inode: the attributes that were shown until now are no
    /// longer valid.
    pub(super) fn note_change(&mut self, ino: Ino) {
        if let Ok(file) = self.file_mut(ino) {
            file.shown = None;
        }
    }

    /// Returns whether `bytes` more stay within `most`.
    pub(super) fn has_room_for(&self, bytes: u64, most: u64) -> bool {
        self.staged_bytes.saturating_add(bytes) <= most
    }

    /// Returns the bytes of an inode's extended attributes, or of a symbolic link's target.
    pub(super) fn extra_bytes(&self, ino: Ino) -> u64 {
        self.nodes.get(&ino).map_or(0, |node| node.extra_bytes)
    }

    /// Sets the bytes that an inode counts in addition to its content. Returns false, and changes
    /// nothing, if all inodes together would count more than `most`.
    pub(super) fn charge_extra(&mut self, ino: Ino, bytes: u64, most: u64) -> bool {
        let Some(node) = self.nodes.get_mut(&ino) else { return true };
        let after = (self.staged_bytes - node.extra_bytes).saturating_add(bytes);
        if bytes > node.extra_bytes && after > most {
            return false;
        }
        node.extra_bytes = bytes;
        self.staged_bytes = after;
        true
    }

    /// Sets the bytes that a file's content counts. Returns false, and changes nothing, if all
    /// inodes together would count more than `most`.
    pub(super) fn charge(&mut self, ino: Ino, bytes: u64, most: u64) -> bool {
        let total = self.staged_bytes;
        let Ok(file) = self.file_mut(ino) else { return true };
        let after = (total - file.charged).saturating_add(bytes);
        // Lowering the charge is always allowed.
        if bytes > file.charged && after > most {
            return false;
        }
        file.charged = bytes;
        self.staged_bytes = after;
        true
    }

    /// Returns the length in bytes of the longest path below a directory, counted from the
    /// directory.
    pub(super) fn longest_path_below(&self, ino: Ino) -> usize {
        let (mut longest, mut left) = (0, vec![(ino, 0)]);
        while let Some((ino, length)) = left.pop() {
            longest = longest.max(length);
            let entries = self.directory(ino).into_iter().flat_map(DirectoryNames::iter);
            left.extend(entries.map(|(name, child)| (child, length + name.len() + 1)));
        }
        longest
    }

    /// Returns the names of the files in `out/` that are kept for analysis.
    pub(super) fn insights(&self) -> &'static [&'static str] {
        self.insights
    }

    /// Returns whether a file of this name is kept for analysis.
    pub(super) fn is_insights(&self, parent: Ino, name: &OsStr) -> bool {
        parent == OUT && self.insights.iter().any(|known| name == *known)
    }
}
