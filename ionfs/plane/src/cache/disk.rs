//! The node's cache folder: one sparse file for each blob, shared by all daemons of the node and
//! kept when they end.
//!
//! A blob never changes, so the files need no cache coherence. No metadata is kept beside the
//! files, and nothing in them is trusted: a block is present if the file has bytes in its place,
//! and it is compared with its checksum when it is read. A block that a killed daemon left
//! half-written is fetched again.
//!
//! # What is removed when the folder is full
//! Only blobs that nobody has open are removed. Blobs that were opened once are removed first,
//! oldest first, while they take more than a tenth of the room. So a job that reads much data once
//! does not displace data that is read again and again. If nothing may be removed, new blocks are
//! not kept, and reads continue from memory.
//!
//! # How blocks are written
//! Blocks are written past the page cache, as long as the disk keeps up. Most blocks are read once,
//! from memory, and filling pages of the page cache with them would cost more than everything else
//! that is done with them. If the disk is slower than the store, some blocks are written through
//! the page cache instead. Reads never wait for either kind of write.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ion_model::event::FileEntry;
use rustix::fs::{AtFlags, CWD, SeekFrom};
use uuid::Uuid;

use super::buffer::ALIGNMENT;

/// The share of the room that blobs opened once may take before blobs opened again are removed: one
/// part in this many.
const ONCE_SHARE: u64 = 10;

/// The number of concurrent writes past the page cache. Each holds a block of the memory budget,
/// and a disk of 2 GB/s needs half a millisecond for it. Fewer were too few when the store ran on
/// the same processors.
const DIRECT_MAX: usize = 32;

/// The smallest write, in bytes, that goes past the page cache. A smaller write mostly waits for
/// the disk.
const DIRECT_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct DiskCache {
    directory: PathBuf,
    most: u64,
    /// Bytes on disk, as far as this daemon knows: other daemons of the node write too.
    used: AtomicU64,
    full: AtomicBool,
    opens: Mutex<HashMap<String, u32>>,
    /// The number of writes past the page cache in progress.
    direct: AtomicUsize,
}

impl DiskCache {
    /// Opens the cache in `directory`, which must exist.
    pub(super) fn new(directory: PathBuf, most: u64) -> Self {
        let disk = Self {
            directory,
            most,
            used: AtomicU64::new(0),
            full: AtomicBool::new(false),
            opens: Mutex::default(),
            direct: AtomicUsize::new(0),
        };
        disk.used.store(disk.list_files().iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        disk
    }

    /// Returns the name of a blob's file. Two documents can name the same key with different
    /// checksums only if one of them is wrong. So each size and set of checksums has a file of its
    /// own.
    pub(super) fn file_name(entry: &FileEntry) -> String {
        let sums = serde_json::to_vec(&entry.checksums).unwrap_or_default();
        let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, entry.key.as_bytes());
        Uuid::new_v5(&key, &[&entry.size.to_be_bytes()[..], &sums].concat()).simple().to_string()
    }

    /// Opens the blob's file, and makes it if it does not exist.
    pub(super) fn open(&self, name: &str, size: u64) -> io::Result<File> {
        let path = self.directory.join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        // The modification time records the last use. Otherwise only filling a hole would change
        // it.
        let _ = file.set_modified(SystemTime::now());
        *self
            .opens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_default() += 1;
        Ok(file)
    }

