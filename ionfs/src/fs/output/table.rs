//! The names below `out/`: which inode stands where, and what is known of each file.
//!
//! The staged tree changes only through this filesystem, so the table is the truth and the staging folder its
//! image: no lookup asks the disk, and a path is made by walking up.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::Stat;
use tokio::sync::OnceCell;

use super::super::eventfile::EventState;
use super::super::{Errno, Ino, Kind, Result, STAGED};
use super::Names;
use super::early::InOrder;
use super::reference::Reference;
use crate::event::FileEntry;

/// `out`
pub(crate) const OUT: Ino = STAGED;
/// `out/data`
pub(crate) const DATA: Ino = STAGED + 1;
/// `out/events`
pub(crate) const EVENTS: Ino = STAGED + 2;

/// The blob that one generation of a file became, or is becoming.
pub(super) type Stored = Arc<OnceCell<FileEntry>>;

/// What became of a blob that this job has uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uploaded {
    /// No event names it yet.
    Unnamed,
    /// An event names it, or is about to.
    Named,
    /// A later content of its file took its place; it is being removed.
    Superseded,
}

#[derive(Debug, Default)]
pub(super) struct FileNode {
    /// Open handles.
    pub(super) opens: u32,
    /// Those of programs that run from it.
    pub(super) programs: u32,
    /// Those that may write: whether each was flushed since its last write.
    pub(super) writers: Vec<Arc<AtomicBool>>,
    /// Raised by every change of content.
    pub(super) generation: u64,
    pub(super) reference: Option<Reference>,
    /// Bytes it counts against the job's limit.
    pub(super) charged: u64,
    /// Where a write failed, and with what: until somebody writes there again, it is not what its writer meant.
    pub(super) failed: Option<(u64, Errno)>,
    /// If each byte was written once and in order; none otherwise, or while one is being written.
    pub(super) in_order: Option<InOrder>,
    pub(super) stored: Option<(u64, Stored)>,
    /// A background upload waits for its turn.
    pub(super) upload_waits: bool,
    /// Of files in `out/events` and of `insights.json`.
    pub(super) event: Option<Box<EventState>>,
}

#[derive(Debug)]
pub(super) enum Body {
    Directory(BTreeMap<OsString, Ino>),
    File(Box<FileNode>),
    Symlink,
    /// A pipe or a socket: the kernel's own, which asks for its name and its attributes only.
    Special(Kind),
}

/// What is left of an inode without a name.
#[derive(Clone, Debug)]
pub(super) enum Remains {
    /// An open file.
    Open(Arc<OwnedFd>),
    /// Its attributes at the end: of a directory that somebody stands in, of a pipe.
    Seen(Box<Stat>),
}

#[derive(Debug)]
pub(super) struct Node {
    /// Where it stands; none: unlinked. More than one: hard links.
    pub(super) links: Vec<(Ino, OsString)>,
    pub(super) body: Body,
    /// How many times the kernel was given it and has not forgotten: it may ask for it by number, also without a name.
    pub(super) known: u64,
    /// What can be told of it when its last name is gone.
    pub(super) remains: Option<Remains>,
}

#[derive(Debug)]
pub(super) struct Table {
    nodes: HashMap<Ino, Node>,
    next: Ino,
    /// The sum of what all files are charged.
    staged_bytes: u64,
    insights: &'static [&'static str],
}

