//! A reader of the entries of a tar archive, one after the other.
//!
//! # How it works
//! `tar-core` parses the headers, which say what an entry is and how long it is. This module reads
//! the bytes, keeps no more of them than one header and a piece of content, and refuses what would
//! otherwise become another file than the one that was packed, naming the entry: a map of holes in
//! an unknown form, the continuation of a file from another volume, a number that does not fit.
//!
//! # What it never does
//! Trust a length: whatever an archive claims, a header has a limit, and so have the bytes of all
//! archives of an image.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use ion_model::text::quote;
use rustix::fs::Timespec;
use rustix::io::Errno;
use tar_core::parse::{Limits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, SparseEntry};

/// The most bytes of one entry's long name, long link, PAX records and map of holes, which are read
/// whole. Names have 4 KiB at most, and extended attributes, the largest records there are, 64 KiB
/// each.
const METADATA_MAX: u32 = 1 << 20;

/// The most bytes before an entry's content: its metadata, and the header blocks that give the
/// length of each part of it.
const HEAD_MAX: usize = METADATA_MAX as usize + 32 * HEADER_SIZE;

/// The size of the read buffer, unless a header needs more.
const PIECE: usize = 64 << 10;

/// The fewest bytes that a map of holes needs for each piece between them: two numbers and their
/// terminators.
const MAP_ENTRY_MIN: usize = 4;

/// The prefixes of the records about holes, in the forms of GNU tar and of star.
const SPARSE: &[u8] = b"GNU.sparse.";
const SPARSE_OF_STAR: &[u8] = b"SCHILY.realsize";

/// The prefix of the records that are extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// The prefix of the extended attributes that belong to users. All others are about rights, which
/// no program of a container has.
const OF_USERS: &[u8] = b"user.";

/// The records that are numbers. A reader that ignored a wrong one would use another number
/// instead.
const NUMBERS: [&[u8]; 3] = [b"size", b"uid", b"gid"];

/// The records that would, if they held for all entries, change where an entry goes or what is in
/// it.
const NEVER_GLOBAL: [&[u8]; 3] = [b"path", b"linkpath", b"size"];

/// Nanoseconds in a second.
const NANOS: i64 = 1_000_000_000;

/// The reason why an archive is refused, without the archive's name, which the caller adds.
pub(super) enum ArchiveRefusal {
    /// The reason, in words.
    Because(String),
    /// The system could not do what the archive asks for.
    System(io::Error),
}

impl From<io::Error> for ArchiveRefusal {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Errno> for ArchiveRefusal {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// The reason why an entry would be misread. Its name is quoted already.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("the length of its entry {0} is no number that fits")]
    Length(String),
    #[error("the PAX records of its entry {0} are damaged")]
    Records(String),
    #[error("its entry {name} says {record}, which is no {what}")]
    Record { name: String, record: String, what: &'static str },
    #[error(
        "its file {name} has holes that are kept in a form that is not read here ({record}); pack \
         it with `tar --sparse --format=gnu`, or without `--sparse`"
    )]
    Holes { name: String, record: String },
    #[error("the map of holes of its file {0} is damaged")]
    Map(String),
    #[error("its file {0} begins in another volume; pack it without `--multi-volume`")]
    OtherVolume(String),
    #[error("its entry {name} is of a kind that is not known here, {letter:?}")]
    Kind { name: String, letter: char },
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    Folder,
    File,
    Symlink,
    /// A hard link: another name of a file.
    Link,
    Fifo,
    Device,
}

/// One entry of an archive.
#[derive(Debug)]
pub(super) struct ArchiveEntry {
    pub(super) kind: EntryKind,
    pub(super) path: PathBuf,
    /// The target of a link.
    pub(super) target: OsString,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: Timespec,
    /// Bytes of the file, including holes.
    pub(super) size: u64,
    /// The places in the file of the archive's bytes, in order: each an offset and a length.
    pub(super) pieces: Vec<(u64, u64)>,
    /// The extended attributes that belong to users.
    pub(super) attributes: Vec<(OsString, Vec<u8>)>,
}

