//! Who lists a folder while others change it: `out/data` and `in/data` against a plain directory.
//! Drivers do random operations on both sides and compare what the kernel says of each after every
//! step; beside them others list and stat the same folders all the time, and a second mount of the
//! same node does the same.
//!
//! A run is told by its seed. Whatever fails names the seed, the driver and its last operations.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs and says which seed it runs"
)]

mod steps;

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::mount::{Blobs, Mount, Passthrough};
use rustix::fs::{OFlags, RawDir};
use steps::{Chance, FEW, INPUTS, MANY, Name, Op, Room, Side, content, names_in};

/// Drivers of one mount, in the same folder at the same time.
const DRIVERS: u32 = 2;

/// Operations that a driver does before all begins anew in a fresh mount, with files of the event
/// to move away.
const ROUND: u64 = 5_000;

/// Operations that a driver tells of when it fails.
const LAST: usize = 40;

/// What `mtime` of a write may differ from the clock: a tick of the kernel's coarse clock, and a
/// busy machine.
const TICK: Duration = Duration::from_millis(50);

/// A listing that has begun, on the mount alone: what it must say follows from the plain side's
/// names.
struct Listing {
    room: Room,
    folder: OwnedFd,
    /// The step of its first reading.
    begun: Option<u64>,
    /// What it has said since then, in order, with the offset after it.
    said: Vec<(String, u64)>,
}

/// A file that was opened once and stays open, whatever becomes of its name.
struct Held {
    ours: File,
    plain: File,
}

/// One who changes files and compares both sides after each step.
struct Driver {
    seed: u64,
    number: u32,
    chance: Chance,
    ours: Side,
    plain: Side,
    own: String,
    step: u64,
    /// When a name last came or went.
    changed: HashMap<Name, u64>,
    /// When a name last became another file's, by a rename: it stayed, and a listing may give it
    /// where it was and where it is.
    replaced: HashMap<Name, u64>,
    /// Inodes of the plain side whose time was set and has not been overwritten.
    set: HashSet<u64>,
    /// The time that the mount showed of an inode of the plain side: it stays until somebody
    /// writes.
    shown: HashMap<u64, SystemTime>,
    held: Vec<Held>,
    listings: Vec<Listing>,
    /// Its operations in this round.
    done: Vec<Op>,
}

impl Driver {
    fn new(seed: u64, number: u32, ours: Side, plain: Side) -> Self {
        Self {
            seed,
            number,
            chance: Chance(seed),
            ours,
            plain,
            own: format!("own-{number}"),
            step: 0,
            changed: HashMap::new(),
            replaced: HashMap::new(),
            set: HashSet::new(),
            shown: HashMap::new(),
            held: vec![],
            listings: vec![],
            done: vec![],
        }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        let numbered =
            self.done.iter().enumerate().map(|(before, op)| format!("{}: {op:?}", before + 1));
        let last: Vec<String> = numbered.skip(self.done.len().saturating_sub(LAST)).collect();
        panic!(
            "seed {}, driver {}, step {}: {what}\nits last operations:\n{}\nrun it again with ION_TEST_READERS_SEED",
            self.seed,
            self.number,
            self.step,
            last.join("\n")
        );
    }

    fn file_name(&self, n: u32) -> String {
        format!("d{}-{n}", self.number)
    }

    fn at(&self, side: &Side, (room, n): Name) -> PathBuf {
        side.folder(room, &self.own).join(self.file_name(n))
    }

    fn exists(&self, name: Name) -> bool {
        fs::symlink_metadata(self.at(&self.plain, name)).is_ok()
    }

    fn plain_inode(&self, name: Name) -> Option<u64> {
        fs::symlink_metadata(self.at(&self.plain, name)).ok().map(|metadata| metadata.ino())
    }

    // ---- steps ----

    fn any_name(&mut self) -> Name {
        match self.chance.below(3) {
            0 => (Room::Own, self.chance.below(FEW)),
            // Some names far more often than others.
            1 => (Room::Shared, self.chance.below(MANY / 20)),
            _ => (Room::Shared, self.chance.below(MANY)),
        }
    }

