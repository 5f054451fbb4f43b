//! The parts of which a driver's random steps consist: a random generator, places and operations.
#![allow(unreachable_pub, reason = "a part of one test")]

use std::path::PathBuf;

/// The number of names that a driver has in the folder that all drivers share: more than one reply
/// to a listing holds.
pub const MANY: u32 = 600;

/// The number of names that a driver has in a folder of its own.
pub const FEW: u32 = 24;

/// The number of the event's files that a driver may move away.
pub const INPUTS: u32 = 40;

/// A random generator, splitmix64: the same seed gives the same numbers.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap()
    }
}

/// The folder that a name is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Room {
    /// The folder that all drivers share.
    Shared,
    /// The folder of one driver, which the driver renames now and then.
    Own,
    /// `in/data`: files can be moved away from it, and none can be made in it.
    Input,
}

pub type Name = (Room, u32);

/// One of the two trees that are compared: the mount, or the plain directory beside it.
pub struct Side {
    pub output: PathBuf,
    pub input: PathBuf,
}

impl Side {
    pub fn folder(&self, room: Room, own: &str) -> PathBuf {
        match room {
            Room::Shared => self.output.join("shared"),
            Room::Own => self.output.join(own),
            Room::Input => self.input.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Create(Name, u32),
    Append(Name, u32),
    WriteAt(Name, u32, u32),
    Truncate(Name, u32),
    Remove(Name),
    Rename(Name, Name),
    Link(Name, Name),
    Touch(Name, u32),
    Chmod(Name, u32),
    Rewrite(Name, u32),
    RenameFolder,
    MoveFromInput(u32, Name),
    CopyFromInput(u32, Name),
    Hold(Name),
    AppendToHeld(u32, u32),
    CutHeld(u32, u32),
    Begin(Room),
    GoOn(u32, u32),
    StatListed(u32),
    Rewind(u32),
    Back(u32, u32),
    Stat(Name),
    Read(Name),
}

pub fn content(step: u64, length: u32) -> Vec<u8> {
    (0..u64::from(length)).map(|at| u8::try_from((at * 7 + step * 13) % 251).unwrap()).collect()
}

pub fn names_in(room: Room) -> u32 {
    match room {
        Room::Shared => MANY,
        Room::Own => FEW,
        Room::Input => INPUTS,
    }
}
