//! The root of a job's mount namespace: the part of the machine that the job's processes see.
//!
//! | place | root's program | a `privileged` one | an ordinary user's | a container's runtime |
//! | --- | --- | --- | --- | --- |
//! | `/proc` | its own; settings read-only | its own | its own | its own |
//! | `/dev` | terminals, random numbers, GPUs | the machine's | the machine's | the machine's |
//! | `/sys` | the machine's, read-only | the machine's | the machine's | the machine's |
//! | Ion's state | empty | empty | empty | never seen: the runtime makes another root |
//! | `/run/secrets` | the module's secrets | the same | the same | never seen: beside the bundle |
//! | all else | the machine's | the machine's | the machine's | the machine's |
//!
//! The machine's `/proc` is nowhere in it, not even below another mount: it shows the daemon's
//! environment and memory. Nothing needs to be closed to an ordinary user's program: what is closed
//! to root's programs belongs to root, so an ordinary user may not write it anyway.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ion_model::secret::SECRETS_FOLDER;
use ion_system::sys;
use rustix::fs::{CWD, FileType, Mode as Permissions, OFlags};
use rustix::mount::{self, MountFlags, MountPropagationFlags, UnmountFlags};

use super::error::InitError;
use super::rights::{Rights, limit_processes};
use super::{BUNDLE, CONTAINER_SECRETS, ROOTFS, SandboxCommand, SandboxContainer, SandboxMode};

/// An empty folder and an empty file, read-only, that are mounted over other places while the root
/// is built.
pub(super) const EMPTY_FOLDER: &str = "/empty";
pub(super) const EMPTY_FILE: &str = "/nothing";

/// The paths of `/proc` and `/sys` that are masked: only people who repair the machine read them.
pub(crate) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// The paths of `/proc` that change the machine when they are written; root may write them,
/// whatever its capabilities.
pub(crate) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// More such paths of `/proc`, for programs of this machine only: a container's runtime knows only
/// the others.
const READ_ONLY_TOO: [&str; 3] = ["/proc/driver", "/proc/dynamic_debug", "/proc/mtrr"];

/// The character devices that programs expect, and those of GPUs and similar hardware. No disk, no
/// user's terminal, no memory.
const DEVICES: [&str; 11] =
    ["null", "zero", "full", "random", "urandom", "tty", "fuse", "kfd", "dxg", "dri", "accel"];

/// The prefix of the names of further GPUs.
const NVIDIA: &str = "nvidia";

/// The descriptors that come from making a root.
pub(super) struct RootHandles {
    /// The FUSE device by which the daemon serves the tree, if there is a tree.
    pub(super) device: Option<OwnedFd>,
    /// `/sys/class/bdi` of the host: the namespace itself may show it read-only.
    pub(super) read_ahead: Option<OwnedFd>,
}

/// Returns an absolute path below another root.
pub(super) fn path_under(root: &str, path: &Path) -> PathBuf {
    Path::new(root).join(path.strip_prefix("/").unwrap_or(path))
}

pub(super) fn make_folder(folder: &Path) -> Result<(), InitError> {
    fs::create_dir(folder).map_err(InitError::path(folder, "cannot be made"))
}

/// Mounts a small tmpfs, for files that this namespace alone sees.
pub(super) fn mount_tmpfs(at: &Path) -> Result<(), InitError> {
    mount_tmpfs_with(at, MountFlags::NOSUID | MountFlags::NODEV)
}

fn mount_tmpfs_with(at: &Path, flags: MountFlags) -> Result<(), InitError> {
    mount::mount("ion", at, "tmpfs", flags, Some(c"mode=0755,size=1m"))
        .map_err(InitError::mount("a tmpfs cannot be mounted at", at))
}

/// Returns whether the module is a program of root that keeps few rights: then files of root are
/// closed to it that no capability protects.
fn is_confined(command: &SandboxCommand) -> bool {
    command.mode == SandboxMode::Root
        && command.rights == Rights::Few
        && command.container.is_none()
}

