//! Tests listings of folders that other processes change: compares `out/data` and `in/data` with a
//! plain directory. Drivers do random operations on both sides, and compare attributes and contents
//! after every step. Beside them, readers list and stat the same folders all the time. A second
//! mount of the same node has drivers and readers too.
//!
//! The seed of a run determines its operations. A failure names the seed, the driver and its last
//! operations.
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

/// The number of drivers of one mount. They work in the same folder at the same time.
const DRIVERS: u32 = 2;

/// The number of a driver's operations in one round. The next round has fresh mounts, whose event
/// has all its files again.
const ROUND: u64 = 5_000;

/// The number of operations that a driver prints when it fails.
const LAST: usize = 40;

/// How far the `mtime` of a write may be from the clock: a tick of the kernel's coarse clock, and
/// the delays of a busy machine.
const TICK: Duration = Duration::from_millis(50);

/// An open listing, on the mount alone. The names of the plain side determine what it must return.
struct Listing {
    room: Room,
    folder: OwnedFd,
    /// The step at which it was first read.
    begun: Option<u64>,
    /// The names that it has returned since then, in order, each with the offset after it.
    said: Vec<(String, u64)>,
}

/// A file that stays open, whatever happens to its name.
struct Held {
    ours: File,
    plain: File,
}

/// Changes files on both sides, and compares the sides after each step.
struct Driver {
    seed: u64,
    number: u32,
    chance: Chance,
    ours: Side,
    plain: Side,
    own: String,
    step: u64,
    /// The step at which a name was last made or removed.
    changed: HashMap<Name, u64>,
    /// The step at which a rename last gave a name to another file. The name was there all the
    /// time, but a listing may return it at its old place and at its new one.
    replaced: HashMap<Name, u64>,
    /// The inodes of the plain side whose time was set, and that nobody has written to since.
    set: HashSet<u64>,
    /// The time that the mount showed for an inode of the plain side. It stays until somebody
    /// writes to the file.
    shown: HashMap<u64, SystemTime>,
    held: Vec<Held>,
    listings: Vec<Listing>,
    /// The driver's operations in this round.
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
            // Some names are chosen far more often than others.
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
        // The files of the event have set times from the beginning.
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

    /// Does the same on both sides, and asserts that the outcome is the same. If a file is moved
    /// out of `in/data` while a reader has it open by passthrough, it is busy until the kernel has
    /// reported the last close, so the operation is repeated until then.
    #[track_caller]
    fn both<T: PartialEq + Debug>(&self, act: impl Fn(&Side) -> io::Result<T>) -> Option<T> {
        let outcome = |side: &Side| act(side).map_err(|error| error.raw_os_error());
        let plain = outcome(&self.plain);
        let mut ours = outcome(&self.ours);
        if ours == Err(Some(libc::ETXTBSY)) {
            crate::support::wait_for("the moved file not to be busy", || {
                ours = outcome(&self.ours);
                ours != Err(Some(libc::ETXTBSY))
            });
        }
        if ours != plain {
            self.fail(&format!("the mount gave {ours:?}, the plain directory {plain:?}"));
        }
        ours.ok()
    }

    /// Records whether a name was made, removed or given to another file. `was` is its inode from
    /// before the operation.
    fn came_or_went(&mut self, name: Name, was: Option<u64>) {
        let is = self.plain_inode(name);
        if is.is_some() != was.is_some() {
            self.changed.insert(name, self.step);
        } else if is != was {
            self.replaced.insert(name, self.step);
        }
    }