    fn length(&mut self) -> u32 {
        match self.chance.below(40) {
            0 => self.chance.below(400_000),
            1..8 => self.chance.below(20_000),
            _ => self.chance.below(200),
        }
    }

    fn next(&mut self) -> Op {
        let (name, other, length) = (self.any_name(), self.any_name(), self.length());
        let (index, part) = (self.chance.below(8), self.chance.below(5_000));
        match self.chance.below(100) {
            0..7 => Op::Create(name, length),
            7..17 => Op::Append(name, length),
            17..22 => Op::WriteAt(name, part, length),
            22..25 => Op::Truncate(name, part),
            25..31 => Op::Remove(name),
            31..39 => Op::Rename(name, other),
            39..42 => Op::Link(name, other),
            42..45 => Op::Touch(name, part),
            45..47 => Op::Chmod(name, part),
            47..51 => Op::Rewrite(name, length),
            51 => Op::RenameFolder,
            52 => Op::MoveFromInput(self.chance.below(INPUTS), name),
            53 => Op::CopyFromInput(self.chance.below(INPUTS), name),
            54..57 => Op::Hold(name),
            57..64 => Op::AppendToHeld(index, length),
            64 => Op::CutHeld(index, part),
            65..69 => Op::Begin(
                [Room::Shared, Room::Shared, Room::Own, Room::Input][(index % 4) as usize],
            ),
            69..83 => Op::GoOn(index, [300, 1_000, 4_096, 32_768][(part % 4) as usize]),
            83..88 => Op::StatListed(index),
            88..90 => Op::Rewind(index),
            90..92 => Op::Back(index, part),
            92..96 => Op::Stat(name),
            _ => Op::Read(name),
        }
    }

    fn go(&mut self, steps: u64) {
        // The event's files have its times.
        self.set = (0..INPUTS).filter_map(|n| self.plain_inode((Room::Input, n))).collect();
        for _ in 0..steps {
            self.step += 1;
            let op = self.next();
            self.done.push(op);
            self.act(op);
            for index in 0..self.held.len() {
                self.compare_held(index);
            }
            if self.step.is_multiple_of(500) {
                self.compare_all(self.step.is_multiple_of(2_500));
            }
        }
        self.compare_all(true);
    }

    /// Does the same on both sides: the same must come of it. What was moved from `in/data` while
    /// it was read by passthrough is busy until the kernel has told of the last close.
    #[track_caller]
    fn both<T: PartialEq + Debug>(&self, act: impl Fn(&Side) -> io::Result<T>) -> Option<T> {
        let outcome = |side: &Side| act(side).map_err(|error| error.raw_os_error());
        let plain = outcome(&self.plain);
        let mut ours = outcome(&self.ours);
        if ours == Err(Some(libc::ETXTBSY)) {
            crate::support::wait_for("a moved file to be free", || {
                ours = outcome(&self.ours);
                ours != Err(Some(libc::ETXTBSY))
            });
        }
        if ours != plain {
            self.fail(&format!("the mount said {ours:?}, the plain directory {plain:?}"));
        }
        ours.ok()
    }

    fn came_or_went(&mut self, name: Name, was: Option<u64>) {
        let is = self.plain_inode(name);
        if is.is_some() != was.is_some() {
            self.changed.insert(name, self.step);
        } else if is != was {
            self.replaced.insert(name, self.step);
        }
    }

    /// The content of a name's inode is changed by `act`.
    fn change(&mut self, name: Name, act: impl Fn(&Self, &Side) -> io::Result<()>) {
        let before = self.plain_inode(name);
        let begun = SystemTime::now();
        let done = self.both(|side| act(self, side)).is_some();
        for inode in [before, self.plain_inode(name)].into_iter().flatten() {
            self.forget_time(inode);
        }
        self.came_or_went(name, before);
        let after = self.compare(name, true);
        if let Some(time) = after.filter(|_| done)
            && (time + TICK < begun || time > SystemTime::now() + TICK)
        {
            self.fail(&format!("{name:?} was written now and its time is {time:?}"));
        }
    }