impl Table {
    pub(super) fn new(names: Names) -> Self {
        let insights: &[&str] = match names {
            Names::Current => &["insights.json"],
            Names::AndSecondGeneration => &["insights.json", "meta.json"],
        };
        let directory = |parent: Ino, name: &str, children: &[(&str, Ino)]| Node {
            links: if parent == OUT && name.is_empty() { vec![] } else { vec![(parent, name.into())] },
            body: Body::Directory(children.iter().map(|(name, ino)| ((*name).into(), *ino)).collect()),
            known: 0,
            remains: None,
        };
        let nodes = HashMap::from([
            (OUT, directory(OUT, "", &[("data", DATA), ("events", EVENTS)])),
            (DATA, directory(OUT, "data", &[])),
            (EVENTS, directory(OUT, "events", &[])),
        ]);
        Self { nodes, next: EVENTS + 1, staged_bytes: 0, insights }
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn file(&self, ino: Ino) -> Result<&FileNode> {
        match &self.node(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::ISDIR),
            Body::Symlink | Body::Special(_) => Err(Errno::INVAL),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> Result<&mut FileNode> {
        match &mut self.node_mut(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::ISDIR),
            Body::Symlink | Body::Special(_) => Err(Errno::INVAL),
        }
    }

    /// Whether a file has a name or is open: whether its content can still matter.
    pub(super) fn is_in_use(&self, ino: Ino) -> bool {
        self.node(ino).is_ok_and(|node| {
            !node.links.is_empty() || matches!(&node.body, Body::File(file) if file.opens > 0)
        })
    }

    pub(super) fn children(&self, ino: Ino) -> Result<&BTreeMap<OsString, Ino>> {
        match &self.node(ino)?.body {
            Body::Directory(children) => Ok(children),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn child(&self, parent: Ino, name: &OsStr) -> Result<Option<Ino>> {
        Ok(self.children(parent)?.get(name).copied())
    }

    /// The files of one directory.
    pub(super) fn files_in(&self, parent: Ino) -> Vec<(OsString, Ino)> {
        let children = self.children(parent).into_iter().flatten();
        children.filter(|(_, ino)| self.file(**ino).is_ok()).map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    /// Where the inode stands below the staging folder; none when it was unlinked.
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

    /// The path of a name in a directory.
    pub(super) fn path_in(&self, parent: Ino, name: &OsStr) -> Result<PathBuf> {
        self.children(parent)?;
        Ok(self.path(parent).ok_or(Errno::NOENT)?.join(name))
    }

    /// Whether `ino` is `ancestor` or lies below it.
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

    pub(super) fn add(&mut self, parent: Ino, name: &OsStr, body: Body) -> Result<Ino> {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, Node { links: vec![], body, known: 0, remains: None });
        self.link(ino, parent, name)?;
        Ok(ino)
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        let Body::Directory(children) = &mut self.node_mut(parent)?.body else { return Err(Errno::NOTDIR) };
        children.insert(name.to_owned(), ino);
        self.node_mut(ino)?.links.push((parent, name.to_owned()));
        Ok(())
    }

    /// Takes a name away. `remains` is what is left if it was the last.
    pub(super) fn unlink(&mut self, parent: Ino, name: &OsStr, remains: Option<Remains>) -> Result<()> {
        let Body::Directory(children) = &mut self.node_mut(parent)?.body else { return Err(Errno::NOTDIR) };
        let ino = children.remove(name).ok_or(Errno::NOENT)?;
        let node = self.node_mut(ino)?;
        node.links.retain(|(at, as_name)| !(*at == parent && as_name == name));
        if node.links.is_empty() {
            node.remains = remains;
        }
        self.drop_if_gone(ino);
        Ok(())
    }

    /// Forgets an inode that has neither a name nor an open handle and that the kernel knows no more.
    pub(super) fn drop_if_gone(&mut self, ino: Ino) {
        let gone = self.nodes.get(&ino).is_some_and(|node| {
            node.links.is_empty()
                && node.known == 0
                && match &node.body {
                    Body::File(file) => file.opens == 0,
                    Body::Directory(_) | Body::Symlink | Body::Special(_) => true,
                }
        });
        if gone && ino > EVENTS {
            let _ = self.charge(ino, 0, u64::MAX);
            self.nodes.remove(&ino);
        }
    }

    /// Lets a file count so many bytes from now on. False: all together would be more than `most`, and nothing changes.
    pub(super) fn charge(&mut self, ino: Ino, bytes: u64, most: u64) -> bool {
        let total = self.staged_bytes;
        let Ok(file) = self.file_mut(ino) else { return true };
        let after = (total - file.charged).saturating_add(bytes);
        // Giving back is always allowed.
        if bytes > file.charged && after > most {
            return false;
        }
        file.charged = bytes;
        self.staged_bytes = after;
        true
    }

    /// Bytes of the longest path below a directory, from it on.
    pub(super) fn reach(&self, ino: Ino) -> usize {
        let children = self.children(ino).into_iter().flatten();
        children.map(|(name, child)| name.len() + 1 + self.reach(*child)).max().unwrap_or(0)
    }

    /// The names in `out/` of what is kept for analysis.
    pub(super) fn insights(&self) -> &'static [&'static str] {
        self.insights
    }

    /// Whether a file under this name is kept for analysis.
    pub(super) fn is_insights(&self, parent: Ino, name: &OsStr) -> bool {
        parent == OUT && self.insights.iter().any(|known| name == *known)
    }
}
