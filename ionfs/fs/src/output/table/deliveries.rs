//! The table of an inbox: which names may stand where, and the deliveries.
//!
//! `out/` is the inbox itself. It holds a folder for each event type, and what lies directly in
//! one of these is a [`Delivery`]. Below a folder that is a delivery anything may lie, as in
//! `out/data`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use ion_model::event::is_inbox_draft;

use super::{NodeBody, OUT, OutputTable};
use crate::output::delivery::Delivery;
use crate::{Errno, FileKind, Ino, Result};

/// A delivery's place: the type in whose folder it lies, and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::output) struct DeliveryPlace {
    pub(in crate::output) event_type: String,
    pub(in crate::output) name: Arc<OsStr>,
}

impl DeliveryPlace {
    /// Returns the name under which it becomes an event; none for a draft.
    pub(in crate::output) fn event_name(&self) -> Option<&str> {
        self.name.to_str().filter(|name| !is_inbox_draft(name))
    }
}

impl OutputTable {
    /// Makes the table of an empty inbox.
    pub(in crate::output) fn of_inbox() -> Self {
        Self { deliveries: Some(HashMap::new()), ..Self::with_insights(&[]) }
    }

    /// Returns whether this is the table of an inbox.
    pub(in crate::output) fn is_inbox(&self) -> bool {
        self.deliveries.is_some()
    }

    /// Returns whether an inode is the folder of a type.
    pub(in crate::output) fn is_type_folder(&self, ino: Ino) -> bool {
        self.is_inbox() && self.place(ino).is_some_and(|(parent, _)| parent == OUT)
    }

    /// Returns the type whose folder an inode is.
    pub(in crate::output) fn type_of_folder(&self, ino: Ino) -> Option<String> {
        let (parent, name) = self.place(ino)?;
        (self.is_inbox() && parent == OUT).then(|| name.to_string_lossy().into_owned())
    }

    /// Returns a delivery, if this inode is one.
    pub(in crate::output) fn delivery(&self, ino: Ino) -> Option<&Delivery> {
        self.deliveries.as_ref()?.get(&ino)
    }

    /// Returns a delivery, if this inode is one.
    pub(in crate::output) fn delivery_mut(&mut self, ino: Ino) -> Option<&mut Delivery> {
        self.deliveries.as_mut()?.get_mut(&ino)
    }

    /// Returns the delivery that an inode is, or that it lies in.
    pub(in crate::output) fn delivery_around(&self, ino: Ino) -> Option<(Ino, &Delivery)> {
        let deliveries = self.deliveries.as_ref()?;
        let mut at = ino;
        loop {
            if let Some(delivery) = deliveries.get(&at) {
                return Some((at, delivery));
            }
            at = self.place(at)?.0;
        }
    }

    /// Returns where a delivery lies; none if it has no name any more.
    pub(in crate::output) fn delivery_place(&self, ino: Ino) -> Option<DeliveryPlace> {
        self.delivery(ino)?;
        let (folder, name) = self.place(ino)?;
        Some(DeliveryPlace { event_type: self.type_of_folder(folder)?, name: name.clone() })
    }

    /// Returns the inodes of all deliveries.
    pub(in crate::output) fn delivery_inodes(&self) -> Vec<Ino> {
        self.deliveries.iter().flatten().map(|(ino, _)| *ino).collect()
    }

    /// Returns whether an inode has left the inbox: it is looked up, and listed no more.
    pub(in crate::output) fn has_left(&self, ino: Ino) -> bool {
        self.delivery(ino).is_some_and(Delivery::is_published)
    }

    /// Returns the delivery of an inode. One that lies deeper than deliveries do becomes one, until
    /// the next [`OutputTable::update_delivery`]: it is to be published under another name.
    pub(in crate::output) fn adopt_delivery(&mut self, ino: Ino) -> &mut Delivery {
        let deliveries = self.deliveries.get_or_insert_default();
        deliveries.entry(ino).or_insert_with(Delivery::new)
    }

    /// Makes the delivery of an inode a new one: the former one has left, and a program writes
    /// another file under its name.
    pub(in crate::output) fn renew_delivery(&mut self, ino: Ino) {
        if let Some(delivery) = self.delivery_mut(ino) {
            *delivery = Delivery::new();
        }
    }

    /// Returns an error if the content of a file may not change, because it is an event or becomes
    /// one.
    pub(in crate::output) fn check_change(&self, ino: Ino) -> Result<()> {
        if let Ok(file) = self.file(ino) {
            file.check_change()?;
        }
        self.delivery_around(ino).map_or(Ok(()), |(_, delivery)| delivery.check_change())
    }

    /// Returns an error if a name of an inode may not be removed, because it becomes an event.
    pub(in crate::output) fn check_removal(&self, ino: Ino) -> Result<()> {
        self.delivery_around(ino).map_or(Ok(()), |(_, delivery)| delivery.check_removal())
    }