    fn forget_time(&mut self, inode: u64) {
        self.set.remove(&inode);
        self.shown.remove(&inode);
    }

    /// The name of an inode is changed by `act`, and nothing else.
    fn move_name(&mut self, names: [Name; 2], act: impl Fn(&Self, &Side) -> io::Result<()>) {
        let were = names.map(|name| self.plain_inode(name));
        self.both(|side| act(self, side));
        for (name, was) in names.into_iter().zip(were) {
            self.came_or_went(name, was);
            self.compare(name, true);
        }
    }

    fn act(&mut self, op: Op) {
        let step = self.step;
        let opened = |path: &Path| OpenOptions::new().write(true).open(path);
        match op {
            Op::Create(name, length) => {
                self.change(name, |this, side| {
                    fs::write(this.at(side, name), content(step, length))
                });
            }
            Op::Append(name, length) => self.change(name, |this, side| {
                let mut options = OpenOptions::new();
                options
                    .append(true)
                    .create(true)
                    .open(this.at(side, name))?
                    .write_all(&content(step, length.max(1)))
            }),
            Op::WriteAt(name, offset, length) => self.change(name, |this, side| {
                opened(&this.at(side, name))?
                    .write_all_at(&content(step, length.max(1)), offset.into())
            }),
            // Cut to the length it has, a file's time changes on no disk for sure.
            Op::Truncate(name, length) => self.change(name, |this, side| {
                let file = opened(&this.at(side, name))?;
                file.set_len(u64::from(length) + 1_000_000)?;
                file.set_len(length.into())
            }),
            Op::Remove(name) => {
                self.move_name([name, name], |this, side| fs::remove_file(this.at(side, name)));
            }
            Op::Rename(from, to) => {
                self.move_name([from, to], |this, side| {
                    fs::rename(this.at(side, from), this.at(side, to))
                });
            }
            Op::Link(from, to) => {
                self.move_name([from, to], |this, side| {
                    fs::hard_link(this.at(side, from), this.at(side, to))
                });
            }
            Op::Touch(name, seconds) => self.touch(name, seconds),
            Op::Chmod(name, mode) => {
                let mode = fs::Permissions::from_mode(0o600 | (mode % 0o1000));
                self.both(|side| fs::set_permissions(self.at(side, name), mode.clone()));
                self.compare(name, false);
            }
            Op::Rewrite(name, length) => self.change(name, |this, side| {
                let new = side.folder(name.0, &this.own).join(format!("new-{}", this.number));
                fs::write(&new, content(step, length))?;
                fs::rename(&new, this.at(side, name))
            }),
            Op::RenameFolder => {
                let to = if self.own.ends_with('x') {
                    self.own.replace('x', "")
                } else {
                    format!("{}x", self.own)
                };
                self.both(|side| fs::rename(side.output.join(&self.own), side.output.join(&to)));
                self.own = to;
                self.compare((Room::Own, self.step as u32 % FEW), true);
            }
            Op::MoveFromInput(n, to) => {
                let from = (Room::Input, n);
                self.move_name([from, to], |this, side| {
                    fs::rename(this.at(side, from), this.at(side, to))
                });
                // Only the owner changes what was moved here.
                self.both(|side| {
                    fs::set_permissions(self.at(side, to), fs::Permissions::from_mode(0o644))
                });
            }
            Op::CopyFromInput(n, to) => self.change(to, |this, side| {
                fs::copy(this.at(side, (Room::Input, n)), this.at(side, to))?;
                fs::set_permissions(this.at(side, to), fs::Permissions::from_mode(0o644))
            }),
            Op::Hold(name) => self.hold(name),
            Op::AppendToHeld(index, length) => {
                let bytes = content(step, length.max(1));
                self.change_held(index, |mut file| file.write_all(&bytes));
            }
            Op::CutHeld(index, length) => self.change_held(index, |file| {
                file.set_len(u64::from(length) + 1_000_000)?;
                file.set_len(length.into())
            }),
            Op::Begin(room) => self.begin(room),
            Op::GoOn(index, bytes) => self.go_on(index, bytes),
            Op::StatListed(index) => self.stat_listed(index),
            Op::Rewind(index) => self.back_to(index, 0),
            Op::Back(index, part) => self.back_to(index, part),
            Op::Stat(name) => {
                self.compare(name, false);
            }
            Op::Read(name) => {
                self.compare(name, true);
            }
        }
    }

