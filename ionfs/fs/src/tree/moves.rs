//! Renames and links, some of which bring files of `in/` into `out/`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Tree, TreePart};
use crate::answer::Answer;
use crate::item::ViewItem;
use crate::output::{NewOwner, Output, RenameOver};
use crate::{Attr, Errno, FileKind, Ino, Result};

/// The temporary name of a file that is being moved over another file.
const BESIDE: &str = ".ion-moved-here";

impl Tree {
    /// Renames a file or directory. A file of `in/data` is moved into `out/data`, and then belongs
    /// to `maker`.
    pub(crate) fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        over: RenameOver,
        maker: NewOwner,
    ) -> Answer<()> {
        let newparent = match self.output_at(newparent) {
            Ok((_, newparent)) => newparent,
            Err(error) => return Answer::Now(Err(error)),
        };
        let (tree, name, newname) = (self.clone(), name.to_owned(), newname.to_owned());
        Answer::later(async move {
            let output = tree.output()?;
            match tree.part(parent)? {
                TreePart::Staged(output, parent) => {
                    output.rename(parent, &name, newparent, &newname, over).await
                }
                TreePart::View(parent) => {
                    let exists = output.names.lookup(newparent, &newname)?.is_some();
                    if over == RenameOver::Nothing && exists {
                        return Err(Errno::EXIST);
                    }
                    tree.move_into_output(parent, &name, newparent, &newname, maker).await
                }
            }
        })
    }

    /// Makes a hard link. The link of a file of `in/` is a new file of `out/data` that refers to
    /// the same blob, and belongs to `maker`.
    pub(crate) fn link(
        self: &Arc<Self>,
        ino: Ino,
        newparent: Ino,
        newname: &OsStr,
        maker: NewOwner,
    ) -> Answer<Attr> {
        let (output, newparent) = match self.output_at(newparent) {
            Ok(found) => found,
            Err(error) => return Answer::Now(Err(error)),
        };
        match self.part(ino) {
            Err(error) => Answer::Now(Err(error)),
            // An event has blobs of its own correlation only.
            Ok(TreePart::View(_)) if output.is_inbox() => Answer::Now(Err(Errno::XDEV)),
            Ok(TreePart::View(ino)) => {
                Answer::Now(self.link_into_output(output, ino, newparent, newname, maker))
            }
            Ok(TreePart::Staged(_, ino)) => {
                let (tree, output) = (self.clone(), output.clone());
                let newname = newname.to_owned();
                Answer::later(async move {
                    let attr = output.link(ino, newparent, &newname).await?;
                    Ok(tree.with_kernel_number(attr))
                })
            }
        }
    }

    /// Handles `ln` of a file of `in/` into `out/data`.
    fn link_into_output(
        &self,
        output: &Output,
        ino: Ino,
        parent: Ino,
        name: &OsStr,
        maker: NewOwner,
    ) -> Result<Attr> {
        let ViewItem::Blob(entry) = self.view.item(ino)? else { return Err(Errno::XDEV) };
        let mode = u32::from(self.view.stored_mode(&entry));
        output.names.add_link(parent, name, &entry, mode, maker, ino)
    }

    /// Handles `mv` of a file or directory of `in/data` into `out/data`: removes the name from
    /// `in/data` and makes a reference in `out/data`. Only the job's own view changes; the event
    /// keeps its files.
    async fn move_into_output(
        &self,
        parent: Ino,
        name: &OsStr,
        newparent: Ino,
        newname: &OsStr,
        maker: NewOwner,
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
        output.rename(newparent, beside, newparent, newname, RenameOver::AllButEvents).await
    }

    async fn move_item(
        &self,
        parent: Ino,
        name: &str,
        newparent: Ino,
        newname: &OsStr,
        maker: NewOwner,
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
        self.view.record_move(parent, name, moved);
        // The lookup above was the daemon's, not the kernel's.
        self.forget(attr.ino, 1);
        Ok(())
    }
}