/// Makes a new root for this mount namespace: the content of the host's root without [what no job
/// sees](super::cover), the tree where the command wants it, and its container's bundle. The host's
/// root stays unchanged: nothing is made or mounted there.
pub(super) fn build(command: &SandboxCommand, owner: (u32, u32)) -> Result<RootHandles, InitError> {
    let name = match &command.mount_at {
        None => None,
        Some(mount_at) => match mount_at.strip_prefix("/").ok().and_then(|rest| rest.to_str()) {
            Some(name) if !name.is_empty() && !name.contains('/') => Some(name),
            _ => return Err(InitError::MountPoint(mount_at.clone())),
        },
    };
    let (root, new) = (Path::new("/"), Path::new("/new"));
    let confined = is_confined(command);
    enter_scratch_root(confined)?;
    let has_secrets = !command.secrets.is_empty() && command.container.is_none();
    let own_run = has_secrets && needs_own_run();
    let unreadable = InitError::path(Path::new("/host"), "cannot be read");
    for entry in fs::read_dir("/host").map_err(&unreadable)? {
        let entry = entry.map_err(&unreadable)?;
        let its_own = |known: &str| entry.file_name() == known;
        let is_made_below = its_own("proc") || (confined && its_own("dev"));
        if name.is_some_and(its_own) || is_made_below || (own_run && its_own("run")) {
            continue;
        }
        carry_over(&entry.path(), &new.join(entry.file_name()))?;
    }
    if own_run {
        make_own_run(&new.join("run"))?;
    }
    let device = name.map(|name| mount_tree(name, owner)).transpose()?;
    if let Some(container) = &command.container {
        make_bundle(container, name)?;
        if !command.secrets.is_empty() {
            let at = path_under("/new", Path::new(CONTAINER_SECRETS));
            make_folder(&at)?;
            command.secrets.mount(&at, container.owner)?;
        }
    }
    mount_proc(new)?;
    limit_processes(command, &new.join("proc"));
    let bdi = "/host/sys/class/bdi";
    let read_ahead = rustix::fs::open(
        bdi,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Permissions::empty(),
    )
    .ok();
    if confined {
        make_devices(&new.join("dev"))?;
        protect_settings()?;
    }
    command.covers.iter().try_for_each(|cover| cover.mount())?;
    if has_secrets {
        command.secrets.mount(&path_under("/new", Path::new(SECRETS_FOLDER)), None)?;
    }
    let mut read_only = MountFlags::RDONLY | MountFlags::BIND | MountFlags::NOSUID;
    if !confined {
        read_only |= MountFlags::NODEV;
    }
    let _ = mount::mount_remount(new, read_only, c"");
    let enter =
        |path: &Path| rustix::process::chdir(path).map_err(InitError::mount("cannot enter", path));
    enter(new)?;
    rustix::process::pivot_root(".", ".")
        .map_err(InitError::mount("the root cannot be changed to", new))?;
    mount::unmount(".", UnmountFlags::DETACH)
        .map_err(InitError::mount("the host's root cannot be let go at", root))?;
    enter(root)?;
    Ok(RootHandles { device, read_ahead })
}

/// Changes the root to a small tmpfs where the host's whole root is at `/host` and the new one,
/// still empty, at `/new`. The new one may hold devices if it is `confined`.
fn enter_scratch_root(confined: bool) -> Result<(), InitError> {
    let (root, base) = (Path::new("/"), Path::new("/tmp"));
    // No mount from here on may propagate to the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change(root, private)
        .map_err(InitError::mount("mounts cannot be made private at", root))?;
    mount_tmpfs(base)?;
    for folder in ["host", "new", EMPTY_FOLDER] {
        make_folder(&path_under("/tmp", Path::new(folder)))?;
    }
    let nodev = if confined { MountFlags::empty() } else { MountFlags::NODEV };
    mount_tmpfs_with(Path::new("/tmp/new"), MountFlags::NOSUID | nodev)?;
    rustix::process::chdir(base).map_err(InitError::mount("cannot enter", base))?;
    rustix::process::pivot_root(".", "host")
        .map_err(InitError::mount("the root cannot be changed to", base))?;
    rustix::process::chdir(root).map_err(InitError::mount("cannot enter", root))?;
    File::create(EMPTY_FILE).map_err(InitError::path(Path::new(EMPTY_FILE), "cannot be made"))?;
    [EMPTY_FOLDER, EMPTY_FILE].iter().try_for_each(|path| bind_read_only(Path::new(path)))
}

/// Makes a place read-only.
fn bind_read_only(at: &Path) -> Result<(), InitError> {
    mount::mount_bind(at, at).map_err(InitError::mount("cannot be bound:", at))?;
    let flags = MountFlags::RDONLY
        | MountFlags::BIND
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount::mount_remount(at, flags, c"").map_err(InitError::mount("cannot be made read-only:", at))
}

/// Mounts a `/proc` that shows only the processes of this namespace, with pids of their own.
fn mount_proc(new: &Path) -> Result<(), InitError> {
    let at = new.join("proc");
    make_folder(&at)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount::mount("proc", &at, "proc", flags, None) {
        Ok(()) => Ok(()),
        // In some containers no new /proc may be mounted, only the container's own. The daemon's
        // entries in it are closed to the module all the same: the daemon has capabilities that the
        // module lacks, and cannot be dumped.
        Err(_) => mount::mount_bind_recursive("/host/proc", &at)
            .map_err(InitError::mount("cannot be shown:", &at)),
    }
}