    fn touch(&mut self, name: Name, seconds: u32) {
        let time = UNIX_EPOCH
            + Duration::new(u64::from(seconds) * 100_000, self.step as u32 % 1_000_000_000);
        let done = self.both(|side| {
            let file = OpenOptions::new().write(true).open(self.at(side, name))?;
            file.set_times(FileTimes::new().set_modified(time))
        });
        if let (Some(()), Some(inode)) = (done, self.plain_inode(name)) {
            self.forget_time(inode);
            self.set.insert(inode);
        }
        self.compare(name, true);
    }

    // ---- files that stay open ----

    fn hold(&mut self, name: Name) {
        let open =
            |side: &Side| OpenOptions::new().read(true).append(true).open(self.at(side, name));
        if self.both(|side| open(side).map(drop)).is_none() {
            return;
        }
        let [ours, plain] = [&self.ours, &self.plain].map(|side| open(side).unwrap());
        if self.held.len() == 6 {
            let index = self.chance.below(6) as usize;
            self.held.remove(index);
        }
        self.held.push(Held { ours, plain });
    }

    fn change_held(&mut self, index: u32, act: impl Fn(&File) -> io::Result<()>) {
        if self.held.is_empty() {
            return;
        }
        let held = &self.held[index as usize % self.held.len()];
        let [ours, plain] =
            [&held.ours, &held.plain].map(|file| act(file).map_err(|error| error.raw_os_error()));
        if ours != plain {
            self.fail(&format!("a held file: {ours:?} and {plain:?}"));
        }
        let inode = held.plain.metadata().unwrap().ino();
        self.forget_time(inode);
    }

    fn compare_held(&mut self, index: usize) {
        let held = &self.held[index];
        let [ours, plain] = [&held.ours, &held.plain].map(|file| file.metadata().unwrap());
        let end = |mut file: &File| file.seek(SeekFrom::End(0)).unwrap();
        let ends = (end(&held.ours), end(&held.plain));
        if ends.0 != ends.1 {
            self.fail(&format!("the end of held file {index}: {ends:?}"));
        }
        self.compare_metadata(&format!("held file {index}"), &ours, &plain);
    }

    // ---- listings ----

