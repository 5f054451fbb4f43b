//! Open files: from open to release, whichever part has them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use ion_model::event::FileEntry;
use ion_plane::cache::BlobReader;

use super::{Tree, TreePart};
use crate::answer::Answer;
use crate::blob::{open_blob, read_blob};
use crate::item::ViewItem;
use crate::open::{KernelCaching, OpenInode};
use crate::output::{AttrChange, NewOwner, OpenRequest, SetIdBits};
use crate::walk::SMALL;
use crate::{Attr, Errno, FileKind, Ino, Result, Seek, errno, seek_dense};

/// One of the two files of a copy, and where the copied bytes begin in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyEnd<'open> {
    pub(crate) ino: Ino,
    pub(crate) open: &'open OpenInode,
    pub(crate) offset: u64,
}

impl Tree {
    /// Opens a file.
    pub(crate) fn open(self: &Arc<Self>, ino: Ino, how: OpenRequest) -> Answer<OpenInode> {
        match self.part(ino) {
            Err(error) => Answer::Now(Err(error)),
            Ok(TreePart::Staged(output, ino)) => {
                Answer::Now(output.open(ino, how).map(OpenInode::Staged))
            }
            Ok(TreePart::View(_)) if how.may_change() => Answer::Now(Err(Errno::ROFS)),
            Ok(TreePart::View(ino)) => {
                let tree = self.clone();
                Answer::later(async move { tree.open_view(ino) })
            }
        }
    }

    fn open_view(&self, ino: Ino) -> Result<OpenInode> {
        Ok(match self.view.item(ino)? {
            ViewItem::Directory(_) => return Err(Errno::ISDIR),
            ViewItem::Link(..) => return Err(Errno::LOOP),
            ViewItem::Text(bytes, _) => OpenInode::InMemory(bytes),
            ViewItem::Live(path) => {
                OpenInode::Live(Arc::new(File::open(path).map_err(|error| errno(&error))?))
            }
            ViewItem::Blob(entry) => {
                // Nothing is fetched yet: many files are opened only to be copied, which moves no
                // bytes.
                let blob = open_blob(&self.daemon, &entry);
                let blob = blob.map_err(|failure| self.read_failed(ino, &failure))?;
                OpenInode::Blob(Arc::new(BlobReader::counted(blob, self.reads.fetched())))
            }
        })
    }

    /// Opens a directory. It is not listed before it is read.
    pub(crate) fn open_directory(&self) -> OpenInode {
        OpenInode::Directory(Arc::default())
    }