/// An archive that is being read.
pub(super) struct ArchiveEntries<R> {
    bytes: R,
    parser: Parser,
    buffer: Vec<u8>,
    /// The part of the buffer that is not used yet.
    unread: std::ops::Range<usize>,
    /// The bytes that were read so far, and the most that may be read.
    read: u64,
    read_max: u64,
    ended: bool,
    /// The bytes left of the entry's content, and of the padding of its last block.
    content: u64,
    padding: u64,
    /// The entry that was read last, for error texts.
    last: Option<String>,
}

/// Returns a path of an archive, quoted.
pub(super) fn quote_path(path: &Path) -> String {
    quote(&*path.to_string_lossy()).to_string()
}

impl<R: Read> ArchiveEntries<R> {
    /// Returns a reader of the archive that reads at most `read_max` bytes.
    pub(super) fn new(bytes: R, read_max: u64) -> Self {
        let limits = Limits {
            max_metadata_size: METADATA_MAX,
            max_sparse_entries: METADATA_MAX as usize / MAP_ENTRY_MIN,
            ..Limits::default()
        };
        let mut parser = Parser::new(limits);
        parser.set_allow_empty_path(true);
        // Times before 1970 are valid. `check_entry` validates all numbers.
        parser.set_ignore_pax_errors(true);
        Self {
            bytes,
            parser,
            buffer: vec![],
            unread: 0..0,
            read: 0,
            read_max,
            ended: false,
            content: 0,
            padding: 0,
            last: None,
        }
    }