/// Makes the part of `/dev` that programs need.
fn make_devices(dev: &Path) -> Result<(), InitError> {
    make_folder(dev)?;
    let failed = |source: io::Error| InitError::Device { at: dev.to_owned(), source };
    for entry in fs::read_dir("/host/dev").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, from) = (entry.file_name(), entry.path());
        let to = dev.join(&name);
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            // Such links lead to /proc/self/fd and to the journal's socket.
            std::os::unix::fs::symlink(fs::read_link(&from).map_err(failed)?, &to)
                .map_err(failed)?;
            continue;
        }
        let name = name.to_string_lossy();
        if !DEVICES.contains(&&*name) && !name.starts_with(NVIDIA) {
            continue;
        }
        if kind.is_dir() {
            carry_over(&from, &to)?;
        } else if kind.is_char_device() {
            make_device(&from, &to).map_err(failed)?;
        }
    }
    let (pts, shm) = (dev.join("pts"), dev.join("shm"));
    make_folder(&pts)?;
    make_folder(&shm)?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    // A new devpts instance: the terminals of others could be read and written.
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    mount::mount("devpts", &pts, "devpts", flags, Some(options))
        .map_err(InitError::mount("terminals cannot be mounted at", &pts))?;
    let ptmx = dev.join("ptmx");
    let _ = fs::remove_file(&ptmx);
    std::os::unix::fs::symlink("pts/ptmx", ptmx).map_err(failed)?;
    // A tmpfs of its own, which goes with the job, whatever is left in it.
    mount::mount("shm", &shm, "tmpfs", flags | MountFlags::NODEV, Some(c"mode=1777"))
        .map_err(InitError::mount("shared memory cannot be mounted at", &shm))
}

fn make_device(from: &Path, to: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(from)?;
    let kind = FileType::CharacterDevice;
    let mode = device.permissions().mode() & 0o777;
    match rustix::fs::mknodat(CWD, to, kind, Permissions::from_raw_mode(mode), device.rdev()) {
        Ok(()) => {}
        // Root of a user namespace may not make devices, so the host's device is bound.
        Err(rustix::io::Errno::PERM) => {
            File::create(to)?;
            return Ok(mount::mount_bind(from, to)?);
        }
        Err(error) => return Err(error.into()),
    }
    // The umask of this process must not change the mode.
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    std::os::unix::fs::chown(to, Some(device.uid()), Some(device.gid()))
}

/// Closes the paths of `/proc` and `/sys` by which root could change the machine.
fn protect_settings() -> Result<(), InitError> {
    let sysfs = Path::new("/new/sys");
    if sys::make_read_only(sysfs).is_err() {
        // Linux before 5.12 can make only single mounts read-only: then the mounts below `/sys` are
        // not shown.
        mount::unmount(sysfs, UnmountFlags::DETACH)
            .map_err(InitError::mount("cannot be let go:", sysfs))?;
        mount::mount_bind("/host/sys", sysfs)
            .map_err(InitError::mount("cannot be bound:", sysfs))?;
        bind_read_only(sysfs)?;
    }
    let present = |path: &&str| path_under("/new", Path::new(path)).exists();
    for path in READ_ONLY.iter().chain(&READ_ONLY_TOO).copied().filter(present) {
        bind_read_only(&path_under("/new", Path::new(path)))?;
    }
    for path in MASKED.iter().copied().filter(present) {
        let at = path_under("/new", Path::new(path));
        let with = if at.is_dir() { EMPTY_FOLDER } else { EMPTY_FILE };
        mount::mount_bind(with, &at).map_err(InitError::mount("cannot be masked:", &at))?;
    }
    Ok(())
}

/// Mounts the tree below the new root. Returns the device that serves it.
fn mount_tree(name: &str, (uid, gid): (u32, u32)) -> Result<OwnedFd, InitError> {
    let tree = Path::new("/new").join(name);
    make_folder(&tree)?;
    let device = open_fuse_device()?;
    // Only the job's processes see this mount; some of them may be other users, if the module runs
    // as root.
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).expect("words and numbers have no zero byte");
    mount::mount(
        "ion",
        &tree,
        "fuse.ion",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(options.as_c_str()),
    )
    .map_err(InitError::mount(
        "a FUSE filesystem cannot be mounted at",
        Path::new(&format!("/{name}")),
    ))?;
    Ok(device)
}

