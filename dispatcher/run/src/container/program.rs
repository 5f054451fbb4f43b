//! Checks whether a container's program can be started, before it is tried: a runtime reports the
//! reason in words of its own.
//!
//! A failure is reported only if it is sure. A path that is not a file of the image (it may be
//! mounted) is left to the runtime.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode as Permissions, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::users::User;

/// The bytes at a program's start that say what it is. The kernel looks at 256 for a script's first
/// line.
const HEAD: u64 = 256;

/// The most bytes of a program's table of segments, and of the name of its loader.
const PARTS_MAX: u64 = 64 << 10;
const LOADER_MAX: u64 = 4096;

/// The most scripts that are interpreters of each other: as many as the kernel follows.
const SCRIPTS_MAX: usize = 5;

/// The machines that programs are built for, by their numbers in ELF.
const MACHINES: [(u16, &str); 8] = [
    (3, "386"),
    (40, "arm"),
    (62, "amd64"),
    (183, "arm64"),
    (21, "ppc64le"),
    (22, "s390x"),
    (243, "riscv64"),
    (258, "loong64"),
];

/// The type of the segment that names the loader.
const LOADER: u32 = 3;

/// The files of an image, as one of its users sees them.
pub(super) struct ImageFiles<'a> {
    pub(super) rootfs: &'a Path,
    pub(super) user: &'a User,
    /// The id of the container's first user on this machine; none: the user itself owns all files.
    pub(super) first: Option<u32>,
    /// The places where something is mounted over the image's files.
    pub(super) mounted: Vec<PathBuf>,
}

/// The result of opening a path of an image.
enum ImagePath {
    Nothing,
    File(File),
    /// The image alone cannot tell.
    Unknown,
}

/// Returns why the program cannot be started, if that is certain.
pub(super) fn program_fault(
    files: &ImageFiles<'_>,
    program: &str,
    path: &str,
    folder: &Path,
) -> Option<String> {
    if program.is_empty() {
        return Some("its name is empty; say it with \"run\"".into());
    }
    if program.contains('/') {
        return match files.open(&folder.join(program)) {
            ImagePath::Nothing => Some("it is not there".into()),
            ImagePath::File(file) => files.file_fault(&file, 0),
            ImagePath::Unknown => None,
        };
    }
    let mut first = None;
    for place in path.split(':') {
        match files.open(&folder.join(place).join(program)) {
            ImagePath::Nothing => {}
            ImagePath::Unknown => return None,
            ImagePath::File(file) => match files.permission_fault(&file) {
                None => return files.file_fault(&file, 0),
                Some(why) => first = first.or(Some(why)),
            },
        }
    }
    first.or_else(|| Some(format!("it is in no folder of its PATH ({path})")))
}