    /// Links a file that holds the whole blob into the cache folder. The file must have a name on
    /// the same disk, and nobody may write to it any more.
    pub(super) fn link_file(&self, name: &str, file: &File) -> io::Result<()> {
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let to = self.directory.join(name);
        match rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::SYMLINK_FOLLOW) {
            // A file that was fetched before serves as well.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // Whatever user the module ran as, the file belongs to the node's user now.
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let _ = rustix::fs::fchown(file, Some(uid), Some(gid));
        let _ = rustix::fs::fchmod(file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        self.used.fetch_add(file.metadata()?.blocks() * 512, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether a block of this many bytes may be kept. If so, counts its bytes.
    pub(super) fn try_reserve(&self, bytes: u64) -> bool {
        if self.full.load(Ordering::Relaxed)
            || self.used.load(Ordering::Relaxed) + bytes > self.most
        {
            return false;
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Writes a block at offset `at`.
    pub(super) fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let aligned = bytes.len().is_multiple_of(ALIGNMENT)
            && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
            && at.is_multiple_of(ALIGNMENT as u64);
        if aligned && bytes.len() >= DIRECT_BYTES {
            let under_way = self.direct.fetch_add(1, Ordering::Relaxed);
            let written =
                (under_way < DIRECT_MAX).then(|| open_direct(file)?.write_all_at(bytes, at));
            self.direct.fetch_sub(1, Ordering::Relaxed);
            // EINVAL: this file system does not support writes past the page cache.
            if let Some(written) = written.filter(|written| !is_invalid_input(written)) {
                return written;
            }
        }
        file.write_all_at(bytes, at)
    }

    /// Returns whether it is time to make room: less than 2 % is free.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) + self.most / 50 > self.most
    }

    /// Records that the disk itself is full: no block is kept until [`DiskCache::make_room`] has
    /// run.
    pub(super) fn mark_disk_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// Removes files until a tenth of the room is free. Never removes the files in `open`.
    pub(super) fn make_room(&self, open: &HashSet<String>) {
        let files = self.list_files();
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut used: u64 = files.iter().map(|file| file.bytes).sum();
        let again = |file: &CacheFile| opens.get(&file.name).copied().unwrap_or_default() > 1;
        let mut once: u64 = files.iter().filter(|file| !again(file)).map(|file| file.bytes).sum();
        let mut idle: Vec<&CacheFile> =
            files.iter().filter(|file| !open.contains(&file.name)).collect();
        idle.sort_by_key(|file| file.used);
        let (firsts, seconds): (Vec<&CacheFile>, Vec<&CacheFile>) =
            idle.into_iter().partition(|file| !again(file));
        let goal = self.most - self.most / 10;
        let mut gone = HashSet::new();
        let remove = |file: &CacheFile, used: &mut u64| {
            if std::fs::remove_file(self.directory.join(&file.name)).is_ok() {
                *used -= file.bytes.min(*used);
            }
        };
        for file in &firsts {
            if used <= goal || once <= self.most / ONCE_SHARE {
                break;
            }
            remove(file, &mut used);
            once -= file.bytes;
            gone.insert(file.name.clone());
        }
        for file in seconds.iter().chain(&firsts) {
            if used <= goal {
                break;
            }
            if gone.insert(file.name.clone()) {
                remove(file, &mut used);
            }
        }
        self.opens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|name, _| !gone.contains(name));
        self.used.store(used, Ordering::Relaxed);
        self.full.store(false, Ordering::Relaxed);
    }

    fn list_files(&self) -> Vec<CacheFile> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
                let name = entry.file_name().into_string().ok()?;
                Some(CacheFile {
                    name,
                    bytes: metadata.blocks() * 512,
                    used: metadata.modified().ok()?,
                })
            })
            .collect()
    }
}

/// Opens the same file again, for writes past the page cache. Opening takes a hundredth of the time
/// of the write, and so no blob needs to hold two descriptors.
fn open_direct(file: &File) -> io::Result<File> {
    File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn is_invalid_input(written: &io::Result<()>) -> bool {
    written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput)
}

#[derive(Debug)]
struct CacheFile {
    name: String,
    bytes: u64,
    used: SystemTime,
}