    /// Returns how many bytes of the archive were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Returns the next entry, whose content [`Self::next_piece`] returns; skips the unread content
    /// of the last entry.
    pub(super) fn next(&mut self) -> Result<Option<ArchiveEntry>, ArchiveRefusal> {
        self.skip_content()?;
        let mut wanted = HEADER_SIZE;
        loop {
            self.fill_buffer(wanted)?;
            let head = &self.buffer[self.unread.clone()];
            if head.is_empty() {
                return Ok(None);
            }
            let (used, entry, map) = match self.parser.parse(head) {
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    if min_bytes > HEAD_MAX {
                        return Err(self.too_long_error());
                    }
                    if self.ended {
                        // A single block of zeros is accepted as the end, though there should be
                        // two.
                        return match head.iter().all(|byte| *byte == 0) {
                            true => Ok(None),
                            false => Err(self.cut_off_error()),
                        };
                    }
                    // The size doubles each time, because the parser starts again from the first
                    // byte.
                    wanted = min_bytes.max(2 * head.len()).min(HEAD_MAX);
                    continue;
                }
                Ok(ParseEvent::End { .. }) => return Ok(None),
                Ok(ParseEvent::GlobalExtensions { consumed, pax_data }) => {
                    let refused = global_record_fault(pax_data);
                    self.unread.start += consumed;
                    wanted = HEADER_SIZE;
                    match refused {
                        None => continue,
                        Some(reason) => return Err(ArchiveRefusal::Because(reason)),
                    }
                }
                Ok(ParseEvent::Entry { consumed, entry }) => (consumed, entry, None),
                Ok(ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size }) => {
                    (consumed, entry, Some((sparse_map, real_size)))
                }
                Err(ParseError::MetadataTooLarge { .. }) => return Err(self.too_long_error()),
                Err(error) => {
                    return Err(ArchiveRefusal::Because(match (&self.last, error) {
                        (None, ParseError::Header(error)) => {
                            format!(
                                "it is no tar archive, nor one that is compressed by gzip or zstd: \
                                 {error}"
                            )
                        }
                        (None, error) => format!("its first entry cannot be read: {error}"),
                        (Some(last), error) => {
                            format!("its entry after {last} cannot be read: {error}")
                        }
                    }));
                }
            };
            let stored = stored_bytes(&entry);
            let known = check_entry(&entry, stored, map)
                .map_err(|error| ArchiveRefusal::Because(error.to_string()))?;
            self.unread.start += used;
            self.content = stored;
            // A header whose length needs more than 64 bits was refused above.
            self.padding = stored.next_multiple_of(HEADER_SIZE as u64) - stored;
            wanted = HEADER_SIZE;
            if let Some(entry) = known {
                self.last = Some(quote_path(&entry.path));
                return Ok(Some(entry));
            }
            self.skip_content()?;
        }
    }

    /// Returns the next piece of the entry's content, of at most `max` bytes; empty after its end.
    pub(super) fn next_piece(&mut self, max: u64) -> Result<&[u8], ArchiveRefusal> {
        let max = max.min(self.content);
        if max == 0 {
            return Ok(&[]);
        }
        self.fill_buffer(1)?;
        if self.unread.is_empty() {
            return Err(self.cut_off_error());
        }
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(self.unread.len());
        let begin = self.unread.start;
        self.unread.start += length;
        self.content -= length as u64;
        Ok(&self.buffer[begin..begin + length])
    }

    /// Skips to the next header.
    fn skip_content(&mut self) -> Result<(), ArchiveRefusal> {
        while self.content > 0 {
            self.next_piece(u64::MAX)?;
        }
        // The last block of an archive may be short.
        self.content = self.padding;
        self.padding = 0;
        while self.content > 0 {
            self.fill_buffer(1)?;
            if self.unread.is_empty() {
                self.content = 0;
            } else {
                self.next_piece(u64::MAX)?;
            }
        }
        Ok(())
    }

    /// Reads until `wanted` bytes are in the buffer, or the archive ends.
    fn fill_buffer(&mut self, wanted: usize) -> Result<(), ArchiveRefusal> {
        if self.unread.len() >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        self.buffer.resize(wanted.max(PIECE), 0);
        while self.unread.len() < wanted && !self.ended {
            let length = match self.bytes.read(&mut self.buffer[self.unread.end..]) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(ArchiveRefusal::Because(format!("it cannot be read: {error}")));
                }
            };
            self.ended = length == 0;
            self.unread.end += length;
            self.read += length as u64;
            if self.read > self.read_max {
                return Err(ArchiveRefusal::Because("the image's archives are too large".into()));
            }
        }
        Ok(())
    }

    fn too_long_error(&self) -> ArchiveRefusal {
        let last = self.last.as_deref().unwrap_or("the first one");
        ArchiveRefusal::Because(format!(
            "one entry's name, link and attributes have more than {METADATA_MAX} bytes; it follows \
             {last}"
        ))
    }

    fn cut_off_error(&self) -> ArchiveRefusal {
        let last = self.last.as_deref().unwrap_or("its beginning");
        ArchiveRefusal::Because(format!("it is cut off: it ends soon after {last}"))
    }
}

/// Returns how many bytes follow an entry's header.
fn stored_bytes(entry: &ParsedEntry<'_>) -> u64 {
    match entry.entry_type {
        // The size in the header of these kinds means something else, if anything.
        EntryType::Link
        | EntryType::Symlink
        | EntryType::Char
        | EntryType::Block
        | EntryType::Directory
        | EntryType::Fifo => 0,
        _ => entry.size,
    }
}