impl ImageFiles<'_> {
    fn open(&self, path: &Path) -> ImagePath {
        if self.mounted.iter().any(|at| path.starts_with(at)) {
            return ImagePath::Unknown;
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = File::open(self.rootfs)
            .map_err(|_| Errno::IO)
            .and_then(|root| rustix::fs::openat2(root, path, flags, Permissions::empty(), resolve));
        match opened {
            Ok(file) => ImagePath::File(file.into()),
            Err(Errno::NOENT | Errno::NOTDIR) if !self.leads_to_a_mount(path) => ImagePath::Nothing,
            Err(_) => ImagePath::Unknown,
        }
    }

    /// Returns whether a link on the way may lead to a mounted place.
    fn leads_to_a_mount(&self, path: &Path) -> bool {
        path.ancestors().any(|part| {
            let link = self.rootfs.join(part.strip_prefix("/").unwrap_or(part)).read_link();
            link.is_ok_and(|target| {
                let target = part.parent().unwrap_or(Path::new("/")).join(target);
                self.mounted.iter().any(|at| target.starts_with(at))
            })
        })
    }

    /// Returns why no user, or not this one, can execute the file.
    fn permission_fault(&self, file: &File) -> Option<String> {
        let metadata = file.metadata().ok()?;
        if metadata.is_dir() {
            return Some("it is a folder".into());
        }
        if !metadata.is_file() {
            return Some("it is no regular file".into());
        }
        let of_container = |id: u32| self.first.map_or(Some(id), |first| id.checked_sub(first));
        let (uid, gid) = (of_container(metadata.uid()), of_container(metadata.gid()));
        let in_group =
            gid == Some(self.user.gid) || gid.is_some_and(|gid| self.user.groups.contains(&gid));
        let bit = match (self.first, uid == Some(self.user.uid), in_group) {
            (None, _, _) | (_, true, _) => 0o100,
            (_, false, true) => 0o010,
            (_, false, false) => 0o001,
        };
        if metadata.mode() & bit == 0 {
            let User { uid, gid, .. } = self.user;
            let mode = metadata.mode() & 0o7777;
            return Some(format!(
                "user {uid}:{gid} may not execute it (its mode is {mode:o}); allow it in the image \
                 with `chmod +x`"
            ));
        }
        None
    }

    /// Returns why a file that was found cannot be started.
    fn file_fault(&self, file: &File, scripts: usize) -> Option<String> {
        if let Some(why) = self.permission_fault(file) {
            return Some(why);
        }
        let mut head = vec![];
        file.take(HEAD).read_to_end(&mut head).ok()?;
        match &*head {
            [b'#', b'!', line @ ..] => self.script_fault(line, scripts),
            [0x7f, b'E', b'L', b'F', ..] => self.elf_fault(file, &head),
            _ if has_other_formats() => None,
            [] => Some("it is empty".into()),
            _ => Some(
                "it is neither a program nor a script with a first line such as #!/bin/sh".into(),
            ),
        }
    }

    fn script_fault(&self, line: &[u8], scripts: usize) -> Option<String> {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_start();
        if line.ends_with(b"\r") {
            let shown = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            return Some(format!(
                "its first line, #!{shown}, ends as lines of Windows do (CR LF), so that no \
                 interpreter has that name; write it with plain ends of lines, as by `dos2unix`"
            ));
        }
        let interpreter =
            line.split(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(interpreter).into_owned();
        if interpreter.is_empty() {
            return Some("its first line names no interpreter".into());
        }
        match self.open(&Path::new("/").join(&interpreter)) {
            ImagePath::Unknown => None,
            ImagePath::Nothing => Some(format!(
                "the interpreter in its first line, {interpreter}, is not in the image; install it \
                 there, or name another one"
            )),
            ImagePath::File(_) if scripts == SCRIPTS_MAX => {
                Some("its interpreters are scripts that name each other".into())
            }
            ImagePath::File(file) => self
                .file_fault(&file, scripts + 1)
                .map(|why| format!("its interpreter is {interpreter}: {why}")),
        }
    }

    fn elf_fault(&self, file: &File, head: &[u8]) -> Option<String> {
        // Programs of the other byte order and of 32 bits are left to the runtime.
        let number = |at: usize, length: usize| -> Option<u64> {
            let bytes = head.get(at..at + length)?;
            Some(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let machine = u16::try_from(number(18, 2)?).ok()?;
        let little = head.get(5) == Some(&1);
        let name = |machine: u16| {
            MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| *name)
        };
        let ours = match std::env::consts::ARCH {
            "x86_64" => &[62, 3][..],
            "aarch64" => &[183, 40],
            _ => return None,
        };
        if little && !ours.contains(&machine) && !has_other_formats() {
            let built = name(machine)
                .map_or_else(|| format!("another machine (number {machine})"), str::to_owned);
            let here = name(ours[0]).unwrap_or_default();
            return Some(format!(
                "it is built for {built}, and this machine is {here}; name an image for \
                 linux/{here}"
            ));
        }
        if !little || head.get(4) != Some(&2) {
            return None;
        }
        let (at, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut parts = vec![0; usize::try_from(size.checked_mul(count)?.min(PARTS_MAX)).ok()?];
        file.read_exact_at(&mut parts, at).ok()?;
        let size = usize::try_from(size).ok().filter(|size| *size >= 56)?;
        let part = parts.chunks_exact(size).find(|part| part[..4] == LOADER.to_le_bytes())?;
        let field = |at: usize| {
            part[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        let mut loader = vec![0; usize::try_from(field(32).min(LOADER_MAX)).ok()?];
        file.read_exact_at(&mut loader, field(8)).ok()?;
        let loader = String::from_utf8(loader).ok()?;
        let loader = loader.trim_end_matches('\0');
        match self.open(&Path::new("/").join(loader)) {
            ImagePath::Nothing => Some(format!(
                "the loader of its libraries, {loader}, is not in the image; take an image with \
                 the C library it was built with, or link it statically"
            )),
            _ => None,
        }
    }
}

/// Returns whether this machine starts programs of other formats too, such as those of other
/// architectures by an emulator.
fn has_other_formats() -> bool {
    let registered = std::fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    registered.map(|entry| entry.file_name()).any(|name| name != "register" && name != "status")
}