    fn begin(&mut self, room: Room) {
        let path = self.ours.folder(room, &self.own);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => self.fail(&format!("{room:?} cannot be opened: {error}")),
        };
        if self.listings.len() == 5 {
            let index = self.chance.below(5) as usize;
            self.listings.remove(index);
        }
        self.listings.push(Listing { room, folder, begun: None, said: vec![] });
    }

    /// Reads as many bytes of a listing as one call gives.
    fn go_on(&mut self, index: u32, bytes: u32) {
        if self.listings.is_empty() {
            return;
        }
        let index = index as usize % self.listings.len();
        let listing = &self.listings[index];
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); bytes as usize];
        let mut entries = vec![];
        let mut at_end = false;
        {
            let mut raw = RawDir::new(listing.folder.as_fd(), &mut buffer);
            loop {
                match raw.next() {
                    None => {
                        at_end = true;
                        break;
                    }
                    Some(Err(error)) => {
                        self.fail(&format!("a listing of {:?}: {error}", listing.room))
                    }
                    Some(Ok(entry)) => {
                        let name = entry.file_name().to_str().unwrap().to_owned();
                        entries.push((name, entry.ino(), entry.next_entry_cookie()));
                    }
                }
                if raw.is_buffer_empty() {
                    break;
                }
            }
        }
        let begun = *self.listings[index].begun.get_or_insert(self.step);
        for (name, inode, offset) in entries {
            self.check_entry(index, begun, &name, inode);
            self.listings[index].said.push((name, offset));
        }
        if at_end {
            self.check_end(index, begun);
            self.back_to(u32::try_from(index).unwrap(), 0);
        }
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        name.strip_prefix(&format!("d{}-", self.number))?.parse().ok()
    }

    /// What a listing says stood there at some moment since it began, is said once, and has the
    /// inode that it shows. Of what came, went or was replaced since then, a listing may say
    /// either, as on every disk.
    fn check_entry(&self, index: usize, begun: u64, name: &str, inode: u64) {
        let listing = &self.listings[index];
        let Some(n) = self.number_of(name) else { return };
        let place = (listing.room, n);
        let since =
            |steps: &HashMap<Name, u64>| steps.get(&place).is_some_and(|step| *step >= begun);
        if since(&self.changed) || since(&self.replaced) {
            return;
        }
        if !self.exists(place) {
            self.fail(&format!(
                "a listing begun at step {begun} names {place:?}, which had gone before"
            ));
        }
        if listing.said.iter().any(|(said, _)| said == name) {
            self.fail(&format!("a listing begun at step {begun} names {place:?} twice"));
        }
        let found = fs::symlink_metadata(self.at(&self.ours, place)).map(|metadata| metadata.ino());
        if found.as_ref().ok() != Some(&inode) {
            self.fail(&format!("a listing names {place:?} as inode {inode}, and it is {found:?}"));
        }
    }

    /// What stood there all the time was said.
    fn check_end(&self, index: usize, begun: u64) {
        let listing = &self.listings[index];
        let said: HashSet<&str> = listing.said.iter().map(|(name, _)| name.as_str()).collect();
        for n in 0..names_in(listing.room) {
            let place = (listing.room, n);
            let stayed = self.changed.get(&place).is_none_or(|changed| *changed < begun);
            if stayed && self.exists(place) && !said.contains(self.file_name(n).as_str()) {
                self.fail(&format!("a listing begun at step {begun} ended without {place:?}"));
            }
        }
    }

    /// As scandir() with stat() in the middle of the listing.
    fn stat_listed(&mut self, index: u32) {
        if self.listings.is_empty() {
            return;
        }
        let listing = &self.listings[index as usize % self.listings.len()];
        let last = listing.said.iter().rev().take(8).filter_map(|(name, _)| self.number_of(name));
        let places: Vec<Name> = last.map(|n| (listing.room, n)).collect();
        for place in places {
            self.compare(place, false);
        }
    }

    /// Goes back to the beginning, or to where the listing was earlier.
    fn back_to(&mut self, index: u32, part: u32) {
        if self.listings.is_empty() {
            return;
        }
        let count = self.listings.len();
        let listing = &mut self.listings[index as usize % count];
        let keep = part as usize % (listing.said.len() + 1);
        let offset = keep.checked_sub(1).map_or(0, |last| listing.said[last].1);
        listing.said.truncate(keep);
        if keep == 0 {
            listing.begun = None;
        }
        rustix::fs::seek(&listing.folder, rustix::fs::SeekFrom::Start(offset)).unwrap();
    }

    // ---- comparing ----

    /// Compares what both sides say of a name, and its content if asked; the mount's time of it.
    fn compare(&mut self, name: Name, read: bool) -> Option<SystemTime> {
        let paths = [&self.ours, &self.plain].map(|side| self.at(side, name));
        let found = paths.each_ref().map(fs::symlink_metadata);
        let (ours, plain) = match found {
            [Ok(ours), Ok(plain)] => (ours, plain),
            [Err(ours), Err(plain)] if ours.raw_os_error() == plain.raw_os_error() => return None,
            [ours, plain] => self.fail(&format!("stat of {name:?}: {ours:?} and {plain:?}")),
        };
        self.compare_metadata(&format!("{name:?}"), &ours, &plain);
        if read {
            let [ours, plain] = paths.map(|path| read_by_size(&path));
            match (ours, plain) {
                (Ok(ours), Ok(plain)) if ours == plain => {}
                (Ok(ours), Ok(plain)) => {
                    let at = ours.iter().zip(&plain).position(|(one, other)| one != other);
                    let lengths = (ours.len(), plain.len());
                    self.fail(&format!(
                        "the content of {name:?} differs at {at:?}, lengths {lengths:?}"
                    ));
                }
                (ours, plain) => {
                    let [ours, plain] = [ours, plain].map(|read| read.map(|content| content.len()));
                    self.fail(&format!("{name:?} read: {ours:?} and {plain:?}"));
                }
            }
        }
        Some(ours.modified().unwrap())
    }

    fn compare_metadata(&mut self, what: &str, ours: &fs::Metadata, plain: &fs::Metadata) {
        let seen = |metadata: &fs::Metadata| {
            let (size, links, mode) = (metadata.len(), metadata.nlink(), metadata.mode());
            format!("size {size}, links {links}, mode {mode:o}, user {}", metadata.uid())
        };
        if seen(ours) != seen(plain) {
            self.fail(&format!("{what}: {} and on the plain side {}", seen(ours), seen(plain)));
        }
        let (time, inode) = (ours.modified().unwrap(), plain.ino());
        if self.set.contains(&inode) && time != plain.modified().unwrap() {
            self.fail(&format!(
                "the time of {what} was set to {:?} and is {time:?}",
                plain.modified()
            ));
        }
        let before = *self.shown.entry(inode).or_insert(time);
        if before != time {
            self.fail(&format!(
                "the time of {what} was {before:?} and is {time:?}, and nobody wrote"
            ));
        }
    }

    fn compare_all(&mut self, read: bool) {
        for room in [Room::Shared, Room::Own, Room::Input] {
            let names = |side: &Side| -> Vec<String> {
                let entries = fs::read_dir(side.folder(room, &self.own)).unwrap();
                let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                let mut names: Vec<String> =
                    names.filter(|name| self.number_of(name).is_some()).collect();
                names.sort();
                names
            };
            let [ours, plain] = [&self.ours, &self.plain].map(names);
            if ours != plain {
                let odd: Vec<_> = ours.iter().filter(|name| !plain.contains(name)).collect();
                let missing: Vec<_> = plain.iter().filter(|name| !ours.contains(name)).collect();
                self.fail(&format!("{room:?}: {odd:?} should not be there, {missing:?} should"));
            }
            for n in 0..names_in(room) {
                self.compare((room, n), read);
            }
        }
    }
}

