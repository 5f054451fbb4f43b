//! The file that keeps the output of an attempt: all of it, or its beginning and its end with a
//! hole between them.
//!
//! # How it works
//! Each byte is at the offset at which it was written. If an attempt writes more than is kept, the
//! middle is given back to the disk (`fallocate(2)` with PUNCH_HOLE). The hole always begins at
//! [`HEAD`]. Readers find its end by SEEK_DATA and look again after they have read, so they never
//! take the zeros of a hole for output.
//!
//! # What it never does
//! It never loses bytes without a note. Bytes that the disk had no room for are counted, and the
//! log says how many, in the place where they are missing. On a disk that has no holes the end is
//! not kept, and the log says so.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

/// Bytes kept from the beginning of a log that is too long to be kept whole.
pub const HEAD: u64 = 128 << 20;

/// Bytes kept from the end of such a log.
const TAIL: u64 = 128 << 20;

/// The middle is given back to the disk in steps of at least this many bytes.
const STEP: u64 = 16 << 20;

/// A hole ends at a multiple of this many bytes, which is a multiple of any disk's block.
const BLOCK: u64 = 1 << 20;

/// How many bytes of output are kept in memory, at most, while the disk does not take them.
const PENDING_MAX: usize = 1 << 20;

/// How often a reader tries while the hole grows over what it is reading.
const LOOKS: u32 = 10;

/// A log being written.
#[derive(Debug)]
pub struct KeptOutput {
    file: File,
    /// Bytes in the file.
    length: u64,
    /// The offset at which the hole ends; [`HEAD`] while the file has no hole.
    hole_end: u64,
    /// Output that a full disk did not take yet. The module's own message about the full disk may
    /// be in it, and the disk may have room again later.
    pending: Vec<u8>,
    /// How many bytes were not kept and are not yet mentioned in the log.
    lost: u64,
    has_holes: bool,
}

impl KeptOutput {
    /// Opens the file at `path`, to append to it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, hole_end: HEAD, pending: Vec::new(), lost: 0, has_holes: true })
    }

    /// Returns the file, to read it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn reader(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Appends output.
    pub fn add(&mut self, piece: &[u8]) {
        if !self.has_holes && self.length >= HEAD + TAIL {
            self.lost += piece.len() as u64;
            return;
        }
        // Nothing is added before the log says how many bytes are missing. Without that line, two
        // pieces that were written far apart would look adjacent.
        let room = if self.lost > 0 { 0 } else { PENDING_MAX.saturating_sub(self.pending.len()) };
        let kept = &piece[..piece.len().min(room)];
        self.pending.extend_from_slice(kept);
        self.lost += (piece.len() - kept.len()) as u64;
        self.write();
        if self.pending.is_empty() && self.lost > 0 {
            self.write_lost_note();
        }
        self.punch_hole();
    }

    fn write(&mut self) {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(length) => {
                    self.pending.drain(..length);
                    self.length += length as u64;
                }
                Err(error) => {
                    tracing::debug!(%error, "a job's output is not kept yet");
                    return;
                }
            }
        }
    }

    fn write_lost_note(&mut self) {
        let why = if self.has_holes {
            "the disk had no room for them"
        } else {
            "no more output of a job is kept"
        };
        let words = format!("\nion: {} bytes are missing here: {why}\n", self.lost);
        self.lost = 0;
        self.pending.extend_from_slice(words.as_bytes());
        self.write();
    }

    /// Gives the middle back to the disk, once it has [`STEP`] more bytes.
    fn punch_hole(&mut self) {
        let end = self.length.saturating_sub(TAIL) / BLOCK * BLOCK;
        if !self.has_holes || end < self.hole_end + STEP {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, self.hole_end, end - self.hole_end) {
            Ok(()) => self.hole_end = end,
            Err(error) => {
                tracing::debug!(%error, "the disk has no holes: the end of a long log is not kept");
                self.has_holes = false;
            }
        }
    }

    /// Says in the log how many bytes are missing at its end. Returns how many bytes are missing
    /// that the log does not mention, because the disk took no more.
    pub fn finish(mut self) -> u64 {
        self.write();
        if self.pending.is_empty() && self.lost > 0 {
            self.write_lost_note();
        }
        self.pending.len() as u64 + self.lost
    }
}

/// Some bytes of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogPiece {
    /// How many bytes between the requested offset and `bytes` are not kept.
    pub left_out: u64,
    /// The bytes after those; empty at the end of the log.
    pub bytes: Vec<u8>,
}

impl LogPiece {
    /// Returns the line to print in place of the bytes that are not kept; none if all are kept.
    pub fn left_out_line(&self) -> Option<String> {
        (self.left_out > 0).then(|| format_left_out(self.left_out))
    }

    /// Returns how many bytes of the log this piece stands for.
    pub fn length(&self) -> u64 {
        self.left_out + self.bytes.len() as u64
    }
}

fn format_left_out(bytes: u64) -> String {
    format!(
        "\nion: {bytes} bytes are left out here: only the beginning and the end of a long log are \
         kept\n"
    )
}

/// Reads at most `most` bytes of a log that may be written at the same time, from byte `at` on.
///
/// # Errors
/// The disk's error.
pub fn read_piece(file: &File, at: u64, most: usize) -> io::Result<LogPiece> {
    for _ in 0..LOOKS {
        let from = next_data_offset(file, at)?;
        let most =
            if from < HEAD { most.min(usize::try_from(HEAD - from).unwrap_or(most)) } else { most };
        let mut bytes = vec![0; most];
        let length = file.read_at(&mut bytes, from)?;
        bytes.truncate(length);
        if next_data_offset(file, from)? == from {
            return Ok(LogPiece { left_out: from - at, bytes });
        }
    }
    Ok(LogPiece::default())
}