    /// Makes a file, or opens the existing one, in one step.
    pub(crate) fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        maker: NewOwner,
        how: OpenRequest,
    ) -> Result<(Attr, OpenInode)> {
        let (output, parent) = self.output_at(parent)?;
        let created = output.create(parent, name, mode, maker, how);
        let (attr, staged) =
            created.inspect_err(|errno| output.explain(*errno, parent, name, FileKind::File))?;
        Ok((self.with_kernel_number(attr), OpenInode::Staged(staged)))
    }

    /// Returns what the kernel may cache of an open file or directory.
    ///
    /// The kernel may cache the names of a directory only if they never change. Its cached listing
    /// goes wrong when names change while several processes list the directory, even if the change
    /// came through the kernel itself (Linux 6.18 checks the age of its copy only at the start of a
    /// listing).
    pub(crate) fn kernel_caching(&self, ino: Ino, open: &OpenInode) -> KernelCaching {
        match open {
            // Its length may have changed by the time it is read.
            OpenInode::Live(_) => KernelCaching::NoPages,
            OpenInode::InMemory(_) if !self.view.never_changes(ino) => KernelCaching::NoPages,
            // The file never changes: what the kernel caches of it stays correct.
            OpenInode::Blob(_) | OpenInode::InMemory(_) => KernelCaching::Pages,
            // Each change comes through the kernel, which keeps its pages correct.
            OpenInode::Staged(_) => KernelCaching::Pages,
            OpenInode::Directory(_) => match self.part(ino) {
                Ok(TreePart::View(ino)) if self.view.is_fixed(ino) => KernelCaching::Names,
                _ => KernelCaching::NoNames,
            },
        }
    }

    /// Returns whether an open file may be read from the local file of a blob that another handle
    /// of the same inode reads: the file was moved to `out/` while it was read in `in/data`.
    pub(crate) fn may_share_blob(&self, open: &OpenInode) -> Result<bool> {
        match open {
            OpenInode::Staged(staged) => Ok(self.output()?.content.reads_whole_blob(staged)),
            _ => Ok(true),
        }
    }

    /// Notes that a file is about to be read. On the handle's first read, fetches a small file
    /// whole, and also the next files if a program walks the file's directory.
    pub(crate) fn begin_read(&self, ino: Ino, open: &OpenInode) {
        if let OpenInode::Blob(reader) = open
            && reader.note_first_read()
            && reader.blob().entry().size <= SMALL
        {
            self.fetch_next_of_walk(self.current_inode(ino));
            reader.prefetch_whole();
        }
    }

    /// Notes that a small file of a view is being read. If a program walks the file's directory,
    /// starts to fetch the next files.
    fn fetch_next_of_walk(&self, ino: Ino) {
        let Some((directory, listing, name)) = self.view.place(ino) else { return };
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = walks.note_read(directory, &listing, &name);
        drop(walks);
        for entry in ahead {
            if let Ok(blob) = open_blob(&self.daemon, &entry) {
                BlobReader::counted(blob, self.reads.fetched()).prefetch_whole();
            }
        }
    }

    /// Reads an open file. Returns fewer than `size` bytes only at the end of the file.
    pub(crate) fn read(
        self: &Arc<Self>,
        ino: Ino,
        open: &OpenInode,
        offset: u64,
        size: u32,
    ) -> Answer<Bytes> {
        match open {
            OpenInode::InMemory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(size as usize).min(bytes.len());
                Answer::Now(Ok(bytes.slice(start..end)))
            }
            OpenInode::Live(file) => {
                let mut buffer = vec![0; size as usize];
                let read = file.read_at(&mut buffer, offset).map_err(|error| errno(&error));
                Answer::Now(read.map(|length| {
                    buffer.truncate(length);
                    buffer.into()
                }))
            }
            OpenInode::Directory(_) => Answer::Now(Err(Errno::ISDIR)),
            OpenInode::Staged(staged) => {
                let output = match self.output() {
                    Ok(output) => output.clone(),
                    Err(error) => return Answer::Now(Err(error)),
                };
                if !output.content.is_reference(staged.ino()) {
                    return Answer::Now(output.content.read(staged, offset, size as usize));
                }
                let staged = staged.clone();
                Answer::later(
                    async move { output.content.read_through(&staged, offset, size).await },
                )
            }
            OpenInode::Blob(reader) => {
                let (tree, open, reader) = (self.clone(), open.clone(), reader.clone());
                Answer::later(async move {
                    tree.begin_read(ino, &open);
                    let read = read_blob(&tree.daemon, &reader, offset, size.into()).await;
                    read.map_err(|failure| tree.read_failed(ino, &failure))
                })
            }
        }
    }

    /// Writes `data` at `offset` of an open file, for a thread. Returns its length.
    pub(crate) fn write(
        &self,
        open: &OpenInode,
        offset: u64,
        data: &[u8],
        set_id_bits: SetIdBits,
        thread: u32,
    ) -> Answer<u64> {
        let length = data.len() as u64;
        let (output, staged) = match self.output().and_then(|output| Ok((output, open.staged()?))) {
            Ok(found) => found,
            Err(error) => return Answer::Now(Err(error)),
        };
        staged.note_writer(thread);
        if !output.content.is_reference(staged.ino()) {
            return Answer::Now(output.write(staged, offset, data, set_id_bits).map(|()| length));
        }
        if let Err(error) = output.check_write(staged.ino()) {
            return Answer::Now(Err(error));
        }
        let (output, staged) = (output.clone(), staged.clone());
        let data = Bytes::copy_from_slice(data);
        Answer::later(async move {
            let range = offset..offset.saturating_add(length);
            output.content.fill_range(&staged, range).await?;
            output.write(&staged, offset, &data, set_id_bits).map(|()| length)
        })
    }

    /// Handles FLUSH: a thread closed a descriptor of the file. Returns what close() is to return.
    pub(crate) fn flush(&self, open: &OpenInode, thread: u32) -> Answer<()> {
        match (&self.output, open) {
            (Some(output), OpenInode::Staged(staged)) => {
                let (output, staged) = (output.clone(), staged.clone());
                Answer::later(async move { output.flush(&staged, thread).await })
            }
            _ => Answer::Now(Ok(())),
        }
    }

    /// Handles fsync: makes a staged file durable on the local disk.
    pub(crate) fn fsync(&self, open: &OpenInode) -> Answer<()> {
        match (&self.output, open) {
            (Some(output), OpenInode::Staged(staged)) => {
                let (output, staged) = (output.clone(), staged.clone());
                Answer::later(async move { output.fsync(&staged).await })
            }
            _ => Answer::Now(Ok(())),
        }
    }

    /// Releases an open file that the kernel no longer uses.
    pub(crate) fn release(&self, open: &OpenInode) {
        if let (Some(output), OpenInode::Staged(staged)) = (&self.output, open) {
            output.release(staged);
        }
    }

    /// Changes attributes. A new length is set through `through`, the open file that the request
    /// names, if it names one.
    pub(crate) fn setattr(
        &self,
        ino: Ino,
        change: AttrChange,
        through: Option<&OpenInode>,
        set_id_bits: SetIdBits,
    ) -> Result<Attr> {
        let (output, ino) = self.output_at(ino)?;
        let through = through.and_then(|open| open.staged().ok());
        let changed =
            output.content.setattr(ino, change, through.map(|staged| &**staged), set_id_bits);
        changed.map(|attr| self.with_kernel_number(attr))
    }

    /// Allocates or frees space of an open file (fallocate).
    pub(crate) fn allocate(
        &self,
        open: &OpenInode,
        offset: u64,
        length: u64,
        mode: i32,
        set_id_bits: SetIdBits,
    ) -> Answer<()> {
        let (output, staged) = match self.output().and_then(|output| Ok((output, open.staged()?))) {
            Ok((output, staged)) => (output.clone(), staged.clone()),
            Err(error) => return Answer::Now(Err(error)),
        };
        Answer::later(async move {
            output.content.fill_content(staged.ino()).await?;
            output.content.allocate(&staged, offset, length, mode, set_id_bits)
        })
    }

    /// Returns the offset of the next data or hole of a file.
    pub(crate) fn seek(
        &self,
        ino: Ino,
        open: &OpenInode,
        offset: u64,
        whence: Seek,
    ) -> Result<u64> {
        match open {
            OpenInode::Staged(staged) => self.output()?.content.seek(staged, offset, whence),
            _ => seek_dense(self.getattr(ino)?.size, offset, whence),
        }
    }

    /// Copies `length` bytes between two open files without moving them through the kernel. Returns
    /// how many were copied. On EOPNOTSUPP the kernel reads and writes instead.
    pub(crate) fn copy_range(
        &self,
        from: CopyEnd<'_>,
        to: CopyEnd<'_>,
        length: u64,
        set_id_bits: SetIdBits,
        thread: u32,
    ) -> Result<u64> {
        let output = self.output()?;
        let target = to.open.staged()?;
        target.note_writer(thread);
        if let Some((entry, held)) = self.blob_of(from.ino)? {
            if output.is_inbox() {
                // The blob is of another correlation, and is removed with it.
                return Err(Errno::OPNOTSUPP);
            }
            // Copy only the bytes that the file has: a copy of a cut reference is cut too.
            let length = length.min(held.saturating_sub(from.offset));
            if length == 0 {
                return Ok(0);
            }
            let (content, offset) = (&output.content, from.offset);
            return content.extend_reference(target, &entry, offset, to.offset, length);
        }
        let source = from.open.staged().map_err(|_| Errno::OPNOTSUPP)?;
        output.content.copy_range(source, from.offset, target, to.offset, length, set_id_bits)
    }

    /// Returns the blob that holds an inode's bytes, and how many of the blob's bytes the inode
    /// has: for a file of `in/`, or a reference in `out/`. Returns none for other inodes.
    fn blob_of(&self, ino: Ino) -> Result<Option<(Arc<FileEntry>, u64)>> {
        match self.part(ino)? {
            TreePart::Staged(output, ino) => output.content.blob_of(ino),
            TreePart::View(ino) => Ok(match self.view.item(ino)? {
                ViewItem::Blob(entry) => {
                    let size = entry.size;
                    Some((entry, size))
                }
                _ => None,
            }),
        }
    }
}