/// Makes a container's bundle below the new root. The runtime keeps its state there, too. The image
/// is bound read-only, as other jobs share it: every place that something is mounted on exists in
/// it already.
fn make_bundle(container: &SandboxContainer, tree: Option<&str>) -> Result<(), InitError> {
    let (bundle, rootfs) =
        (path_under("/new", Path::new(BUNDLE)), path_under("/new", Path::new(ROOTFS)));
    make_folder(&bundle)?;
    // A mount of its own, because the root becomes read-only.
    mount_tmpfs(&bundle)?;
    make_folder(&rootfs)?;
    let image = path_under("/host", &container.rootfs);
    match tree {
        // The image has no folder for the tree: the container gets a new root that has one.
        Some(name) if !image.join(name).is_dir() => {
            mount_tmpfs(&rootfs)?;
            let unreadable = InitError::path(&image, "cannot be read");
            for entry in fs::read_dir(&image).map_err(&unreadable)? {
                let entry = entry.map_err(&unreadable)?;
                carry_over(&entry.path(), &rootfs.join(entry.file_name()))?;
            }
            make_folder(&rootfs.join(name))?;
            sys::make_read_only(&rootfs).map_err(InitError::mount(
                "the image cannot be made read-only:",
                &container.rootfs,
            ))?;
        }
        _ => {
            mount::mount_bind(&image, &rootfs)
                .map_err(InitError::mount("the image cannot be shown:", &container.rootfs))?;
            let read_only =
                MountFlags::RDONLY | MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
            mount::mount_remount(&rootfs, read_only, c"").map_err(InitError::mount(
                "the image cannot be made read-only:",
                &container.rootfs,
            ))?;
        }
    }
    let config = [("config.json".to_owned(), container.config.clone())];
    for (name, text) in config.iter().chain(&container.files) {
        let file = bundle.join(name);
        // The umask of this process must not change the mode, and every user in the container may
        // read the file.
        let written = fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)));
        written.map_err(|source| InitError::Bundle { name: name.clone(), source })?;
    }
    // A runtime may refuse a machine that has both versions of control groups, so the second is
    // hidden: the runtime does not use control groups here.
    let second = Path::new("/new/sys/fs/cgroup/unified");
    if second.is_dir() { mount_tmpfs(second) } else { Ok(()) }
}

/// Returns whether the machine has no folder where a job's secrets can be mounted.
fn needs_own_run() -> bool {
    !is_folder(&path_under("/host", Path::new(SECRETS_FOLDER)))
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Makes a `/run` of the job's own at `to`: it shows what the machine's has, and a folder for the
/// secrets. Nothing is made on the machine itself.
fn make_own_run(to: &Path) -> Result<(), InitError> {
    make_folder(to)?;
    mount_tmpfs(to)?;
    let secrets = Path::new(SECRETS_FOLDER).file_name();
    let from: PathBuf = path_under("/host", Path::new(SECRETS_FOLDER).parent().unwrap_or(to));
    let unreadable = InitError::path(&from, "cannot be read");
    if is_folder(&from) {
        for entry in fs::read_dir(&from).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            if Some(&*entry.file_name()) == secrets {
                continue;
            }
            let carried = carry_over(&entry.path(), &to.join(entry.file_name()));
            // Services make and remove entries there at any time.
            if fs::symlink_metadata(entry.path()).is_ok() {
                carried?;
            }
        }
    }
    make_folder(&path_under("/new", Path::new(SECRETS_FOLDER)))
}

/// Makes one entry of the host's root visible in the new one.
fn carry_over(from: &Path, to: &Path) -> Result<(), InitError> {
    let failed = InitError::path(from, "cannot be shown to the module");
    let kind = fs::symlink_metadata(from).map_err(&failed)?.file_type();
    if kind.is_symlink() {
        let target: PathBuf = fs::read_link(from).map_err(&failed)?;
        return std::os::unix::fs::symlink(target, to).map_err(&failed);
    }
    if kind.is_dir() {
        fs::create_dir(to).map_err(&failed)?;
    } else {
        fs::write(to, b"").map_err(&failed)?;
    }
    mount::mount_bind_recursive(from, to).map_err(|error| failed(error.into()))
}

fn open_fuse_device() -> Result<OwnedFd, InitError> {
    // The host's own device: the new root may have no /dev yet.
    rustix::fs::open("/host/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Permissions::empty())
        .map_err(|error| {
            let way_out = match error {
                rustix::io::Errno::NOENT => "; load it with `modprobe fuse`",
                rustix::io::Errno::ACCESS => {
                    "; allow it with `chmod 666 /dev/fuse`, as distributions do"
                }
                _ => "",
            };
            InitError::Fuse { way_out, source: error.into() }
        })
}