/// Returns the offset of the first byte from `at` on that is kept.
fn next_data_offset(file: &File, at: u64) -> io::Result<u64> {
    if at < HEAD {
        return Ok(at);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) => Ok(from),
        // `at` is at the end, or the disk has no holes.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
            Ok(at)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the log to store in place of one with a hole: its beginning, the number of bytes that
/// are left out, its end. It is a file without a name, made in `folder`. None: the log has no hole,
/// and is stored as it was written.
///
/// # Errors
/// The disk's error.
pub fn copy_without_hole(log: &File, folder: &Path) -> io::Result<Option<File>> {
    let (length, from) = (log.metadata()?.len(), next_data_offset(log, HEAD)?);
    if length <= HEAD || from == HEAD {
        return Ok(None);
    }
    let mut whole = tempfile::tempfile_in(folder)?;
    copy(log, 0, HEAD, &mut whole)?;
    whole.write_all(format_left_out(from - HEAD).as_bytes())?;
    copy(log, from, length, &mut whole)?;
    whole.rewind()?;
    Ok(Some(whole))
}

fn copy(log: &File, from: u64, to: u64, into: &mut File) -> io::Result<()> {
    let mut at = from;
    let mut buffer = vec![0; 1 << 20];
    while at < to {
        let most = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
        let length = log.read_at(&mut buffer[..most], at)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.write_all(&buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Returns numbered lines of 64 bytes each.
    fn numbered_lines(bytes: u64) -> Vec<u8> {
        (0..bytes / 64).flat_map(|n| format!("{n:063}\n").into_bytes()).collect()
    }

    #[test]
    fn of_a_long_log_the_beginning_and_the_end_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        File::create(&path).unwrap();
        let mut kept = KeptOutput::open(&path).unwrap();
        let reader = kept.reader().unwrap();
        let all = numbered_lines(HEAD + TAIL + 5 * STEP);
        let mut most_on_disk = 0;
        for piece in all.chunks(1 << 20) {
            kept.add(piece);
            most_on_disk = most_on_disk.max(reader.metadata().unwrap().blocks() * 512);
        }
        assert!(kept.has_holes, "a disk without holes cannot try this");
        assert!(most_on_disk <= HEAD + TAIL + 2 * STEP, "{most_on_disk}");
        assert_eq!(kept.finish(), 0);

        // A reader beside the writer never gets zeros of the hole, and learns how many bytes are
        // missing.
        let mut at = 0;
        let mut jumps = Vec::new();
        loop {
            let piece = read_piece(&reader, at, 100_000).unwrap();
            let from = (at + piece.left_out) as usize;
            assert_eq!(piece.bytes, all[from..from + piece.bytes.len()]);
            if let Some(words) = piece.left_out_line() {
                jumps.push((at, words));
            }
            if piece.length() == 0 {
                break;
            }
            at += piece.length();
        }
        assert_eq!(at, all.len() as u64);
        let [(HEAD, words)] = &jumps[..] else { panic!("{jumps:?}") };

        let whole = copy_without_hole(&reader, folder.path()).unwrap().unwrap();
        let mut text = vec![0; whole.metadata().unwrap().len() as usize];
        whole.read_exact_at(&mut text, 0).unwrap();
        let end = &text[HEAD as usize + words.len()..];
        assert_eq!(text[..HEAD as usize], all[..HEAD as usize]);
        assert_eq!(&text[HEAD as usize..HEAD as usize + words.len()], words.as_bytes());
        assert!(end.len() as u64 >= TAIL);
        assert!(all.ends_with(end));
        assert!(
            words.contains(&(all.len() as u64 - HEAD - end.len() as u64).to_string()),
            "{words}"
        );
    }

    #[test]
    fn a_log_that_fits_is_stored_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        File::create(&path).unwrap();
        let mut kept = KeptOutput::open(&path).unwrap();
        kept.add(b"hello");
        let reader = kept.reader().unwrap();
        assert_eq!(kept.finish(), 0);
        assert!(copy_without_hole(&reader, folder.path()).unwrap().is_none());
        assert_eq!(
            read_piece(&reader, 1, 3).unwrap(),
            LogPiece { left_out: 0, bytes: b"ell".to_vec() }
        );
        assert_eq!(read_piece(&reader, 5, 3).unwrap(), LogPiece::default());
        assert_eq!(read_piece(&reader, HEAD + 9, 3).unwrap(), LogPiece::default());
    }

    /// The disk takes nothing for a while: /dev/full takes nothing at all.
    #[test]
    fn what_a_full_disk_did_not_take_is_counted() {
        let mut kept = KeptOutput::open(Path::new("/dev/full")).unwrap();
        kept.add(&vec![b'x'; PENDING_MAX]);
        kept.add(b"more than waits");
        assert_eq!(kept.lost, 15);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        File::create(&path).unwrap();
        kept.file = File::options().read(true).append(true).open(&path).unwrap();
        kept.add(b"lost as well");
        kept.add(b"kept again");
        assert_eq!(kept.finish(), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, end) = text.split_at(PENDING_MAX);
        assert_eq!(
            end,
            "\nion: 27 bytes are missing here: the disk had no room for them\nkept again"
        );
    }
}
