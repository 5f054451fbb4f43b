//! The user that a container's program runs as: `USER`, resolved by the image's own lists of users
//! and groups.

use std::fs;
use std::io::Read as _;

use rustix::fs::{Mode as Permissions, OFlags, ResolveFlags};

use crate::image::{Image, USERS};

/// The most bytes of an image's list of users, or of groups.
const LIST_MAX: u64 = 1 << 20;

/// The most groups of one user: as many as the kernel takes.
const GROUPS_MAX: usize = 65_536;

/// A user, as the image defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// The reason why a container cannot run as a user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The image's list of users does not have this one.
    #[error("the image knows no user {0:?}")]
    NoUser(String),
    /// The user's line in the image's list is damaged.
    #[error("the image's /etc/passwd has no number in its line of user {0:?}")]
    NoNumber(String),
    /// The image's list of groups does not have this one.
    #[error("the image knows no group {0:?}")]
    NoGroup(String),
    /// The number of the user, or of one of its groups, is too high.
    #[error(
        "user {spec:?} has the number {number}; containers have users and groups up to {last}",
        last = USERS - 1
    )]
    TooHigh {
        /// The user, as the module or the image names it.
        spec: String,
        /// The number.
        number: u32,
    },
}

/// Returns the user of an image that `spec` names: by name or number, with a group or without.
///
/// # Errors
/// Which user or group the image does not know.
pub(super) fn resolve_user(image: &Image, spec: &str) -> Result<User, UserError> {
    resolve_in_lists(spec, &read_list(image, "etc/passwd"), &read_list(image, "etc/group"))
}

/// Resolves the user in the content of `/etc/passwd` and `/etc/group`. Lines need not be UTF-8, and
/// only the lines of this user and its group need to be valid entries.
fn resolve_in_lists(spec: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let by_number = parse_number(user.as_bytes());
    // name:password:uid:gid:comment:home:shell
    let entry = parse_entries(passwd).find(|entry| match by_number {
        Some(uid) => field(entry, 2).and_then(parse_number) == Some(uid),
        None => entry.first() == Some(&user.as_bytes()),
    });
    let number_of = |n: usize| {
        let text = entry.as_ref().and_then(|entry| field(entry, n));
        text.and_then(parse_number).ok_or_else(|| match entry {
            None => UserError::NoUser(user.to_owned()),
            Some(_) => UserError::NoNumber(user.to_owned()),
        })
    };
    let uid = match by_number {
        Some(uid) => uid,
        None => number_of(2)?,
    };
    // name:password:gid:member,member
    let gid = match (group_spec, &entry) {
        (Some(group_spec), _) => match parse_number(group_spec.as_bytes()) {
            Some(gid) => gid,
            None => parse_entries(group)
                .find(|entry| entry.first() == Some(&group_spec.as_bytes()))
                .and_then(|entry| parse_number(field(&entry, 2)?))
                .ok_or_else(|| UserError::NoGroup(group_spec.to_owned()))?,
        },
        (None, Some(_)) => number_of(3)?,
        (None, None) => 0,
    };
    let name = entry.as_ref().and_then(|entry| entry.first()).filter(|name| !name.is_empty());
    let mut groups = vec![];
    // A group in `USER` excludes the user's other groups.
    if let (Some(name), None) = (name, group_spec) {
        let is_member = |entry: &Vec<&[u8]>| {
            field(entry, 3)
                .is_some_and(|members| members.split(|byte| *byte == b',').any(|one| one == *name))
        };
        let all = parse_entries(group)
            .filter(is_member)
            .filter_map(|entry| parse_number(field(&entry, 2)?));
        groups = all.filter(|one| *one != gid).take(GROUPS_MAX).collect();
        groups.sort_unstable();
        groups.dedup();
    }
    if let Some(over) = [uid, gid].iter().chain(&groups).find(|id| **id >= USERS) {
        return Err(UserError::TooHigh { spec: spec.to_owned(), number: *over });
    }
    let home = entry.as_ref().and_then(|entry| field(entry, 5)).unwrap_or_default();
    let home = std::str::from_utf8(home).ok().filter(|home| !home.is_empty()).unwrap_or("/");
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

fn parse_number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn parse_entries(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

fn field<'l>(entry: &[&'l [u8]], n: usize) -> Option<&'l [u8]> {
    entry.get(n).copied()
}

/// Reads a small file of an image; empty if it is missing. Symbolic links are followed inside the
/// image only.
fn read_list(image: &Image, file: &str) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let folder = fs::File::open(&image.rootfs)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(folder, file, flags, Permissions::empty(), resolve)?;
        let mut text = vec![];
        fs::File::from(file).take(LIST_MAX).read_to_end(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0::/root:/bin/sh\n# no line\nm\xfcller:x:9:9::/:\n\
        alice:x:1000:100:A. \xfc:/home/alice:\nodd:x:none:1::/:\n\n";
    const GROUP: &[u8] = b"root:x:0:\naudio:x:29:bob,alice\nvideo:x:44:alice\nusers:x:100:alice\n\
        tape:x:26:alicea\nbig:x:99999999:bob\n";

    /// C5.
    #[test]
    fn a_user_has_its_groups_and_home_as_the_image_says() {
        let found = |spec| resolve_in_lists(spec, PASSWD, GROUP);
        let user = |uid, gid, groups: &[u32], home: &str| {
            Ok(User { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
        };
        assert_eq!(found(""), user(0, 0, &[], "/root"));
        assert_eq!(found("alice"), user(1000, 100, &[29, 44], "/home/alice"));
        assert_eq!(found("1000"), user(1000, 100, &[29, 44], "/home/alice"));
        assert_eq!(found("alice:video"), user(1000, 44, &[], "/home/alice"));
        assert_eq!(found("alice:7"), user(1000, 7, &[], "/home/alice"));
        assert_eq!(found("4711"), user(4711, 0, &[], "/"));
        assert_eq!(found("4711:audio"), user(4711, 29, &[], "/"));
        assert_eq!(found("100000"), user(100_000, 0, &[], "/"));
        assert_eq!(found("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(found("alice:none"), Err(UserError::NoGroup("none".into())));
        assert_eq!(found("odd"), Err(UserError::NoNumber("odd".into())));
        let over = ["1000680000", "1000:99999999", "alice:big"]
            .map(|spec| found(spec).unwrap_err().to_string());
        assert!(over.iter().all(|words| words.contains("up to 16777215")), "{over:?}");
    }
}
