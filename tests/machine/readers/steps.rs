//! What a driver does next, and where: chance, places and operations.
#![allow(unreachable_pub, reason = "a part of one test")]

use std::path::PathBuf;

/// Names that a driver has in the folder that all drivers share: more than one reply to a listing
/// holds.
pub const MANY: u32 = 600;

/// Names that a driver has in a folder of its own.
pub const FEW: u32 = 24;

/// Files of the event that a driver may move away.
pub const INPUTS: u32 = 40;

/// The same numbers for the same seed: splitmix64.
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

/// Where a name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Room {
    /// The folder of all drivers.
    Shared,
    /// The folder of one driver, which is renamed now and then.
    Own,
    /// `in/data`: a name can only be moved away.
    Input,
}

pub type Name = (Room, u32);

/// A tree: the mount's, or the plain one beside it.
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