/// Returns a checked entry, every part of which is understood; none if the entry is about the
/// archive itself.
///
/// # Errors
/// Which part would be misread.
fn check_entry(
    entry: &ParsedEntry<'_>,
    stored: u64,
    map: Option<(Vec<SparseEntry>, u64)>,
) -> Result<Option<ArchiveEntry>, EntryError> {
    let path = PathBuf::from(OsString::from_vec(entry.path.to_vec()));
    let name = quote_path(&path);
    if !fits_in_64_bits(&entry.header.as_bytes()[SIZE]) || stored > i64::MAX.cast_unsigned() {
        return Err(EntryError::Length(name));
    }
    let mut mtime = Timespec { tv_sec: entry.mtime.cast_signed(), tv_nsec: 0 };
    let mut attributes = vec![];
    let records = parse_records(entry.pax.unwrap_or_default())
        .ok_or_else(|| EntryError::Records(name.clone()))?;
    for (key, value) in records {
        let record = || {
            format!("{}={}", String::from_utf8_lossy(key), quote(&*String::from_utf8_lossy(value)))
        };
        let misread = |what| EntryError::Record { name: name.clone(), record: record(), what };
        if NUMBERS.contains(&key) && parse_number(value).is_none() {
            return Err(misread("number"));
        }
        if key == b"mtime" {
            mtime = parse_time(value).ok_or_else(|| misread("time"))?;
        }
        if map.is_none() && (key.starts_with(SPARSE) || key == SPARSE_OF_STAR) {
            return Err(EntryError::Holes { name, record: record() });
        }
        if let Some(attribute) =
            key.strip_prefix(ATTRIBUTE).filter(|name| name.starts_with(OF_USERS))
        {
            attributes.push((OsString::from_vec(attribute.to_vec()), value.to_vec()));
        }
    }
    let kind = match entry.entry_type {
        // Archives of Unix V7 mark a folder only by such a name.
        EntryType::Regular if entry.path.ends_with(b"/") => EntryKind::Folder,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => EntryKind::File,
        EntryType::Directory | EntryType::Other(b'D') => EntryKind::Folder,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Link => EntryKind::Link,
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char | EntryType::Block => EntryKind::Device,
        // The archive's own label.
        EntryType::Other(b'V') => return Ok(None),
        EntryType::Other(b'M') => {
            return Err(EntryError::OtherVolume(name));
        }
        other => {
            let letter = char::from(other.to_byte());
            return Err(EntryError::Kind { name, letter });
        }
    };
    let (pieces, size) = match map {
        None => (vec![(0, stored)], stored),
        Some((map, size)) => {
            let well = are_valid_pieces(&map, stored, size);
            if !well {
                return Err(EntryError::Map(name));
            }
            (map.iter().map(|piece| (piece.offset, piece.length)).collect(), size)
        }
    };
    Ok(Some(ArchiveEntry {
        kind,
        path,
        target: OsString::from_vec(entry.link_target.as_deref().unwrap_or_default().to_vec()),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime,
        size,
        pieces,
        attributes,
    }))
}

/// The place of the content's length in a header.
const SIZE: std::ops::Range<usize> = 124..136;

/// Returns whether a number of a header fits into 64 bits: text does, and binary numbers whose
/// leading bytes are zeros.
fn fits_in_64_bits(field: &[u8]) -> bool {
    field[0] & 0x80 == 0
        || (field[0] == 0x80 && field[1..field.len() - 8].iter().all(|byte| *byte == 0))
}

/// Returns whether the pieces of a file, with holes between them, take exactly the stored bytes,
/// and lie in the file. Each piece but the last must fill its blocks: readers differ about what
/// follows one that does not.
fn are_valid_pieces(map: &[SparseEntry], stored: u64, size: u64) -> bool {
    let (mut end, mut taken) = (0_u64, 0_u64);
    for piece in map {
        let in_order = piece.offset >= end || piece.length == 0;
        let fills_blocks = piece.length == 0 || taken.is_multiple_of(HEADER_SIZE as u64);
        let (Some(next), Some(sum)) =
            (piece.offset.checked_add(piece.length), taken.checked_add(piece.length))
        else {
            return false;
        };
        if !in_order || !fills_blocks {
            return false;
        }
        (end, taken) = (end.max(next), sum);
    }
    taken == stored && end <= size && size <= i64::MAX.cast_unsigned()
}

/// Returns what is wrong with the records that hold for all entries; none if nothing is.
fn global_record_fault(pax: &[u8]) -> Option<String> {
    let Some(records) = parse_records(pax) else {
        return Some("its PAX records of all entries are damaged".into());
    };
    let (key, _) = records
        .into_iter()
        .find(|(key, _)| NEVER_GLOBAL.contains(key) || key.starts_with(SPARSE))?;
    let key = String::from_utf8_lossy(key);
    Some(format!(
        "it has a PAX record {key:?} for all entries at once; pack it without `--pax-option`"
    ))
}