/// As many bytes as the open file says that it has, and what comes after them.
fn read_by_size(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    file.read_exact(&mut content)?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

// ---- who lists beside them ----

/// Ends the readers, also when a driver fails.
struct Readers<'a> {
    end: &'a AtomicBool,
    /// A file whose presence ends the programs.
    stop: PathBuf,
    programs: Vec<Child>,
}

impl Drop for Readers<'_> {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        fs::write(&self.stop, "").unwrap();
        for program in &mut self.programs {
            program.wait().unwrap();
        }
    }
}

/// Programs that list a tree again and again, as a user does who looks at it.
fn lister(tree: &Path, stop: &Path) -> Child {
    let script = "while [ ! -e \"$0\" ]; do ls -lU out/data/shared in/data; find . -size +1k; done >/dev/null 2>&1";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(stop).current_dir(tree).stdin(Stdio::null()).spawn().unwrap()
}

/// Lists and asks for each name's attributes, in the middle of the listing.
fn scan(tree: &Path, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        for folder in ["out/data/shared", "in/data", "out/data"] {
            for entry in fs::read_dir(tree.join(folder)).unwrap() {
                // It may have gone.
                let _ = entry.unwrap().metadata();
            }
        }
    }
}

// ---- runs ----

fn sides(mount: &Mount, plain: &Path) -> (Side, Side) {
    let ours = Side { output: mount.data(), input: mount.at("in/data") };
    (ours, Side { output: plain.join("out"), input: plain.join("in") })
}