/// Calls `found` with the index of each block of `block` bytes whose bytes are all in the file.
pub(super) fn for_each_whole_block(file: &File, size: u64, block: u64, mut found: impl FnMut(u64)) {
    let mut at = 0;
    while at < size {
        let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) else { return };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size).min(size);
        let whole = if hole == size { size.div_ceil(block) } else { hole / block };
        (data.div_ceil(block)..whole).for_each(&mut found);
        at = hole.max(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::super::buffer::Buffers;
    use super::*;
    use ion_model::checksum;

    const BLOB: u64 = 64 << 10;

    fn entry(key: &str) -> FileEntry {
        let (name, key) = (key.to_owned(), key.to_owned());
        FileEntry {
            name,
            key,
            size: BLOB,
            mtime: 0,
            mtime_nanos: 0,
            mode: 0o644,
            checksums: checksum::of(&[]),
        }
    }

    fn fill(disk: &DiskCache, key: &str) -> bool {
        let name = DiskCache::file_name(&entry(key));
        let file = disk.open(&name, BLOB).expect("the folder is there");
        let may = disk.try_reserve(BLOB);
        if may {
            file.write_all_at(&vec![1; BLOB as usize], 0).expect("there is room");
        }
        may
    }

    fn has(disk: &DiskCache, key: &str) -> bool {
        disk.directory.join(DiskCache::file_name(&entry(key))).exists()
    }

    #[test]
    fn what_is_read_once_makes_way_for_what_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = DiskCache::new(folder.path().to_owned(), 20 * BLOB);
        for key in ["often", "seldom"] {
            fill(&disk, key);
            fill(&disk, key);
        }
        let open = HashSet::from([DiskCache::file_name(&entry("open"))]);
        fill(&disk, "open");
        for scan in 0..100 {
            fill(&disk, &format!("scan-{scan}"));
            if disk.is_nearly_full() {
                disk.make_room(&open);
            }
            let used: u64 = disk.list_files().iter().map(|file| file.bytes).sum();
            assert!(used <= 20 * BLOB, "{used}");
        }
        assert!(
            has(&disk, "often")
                && has(&disk, "seldom")
                && has(&disk, "open")
                && !has(&disk, "scan-0")
        );
        // The files stay for the next daemon, which counts them.
        let again = DiskCache::new(folder.path().to_owned(), BLOB);
        assert!(!again.try_reserve(1), "and keeps nothing more than it may");
    }

    #[test]
    fn a_block_is_on_disk_whichever_way_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = DiskCache::new(folder.path().to_owned(), u64::MAX);
        let (block, tail) = (checksum::BLOCK_BYTES, 5000);
        let file = disk.open("blob", 3 * block + tail).expect("the folder is there");
        let buffers = Buffers::new(block as usize);
        // Two blocks are written past the page cache, one from memory that is not aligned for that,
        // and one is an end of odd length.
        for (index, length) in [(1, block), (0, block), (2, block), (3, tail)] {
            let mut buffer = buffers.take(length as usize);
            buffer.bytes_mut().fill(index as u8 + 1);
            match index {
                2 => disk.write(&file, &[&[0], buffer.as_ref()].concat()[1..], index * block),
                _ => disk.write(&file, buffer.as_ref(), index * block),
            }
            .expect("there is room");
        }
        let read = std::fs::read(folder.path().join("blob")).expect("it is there");
        assert_eq!(read.len() as u64, 3 * block + tail);
        assert!(
            read.iter().enumerate().all(|(at, byte)| u64::from(*byte) == at as u64 / block + 1)
        );
        assert_eq!(disk.direct.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_file_tells_which_blocks_it_has() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(5 * BLOB + 10).expect("room");
        for at in [BLOB, 2 * BLOB, 5 * BLOB] {
            file.write_all_at(&vec![0; if at == 5 * BLOB { 10 } else { BLOB as usize }], at)
                .expect("room");
        }
        let mut found = Vec::new();
        for_each_whole_block(&file, 5 * BLOB + 10, BLOB, |index| found.push(index));
        assert_eq!(found, [1, 2, 5]);
    }
}