/// Parses PAX records into names and values; none if they are damaged. A record is
/// `<length> <name>=<value>\n`.
fn parse_records(mut pax: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = vec![];
    while !pax.is_empty() {
        let space = pax.iter().position(|byte| *byte == b' ')?;
        let length = usize::try_from(parse_number(&pax[..space])?).ok()?;
        let record = pax.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        pax = &pax[length..];
    }
    Some(records)
}

fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses the time of a record: seconds since 1970 (negative before that), with a fraction or
/// without.
fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    let tv_sec: i64 = seconds.parse().ok()?;
    // The fraction counts away from 1970, but nanoseconds always count forward.
    if text.starts_with('-') && nanos > 0 {
        return Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: NANOS - nanos });
    }
    Some(Timespec { tv_sec, tv_nsec: nanos })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample;

    use super::*;

    #[test]
    fn times_have_fractions_on_both_sides_of_1970() {
        let read = |text: &str| parse_time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
        for (text, is) in [
            ("1000000000", (1_000_000_000, 0)),
            ("1.5", (1, 500_000_000)),
            ("1.1234567891", (1, 123_456_789)),
            ("-1", (-1, 0)),
            ("-1.25", (-2, 750_000_000)),
            ("-0.5", (-1, 500_000_000)),
        ] {
            assert_eq!(read(text), Some(is), "{text}");
        }
        for text in ["", "x", "1.x", "1.-5", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn records_with_any_bytes_are_told_apart_and_damaged_ones_are_not_passed_over() {
        let pax = b"28 SCHILY.xattr.user.a=1\n\n2\n9 path=x\n";
        assert_eq!(
            parse_records(pax),
            Some(vec![(&b"SCHILY.xattr.user.a"[..], &b"1\n\n2"[..]), (b"path", b"x")])
        );
        for damaged in [
            &b"9 path=x"[..],
            b"11 path=x\n",
            b"path=x\n",
            b"9 pathxx\n",
            b"99 path=x\n",
            b"0 x=\n",
        ] {
            assert_eq!(parse_records(damaged), None, "{}", String::from_utf8_lossy(damaged));
        }
    }

    #[test]
    fn a_length_of_more_than_64_bits_does_not_fit() {
        let field = |first: u8, second: u8| [&[first, second, 0, 0][..], &[0xff; 8]].concat();
        assert!(fits_in_64_bits(b"00000000012\0") && fits_in_64_bits(&field(0x80, 0)));
        assert!(
            !fits_in_64_bits(&field(0x81, 0))
                && !fits_in_64_bits(&field(0x80, 1))
                && !fits_in_64_bits(&field(0xff, 0xff))
        );
    }

    #[test]
    fn pieces_are_refused_that_overlap_leave_the_file_or_are_read_in_two_ways() {
        let well = |map: &[(u64, u64)], stored, size| {
            let map: Vec<_> =
                map.iter().map(|&(offset, length)| SparseEntry { offset, length }).collect();
            are_valid_pieces(&map, stored, size)
        };
        assert!(
            well(&[(0, 512), (1024, 100), (4096, 0)], 612, 4096) && well(&[(4096, 0)], 0, 4096)
        );
        assert!(!well(&[(0, 512), (256, 512)], 1024, 4096), "they overlap");
        assert!(!well(&[(0, 100), (1024, 100)], 200, 4096), "the first block is not filled");
        assert!(!well(&[(4000, 512)], 512, 4096), "it ends after the file");
        assert!(
            !well(&[(0, 512)], 1024, 4096) && !well(&[(0, 512)], 100, 4096),
            "other bytes are stored"
        );
        assert!(!well(&[(u64::MAX, 2)], 2, u64::MAX) && !well(&[], 0, u64::MAX));
    }

    /// Returns an entry: a header of this kind and length, and the bytes after it.
    fn tar_entry(kind: u8, size: u64, content: &[u8], is_gnu: bool) -> Vec<u8> {
        let mut head = [0; HEADER_SIZE];
        head[..4].copy_from_slice(b"name");
        head[100..107].copy_from_slice(b"0000644");
        head[156] = kind;
        head[257..265].copy_from_slice(if is_gnu { b"ustar  \0" } else { b"ustar\x0000" });
        head[SIZE.start] = 0x80;
        head[SIZE.end - 8..SIZE.end].copy_from_slice(&size.to_be_bytes());
        head[148..156].fill(b' ');
        let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
        head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut entry = [&head[..], content].concat();
        entry.resize(entry.len().next_multiple_of(HEADER_SIZE), 0);
        entry
    }

    #[test]
    fn the_archives_of_these_tests_are_archives() {
        for is_gnu in [true, false] {
            let pax = tar_entry(b'x', 14, b"14 path=other\n", is_gnu);
            let archive = [pax, tar_entry(b'0', 5, b"bytes", is_gnu)].concat();
            let mut reading = ArchiveEntries::new(&*archive, u64::MAX);
            let first = reading.next().ok().flatten().unwrap();
            assert_eq!((first.path, first.size), (PathBuf::from("other"), 5));
            assert!(reading.next_piece(9).is_ok_and(|piece| piece == b"bytes"));
            assert!(reading.next().is_ok_and(|next| next.is_none()));
        }
    }

    fn any_content() -> impl Strategy<Value = Vec<u8>> {
        let keys = [
            "path",
            "size",
            "mtime",
            "uid",
            "GNU.sparse.major",
            "GNU.sparse.minor",
            "GNU.sparse.map",
        ];
        let keys =
            [&keys[..], &["GNU.sparse.realsize", "GNU.sparse.offset", "GNU.sparse.numbytes", "x"]]
                .concat();
        let values = ["0", "1", "512", "0,512,1024,512", "-1", "18446744073709551615", "a/b", ""];
        let record =
            (sample::select(keys), sample::select(values.to_vec())).prop_map(|(key, value)| {
                let rest = format!(" {key}={value}\n");
                let length = (1..).find(|length| length.to_string().len() + rest.len() == *length);
                format!("{}{rest}", length.unwrap_or_default()).into_bytes()
            });
        let records = vec(record, 0..6).prop_map(|records| records.concat());
        prop_oneof![records, vec(any::<u8>(), 0..1500), Just(b"2\n0\n512\n1024\n512\n".to_vec())]
    }

    proptest! {
        /// Reading ends for any archive, and returns no byte that is not in it.
        #[test]
        fn reading_an_archive_ends_whatever_it_says(
            entries in vec(
                (
                    sample::select(b"0012345567LKxxxxgSSDVM?".to_vec()),
                    any_content(),
                    any::<bool>(),
                    sample::select(vec![0_u64, 1, 600, 1 << 40, u64::MAX]),
                    any::<bool>(),
                ),
                0..12,
            ),
            cut in 0_usize..3000,
        ) {
            let mut archive: Vec<u8> = vec![];
            for (kind, content, is_true, other, is_gnu) in &entries {
                let size = if *is_true { content.len() as u64 } else { *other };
                archive.extend(tar_entry(*kind, size, content, *is_gnu));
            }
            archive.truncate(archive.len().saturating_sub(cut.saturating_sub(1500)));
            let mut reading = ArchiveEntries::new(&*archive, u64::MAX);
            let (mut heads, mut bytes) = (0, 0);
            while let Ok(Some(entry)) = reading.next() {
                heads += HEADER_SIZE;
                let pieces: u64 = entry.pieces.iter().map(|(_, length)| length).sum();
                let mut given = 0;
                while let Ok(piece) = reading.next_piece(1000) {
                    given += piece.len();
                    if piece.is_empty() {
                        prop_assert_eq!(given as u64, pieces);
                        break;
                    }
                }
                bytes += given;
            }
            prop_assert!(heads + bytes <= archive.len());
        }
    }
}