    /// Returns an error if this name and kind may not stand here.
    pub(super) fn check_inbox_place(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
    ) -> Result<()> {
        if parent == OUT {
            // Types have their folders.
            return Err(Errno::ACCESS);
        }
        if !self.is_type_folder(parent) {
            return self.check_change(parent);
        }
        let is_draft = is_inbox_draft(&name.to_string_lossy());
        match kind {
            FileKind::File if is_draft || name.to_str().is_some() => Ok(()),
            // An event names its files in UTF-8.
            FileKind::File => Err(Errno::ILSEQ),
            FileKind::Directory if is_draft => Ok(()),
            // Nobody could tell when such a folder is whole.
            FileKind::Directory => Err(Errno::ACCESS),
            FileKind::Symlink | FileKind::Pipe | FileKind::Socket => Err(Errno::ACCESS),
        }
    }

    /// Updates whether an inode is a delivery, after a name of it came or went.
    pub(in crate::output) fn update_delivery(&mut self, ino: Ino) {
        if self.deliveries.is_none() {
            return;
        }
        let links = self.nodes.get(&ino).map(|node| node.links.as_slice()).unwrap_or_default();
        let is_delivery = links.iter().any(|(parent, _)| self.is_type_folder(*parent));
        let Some(deliveries) = &mut self.deliveries else { return };
        if is_delivery {
            deliveries.entry(ino).or_insert_with(Delivery::new);
        } else {
            deliveries.remove(&ino);
        }
    }

    /// Returns all inodes below a folder, each before what lies in it, with their parents and names.
    pub(in crate::output) fn below(&self, folder: Ino) -> Vec<(Ino, Ino, Arc<OsStr>)> {
        let mut found = Vec::new();
        let mut left = vec![folder];
        while let Some(at) = left.pop() {
            let Ok(directory) = self.directory(at) else { continue };
            for (name, child) in directory.iter() {
                if matches!(self.node(child).map(|node| &node.body), Ok(NodeBody::Directory(_))) {
                    left.push(child);
                }
                found.push((at, child, name.clone()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::table::{DirectoryNames, FileNode};

    fn directory() -> NodeBody {
        NodeBody::Directory(DirectoryNames::default())
    }

    fn file() -> NodeBody {
        NodeBody::File(Box::<FileNode>::default())
    }

    #[test]
    fn what_lies_in_a_types_folder_is_a_delivery_and_what_lies_deeper_is_a_part_of_one() {
        let mut table = OutputTable::of_inbox();
        let scan = table.add(OUT, OsStr::new("scan"), directory()).unwrap();
        let draft = table.add(scan, OsStr::new(".x"), directory()).unwrap();
        let page = table.add(draft, OsStr::new("1.png"), file()).unwrap();
        let single = table.add(scan, OsStr::new("a.png"), file()).unwrap();
        assert!(table.delivery(scan).is_none() && table.delivery(page).is_none());
        assert_eq!(table.delivery_around(page).map(|(ino, _)| ino), Some(draft));
        assert_eq!(table.delivery_around(single).map(|(ino, _)| ino), Some(single));
        let place = table.delivery_place(single).unwrap();
        assert_eq!((&*place.event_type, place.event_name()), ("scan", Some("a.png")));
        assert_eq!(table.delivery_place(draft).unwrap().event_name(), None);
        let correlation = table.delivery(draft).unwrap().correlation().clone();

        // A rename in the folder of a type keeps the delivery; one into a folder ends it.
        table.link(draft, scan, OsStr::new(".y")).unwrap();
        table.unlink(scan, OsStr::new(".x"), None).unwrap();
        assert_eq!(table.delivery(draft).unwrap().correlation(), &correlation);
        table.link(single, draft, OsStr::new("a.png")).unwrap();
        table.unlink(scan, OsStr::new("a.png"), None).unwrap();
        assert!(table.delivery(single).is_none());
        assert_eq!(table.delivery_around(single).map(|(ino, _)| ino), Some(draft));
        assert_eq!(table.below(draft).len(), 2);

        table.delivery_mut(draft).unwrap().begin_publishing().unwrap();
        assert_eq!(table.check_change(page), Err(Errno::BUSY));
        assert_eq!(table.check_removal(page), Err(Errno::BUSY));
        let place = |parent, name, kind| table.check_place(parent, OsStr::new(name), kind);
        assert_eq!(place(draft, "new", FileKind::File), Err(Errno::BUSY));
        assert_eq!(place(scan, "new", FileKind::File), Ok(()));
        assert_eq!(place(scan, ".new", FileKind::Directory), Ok(()));
        for (parent, kind) in
            [(scan, FileKind::Directory), (scan, FileKind::Symlink), (OUT, FileKind::File)]
        {
            assert_eq!(place(parent, "new", kind), Err(Errno::ACCESS), "{kind:?}");
        }
    }
}