    /// Runs `act`, which changes the content of a name's file, and compares the name.
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
            self.fail(&format!("{name:?} was written now, but its time is {time:?}"));
        }
    }

    fn forget_time(&mut self, inode: u64) {
        self.set.remove(&inode);
        self.shown.remove(&inode);
    }

    /// Runs `act`, which changes only names and no content, and compares the names.
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
            // Some disks do not change the time of a file that is cut to the length that it already
            // has, so the file is made longer first.
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
                // Makes the moved file writable for its owner.
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
            self.fail(&format!("a change of a held file gave {ours:?} and {plain:?}"));
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
            self.fail(&format!("the ends of held file {index} differ: {ends:?}"));
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

    /// Reads the entries that one call with a buffer of this many bytes returns, and checks them.
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

    /// Asserts that a listed name was there at some moment since the listing began, is returned
    /// once, and has the listed inode. A name that was made, removed or replaced since then is not
    /// checked, because a listing may show either state of it, as on every disk.
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
                "a listing begun at step {begun} names {place:?}, which was removed before"
            ));
        }
        if listing.said.iter().any(|(said, _)| said == name) {
            self.fail(&format!("a listing begun at step {begun} names {place:?} twice"));
        }
        let found = fs::symlink_metadata(self.at(&self.ours, place)).map(|metadata| metadata.ino());
        if found.as_ref().ok() != Some(&inode) {
            self.fail(&format!("a listing names {place:?} as inode {inode}, but it is {found:?}"));
        }
    }

    /// Asserts that a listing, at its end, has returned every name that was there all the time.
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

    /// Compares the last listed names, as a program does that calls stat() in the middle of a
    /// listing.
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

    /// Moves a listing back to its beginning, or to a place where it was earlier.
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

    /// Compares the attributes of a name on both sides, and with `read` also its content. Returns
    /// the time that the mount shows.
    fn compare(&mut self, name: Name, read: bool) -> Option<SystemTime> {
        let paths = [&self.ours, &self.plain].map(|side| self.at(side, name));
        let found = paths.each_ref().map(fs::symlink_metadata);
        let (ours, plain) = match found {
            [Ok(ours), Ok(plain)] => (ours, plain),
            [Err(ours), Err(plain)] if ours.raw_os_error() == plain.raw_os_error() => return None,
            [ours, plain] => self.fail(&format!("stat of {name:?} gave {ours:?} and {plain:?}")),
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
                    self.fail(&format!("reading {name:?} gave {ours:?} and {plain:?}"));
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
            self.fail(&format!("{what} has {}, on the plain side {}", seen(ours), seen(plain)));
        }
        let (time, inode) = (ours.modified().unwrap(), plain.ino());
        if self.set.contains(&inode) && time != plain.modified().unwrap() {
            self.fail(&format!(
                "the time of {what} was set to {:?}, but is {time:?}",
                plain.modified()
            ));
        }
        let before = *self.shown.entry(inode).or_insert(time);
        if before != time {
            self.fail(&format!(
                "the time of {what} was {before:?} and is {time:?}, but nobody wrote"
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
                self.fail(&format!("{room:?} must not have {odd:?}, and must have {missing:?}"));
            }
            for n in 0..names_in(room) {
                self.compare((room, n), read);
            }
        }
    }
}

/// Reads as many bytes as the attributes of the open file say, and then what comes after them.
fn read_by_size(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
    file.read_exact(&mut content)?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

// ---- readers beside the drivers ----

/// The readers of a round. They end on drop, also when a driver fails.
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

/// Starts a shell that lists a tree with `ls` and `find` again and again, as a user may do.
fn lister(tree: &Path, stop: &Path) -> Child {
    let script = "while [ ! -e \"$0\" ]; do ls -lU out/data/shared in/data; find . -size +1k; done >/dev/null 2>&1";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(stop).current_dir(tree).stdin(Stdio::null()).spawn().unwrap()
}

/// Lists the folders again and again, and stats each name in the middle of the listing.
fn scan(tree: &Path, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        for folder in ["out/data/shared", "in/data", "out/data"] {
            for entry in fs::read_dir(tree.join(folder)).unwrap() {
                // The name may have been removed by now.
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

/// Fills both sides with the same files.
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

/// Runs one round: two mounts of one node, each with drivers and readers.
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

/// Runs as many operations as `ION_TEST_READERS_OPS` says, with seeds from `ION_TEST_READERS_SEED`
/// on.
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