/// The same trees to begin with.
fn fill(mount: &Mount, plain: &Path) {
    let (ours, plain) = sides(mount, plain);
    fs::create_dir_all(&plain.output).unwrap();
    fs::create_dir_all(&plain.input).unwrap();
    for entry in fs::read_dir(&ours.input).unwrap() {
        let entry = entry.unwrap();
        let (to, metadata) = (plain.input.join(entry.file_name()), entry.metadata().unwrap());
        fs::write(&to, fs::read(entry.path()).unwrap()).unwrap();
        fs::set_permissions(&to, metadata.permissions()).unwrap();
        let file = File::open(&to).unwrap();
        file.set_times(FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
    }
    for side in [&ours, &plain] {
        fs::create_dir(side.output.join("shared")).unwrap();
        for driver in 0..DRIVERS {
            fs::create_dir(side.output.join(format!("own-{driver}"))).unwrap();
            for n in 0..MANY {
                fs::write(
                    side.output.join(format!("shared/d{driver}-{n}")),
                    content(n.into(), n % 50),
                )
                .unwrap();
            }
        }
    }
}

/// One round: two mounts of one node, in each some drivers and readers.
fn round(passthrough: Passthrough, seed: u64, steps: u64) {
    let inputs: Vec<(String, Vec<u8>)> = (0..DRIVERS)
        .flat_map(|driver| {
            (0..INPUTS).map(move |n| (format!("d{driver}-{n}"), content(n.into(), n * 500)))
        })
        .collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let blobs = if passthrough == Passthrough::Off { Blobs::Memory } else { Blobs::Files };
    let mount = Mount::new(passthrough, blobs, &inputs);
    let mounts = [mount.another(), mount];
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut readers =
            Readers { end: &end, stop: mounts[0].home.path().join("stop"), programs: vec![] };
        let mut drivers = vec![];
        for (number, mount) in (0u32..).zip(&mounts) {
            let plain = mount.home.path().join(format!("plain-{number}"));
            fill(mount, &plain);
            let program = lister(&mount.at(""), &readers.stop);
            readers.programs.push(program);
            let (tree, end) = (mount.at(""), &end);
            scope.spawn(move || scan(&tree, end));
            for driver in 0..DRIVERS {
                let (ours, plain) = sides(mount, &plain);
                let seed = seed + u64::from(number * DRIVERS + driver);
                drivers.push(scope.spawn(move || Driver::new(seed, driver, ours, plain).go(steps)));
            }
        }
        let ended: Vec<_> = drivers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        drop(readers);
        for outcome in ended {
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// As many operations as `ION_TEST_READERS_OPS` says, from the seed `ION_TEST_READERS_SEED` on.
fn agree(passthrough: Passthrough) {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let asked = number("ION_TEST_READERS_OPS", 6_000);
    let seed = number("ION_TEST_READERS_SEED", 1);
    let drivers = u64::from(2 * DRIVERS);
    let began = Instant::now();
    let mut left = asked.div_ceil(drivers);
    let mut next = seed;
    while left > 0 {
        let steps = left.min(ROUND);
        println!(
            "seeds {next} to {}, {steps} operations each, {passthrough:?}",
            next + drivers - 1
        );
        round(passthrough, next, steps);
        left -= steps;
        next += drivers;
    }
    println!("{asked} operations among readers, {passthrough:?}: {:?}", began.elapsed());
}

#[test]
fn readers_of_folders_see_what_a_plain_directory_shows() {
    agree(Passthrough::Allowed);
}

#[test]
fn readers_of_folders_see_what_a_plain_directory_shows_without_passthrough() {
    agree(Passthrough::Off);
}
