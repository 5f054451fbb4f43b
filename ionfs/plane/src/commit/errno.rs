//! The error numbers of a refused event file: the table of DESIGN.md section 3.

use std::fmt;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The error number that the close, fsync or rename of a refused event file returns.
///
/// Documents hold its name, such as `EINVAL`. An unknown name reads as [`Self::Io`], so that a
/// document of a newer Ion can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalErrno {
    /// The module may not publish the type.
    Access,
    /// A named file is still open for writing.
    Busy,
    /// The event was committed before with other content.
    Exists,
    /// The content is no event.
    Invalid,
    /// A store failed, or the disk with an error that has no name here.
    Io,
    /// Too many events stand between this one and the first of its correlation.
    Loop,
    /// A path is too long for a store.
    NameTooLong,
    /// A named file is missing.
    NoEntry,
    /// The disk is full.
    NoSpace,
    /// The user's quota on the disk is used up.
    Quota,
    /// The event is over a limit.
    TooBig,
}

/// Each variant with its name in errno(3) and its number.
const TABLE: [(RefusalErrno, &str, Errno); 11] = [
    (RefusalErrno::Access, "EACCES", Errno::ACCESS),
    (RefusalErrno::Busy, "EBUSY", Errno::BUSY),
    (RefusalErrno::Exists, "EEXIST", Errno::EXIST),
    (RefusalErrno::Invalid, "EINVAL", Errno::INVAL),
    (RefusalErrno::Io, "EIO", Errno::IO),
    (RefusalErrno::Loop, "ELOOP", Errno::LOOP),
    (RefusalErrno::NameTooLong, "ENAMETOOLONG", Errno::NAMETOOLONG),
    (RefusalErrno::NoEntry, "ENOENT", Errno::NOENT),
    (RefusalErrno::NoSpace, "ENOSPC", Errno::NOSPC),
    (RefusalErrno::Quota, "EDQUOT", Errno::DQUOT),
    (RefusalErrno::TooBig, "E2BIG", Errno::TOOBIG),
];

impl RefusalErrno {
    fn row(self) -> &'static (Self, &'static str, Errno) {
        // The table is in the order of the variants: a test compares them.
        &TABLE[self as usize]
    }

    /// Returns the name in errno(3).
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns the number that the kernel returns to the module.
    pub fn number(self) -> Errno {
        self.row().2
    }

    /// Returns the error number of an error of the operating system, or [`Self::Io`] if the table
    /// does not have it.
    pub fn from_io_error(error: &io::Error) -> Self {
        let number = Errno::from_io_error(error);
        let row = TABLE.iter().find(|(.., known)| number == Some(*known));
        row.map_or(Self::Io, |(errno, ..)| *errno)
    }
}

impl fmt::Display for RefusalErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for RefusalErrno {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for RefusalErrno {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let row = TABLE.iter().find(|(_, known, _)| *known == name);
        Ok(row.map_or(Self::Io, |(errno, ..)| *errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_keeps_its_name_and_its_number() {
        for (errno, name, number) in TABLE {
            assert_eq!((errno.name(), errno.number()), (name, number), "{errno:?}");
            assert_eq!(RefusalErrno::from_io_error(&number.into()), errno);
            let document = serde_json::to_string(&errno).unwrap();
            assert_eq!(document, format!("{name:?}"));
            assert_eq!(serde_json::from_str::<RefusalErrno>(&document).unwrap(), errno);
        }
        assert_eq!(serde_json::from_str::<RefusalErrno>("\"ENEWER\"").unwrap(), RefusalErrno::Io);
        assert_eq!(RefusalErrno::from_io_error(&Errno::ROFS.into()), RefusalErrno::Io);
    }
}
