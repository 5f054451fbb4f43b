//! Containers: what a sandbox starts in place of the module's program, where the module has an image.
//!
//! # How it works
//! `job-init` makes the job's namespaces and mounts its tree as for any other job, and then starts `crun`, which makes the
//! container inside of them: its own root, read-only, the tree bound in at its place, users that are nobody on this machine, no
//! capability, no network unless asked. So leash, signals, output, limits and adoption are those of every job, and all
//! that `crun` needs (the bundle, its state) lies in a tmpfs that goes with the namespace.
//!
//! # What it never does
//! Run anything of an image with rights of its own on this machine: no capability is left, and none can be had again.

mod cgroups;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ionfs::id::EventId;
use rustix::fs::{Mode as Permissions, OFlags, ResolveFlags};
use serde_json::{Value, json};

use self::cgroups::Cgroups;
use super::image::{Image, ImageConfig, ImageError, Images, Owners, USERS, found_in};
use super::sandbox::{self, Bounds, MASKED, Mode, READ_ONLY, ROOTFS};
use crate::pipeline::{Container, Network};

/// The first of the machine's users that stand for a container's. systemd leaves 1,879,048,192 to 2,147,352,575 to nobody, and
/// what gives users to people's own containers begins far below.
const FIRST_USER: u32 = 0x7140_0000;

/// Where an image that does not say so has its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a runtime may be that is not in an ordinary user's `PATH`.
const SYSTEM_PATH: &str = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin";

/// Bytes of an image's list of users.
const USERS_FILE_MAX: u64 = 1 << 20;

/// System calls that no module needs and that have often been a way out: of the kernel's keys, mounts, modules, namespaces and
/// tracers. What a capability guards fails anyway; these fail before the kernel looks.
const DENIED: [&str; 38] = [
    "acct",
    "add_key",
    "bpf",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// Of `clone`: a new user namespace.
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// What `clone3` is answered, and the `socketcall` of programs of 32 bits: what they ask for cannot be looked at. C libraries go
/// on with `clone` and with `socket`.
const ENOSYS: u32 = 38;

/// Sockets of virtual machines: no network namespace holds them, and at their other end is whoever runs this machine.
const AF_VSOCK: u32 = 40;

/// Sockets of the kernel's cryptography: much code that nobody needs, as libraries have their own.
const AF_ALG: u32 = 38;

/// What both are answered, as by a kernel that knows no such sockets.
const EAFNOSUPPORT: u32 = 97;

/// Why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Its image cannot be had.
    #[error("its image cannot be used")]
    Image(#[from] ImageError),
    /// This machine cannot do it, or the image does not say enough.
    #[error("{0}")]
    Unable(String),
}

/// What is to run.
pub(crate) struct Ask<'a> {
    /// From what.
    pub(crate) container: &'a Container,
    /// The program and its arguments; empty: as the image says.
    pub(crate) argv: Vec<String>,
    /// What is added to the image's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where its tree is; none: it has none.
    pub(crate) tree: Option<&'a Path>,
    /// Processes and threads at a time.
    pub(crate) processes: u64,
    /// Hears what is waited for.
    pub(crate) say: &'a (dyn Fn(&str) + Send + Sync),
}

/// Makes containers of this machine's images.
#[derive(Debug)]
pub struct Containers {
    images: Arc<Images>,
    mode: Mode,
    owners: Owners,
    path: String,
    /// Found when the first container is made: others need none.
    cgroups: OnceLock<Result<Cgroups, String>>,
}

impl Containers {
    /// With images below `home`; `env` is what every program of this daemon begins with, `registries` what the client of
    /// registries has beside.
    pub fn new(home: &Path, mode: Mode, env: &[(String, String)], registries: &[(String, String)]) -> Self {
        let owners = owners(mode);
        let own = env.iter().find(|(key, _)| key == "PATH").map(|(_, path)| path.clone()).unwrap_or_default();
        Self {
            images: Arc::new(Images::new(home, owners, [env, registries].concat())),
            mode,
            owners,
            path: own,
            cgroups: OnceLock::new(),
        }
    }

    /// All that a sandbox needs to run it.
    pub(crate) async fn make(&self, ask: Ask<'_>) -> Result<sandbox::Container, ContainerError> {
        if self.mode == Mode::Plain {
            let reason = "an image needs namespaces of its own, which this machine does not allow; `ion doctor` says why";
            return Err(ContainerError::Unable(reason.into()));
        }
        let runtime = runtime(&self.path).map_err(ContainerError::Unable)?;
        let image = self.images.get(&ask.container.image, ask.say).await?;
        let bounds = self.bounds(&ask).map_err(ContainerError::Unable)?;
        let user = ask.container.user.as_deref().or(image.config.user.as_deref()).unwrap_or_default();
        let user = user_of(&image, user).map_err(ContainerError::Unable)?;
        let config = config(&ask, &image.config, self.owners, user).map_err(ContainerError::Unable)?;
        let owner = match self.owners {
            Owners::From(first) => Some((first + user.0, first + user.1)),
            Owners::Itself(_) => None,
        };
        Ok(sandbox::Container {
            runtime,
            config: config.to_string(),
            rootfs: image.rootfs,
            owner,
            bounds,
            image: Some(image.used),
        })
    }

    /// The control groups; without them a job is not bound, which is an error if somebody asked for it.
    fn bounds(&self, ask: &Ask<'_>) -> Result<Bounds, String> {
        let cgroups = self.cgroups.get_or_init(|| {
            Cgroups::find().inspect_err(|reason| {
                tracing::warn!(
                    reason,
                    "containers have no control groups: their memory and processors are not bound"
                );
            })
        });
        let resources = ask.container.resources;
        match cgroups {
            Ok(cgroups) => Ok(cgroups.bounds(EventId::random().as_str(), resources, ask.processes)),
            Err(_) if resources.is_empty() => Ok(Bounds::default()),
            Err(reason) => Err(format!(
                "its \"resources\" cannot be bound here: {reason}; run the daemon as root with writable control groups, or leave \"resources\" out"
            )),
        }
    }
}

/// The runtime of containers, if there is one.
///
/// # Errors
/// What to do about it.
pub fn runtime(path: &str) -> Result<PathBuf, String> {
    let found = found_in(&format!("{path}:{SYSTEM_PATH}"), "crun");
    found.ok_or_else(|| {
        "an image needs crun, which is not there; install it with `apt-get install crun`".into()
    })
}

/// What a runtime says that it is, if it can be started.
///
/// # Errors
/// Why not.
pub fn version(runtime: &Path) -> Result<String, String> {
    #[expect(clippy::disallowed_methods, reason = "asked by `ion doctor`, beside any job")]
    let output = std::process::Command::new(runtime).arg("--version").env_clear().output();
    let output = output.map_err(|error| format!("{} cannot be started: {error}", runtime.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(format!("{} does not say its version", runtime.display())),
    }
}

/// What fetches images from registries, if it is there.
///
/// # Errors
/// What to do about it.
pub fn fetcher(path: &str) -> Result<PathBuf, String> {
    let found = found_in(path, "skopeo");
    found.ok_or_else(|| {
        "there is no skopeo: images come from folders and archives alone; for registries `apt-get install skopeo`".into()
    })
}

/// Whose a container's users are: those of a range of this machine's that nobody else has, or where there is no such range
/// (an ordinary user's daemon, or one in a container) the daemon's own.
fn owners(mode: Mode) -> Owners {
    let uid = rustix::process::geteuid().as_raw();
    let covers = |line: &str| {
        let numbers: Vec<u64> =
            line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let (first, end) = (u64::from(FIRST_USER), u64::from(FIRST_USER + USERS));
        matches!(numbers[..], [from, _, count] if from <= first && end <= from + count)
    };
    let has_range = |map: &str| fs::read_to_string(map).is_ok_and(|map| map.lines().any(covers));
    match mode {
        Mode::Root if has_range("/proc/self/uid_map") && has_range("/proc/self/gid_map") => {
            Owners::From(FIRST_USER)
        }
        _ => Owners::Itself(uid),
    }
}

/// The number of a user and a group, as the image knows them.
fn user_of(image: &Image, said: &str) -> Result<(u32, u32), String> {
    let (user, group) = match said.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (said, None),
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let in_range = |(uid, gid): (u32, u32)| {
        if uid < USERS && gid < USERS {
            Ok((uid, gid))
        } else {
            Err(format!("user {said:?} is over {}", USERS - 1))
        }
    };
    let passwd = lines_of(image, "etc/passwd");
    // name:password:uid:gid:...
    let entry = passwd.iter().find(|entry| match number(user) {
        Some(uid) => entry.get(2).and_then(|field| number(field)) == Some(uid),
        None => entry.first().is_some_and(|name| name == user),
    });
    let field = |n: usize| entry.and_then(|entry| entry.get(n)).and_then(|field| number(field));
    let uid = match (user, number(user)) {
        ("", _) => 0,
        (_, Some(uid)) => uid,
        _ => field(2).ok_or_else(|| format!("the image knows no user {user:?}"))?,
    };
    let gid = match group.map(|group| (group, number(group))) {
        None => field(3).unwrap_or(0),
        Some((_, Some(gid))) => gid,
        Some((group, None)) => {
            let groups = lines_of(image, "etc/group");
            let found = groups.iter().find(|entry| entry.first().is_some_and(|name| name == group));
            let gid = found.and_then(|entry| number(entry.get(2)?));
            gid.ok_or_else(|| format!("the image knows no group {group:?}"))?
        }
    };
    in_range((uid, gid))
}

/// The lines of a small file of an image, in fields; none if there is no such file. No link leads out of the image.
fn lines_of(image: &Image, file: &str) -> Vec<Vec<String>> {
    let read = || -> std::io::Result<String> {
        let folder = fs::File::open(&image.rootfs)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(folder, file, flags, Permissions::empty(), resolve)?;
        let mut text = String::new();
        fs::File::from(file).take(USERS_FILE_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
}

/// The bundle's `config.json`, of the OCI runtime specification.
fn config(
    ask: &Ask<'_>,
    image: &ImageConfig,
    owners: Owners,
    (uid, gid): (u32, u32),
) -> Result<Value, String> {
    let said = || image.entrypoint.iter().chain(&image.cmd).flatten().cloned().collect();
    let args: Vec<String> = if ask.argv.is_empty() { said() } else { ask.argv.clone() };
    if args.is_empty() {
        return Err("its image does not say what to run; say it with \"run\"".into());
    }
    let (uids, gids) = match owners {
        Owners::From(first) => {
            let all = json!([{"containerID": 0, "hostID": first, "size": USERS}]);
            (all.clone(), all)
        }
        Owners::Itself(own) => (
            json!([{"containerID": uid, "hostID": own, "size": 1}]),
            json!([{"containerID": gid, "hostID": rustix::process::getegid().as_raw(), "size": 1}]),
        ),
    };
    let host = ask.container.network == Network::Host;
    let kinds = ["pid", "ipc", "uts", "mount", "user", "cgroup", "network"];
    let namespaces = kinds.iter().filter(|kind| !(host && **kind == "network"));
    let namespaces: Vec<Value> = namespaces.map(|kind| json!({"type": kind})).collect();
    let cwd = image.working_dir.as_deref().filter(|folder| folder.starts_with('/')).unwrap_or("/");
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": "ion",
        "root": {"path": ROOTFS, "readonly": true},
        "process": {
            "terminal": false,
            "user": {"uid": uid, "gid": gid},
            "args": args,
            "env": environment(ask, image),
            "cwd": cwd,
            "noNewPrivileges": true,
            "capabilities": {},
        },
        "mounts": mounts(ask.tree, host),
        "linux": {
            "namespaces": namespaces,
            "uidMappings": uids,
            "gidMappings": gids,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp(),
        },
    }))
}

/// The image's environment, and ours over it.
fn environment(ask: &Ask<'_>, image: &ImageConfig) -> Vec<String> {
    let ours = |name: &str| ask.env.iter().any(|(key, _)| key == name);
    let of_image = image.env.iter().flatten();
    let kept = of_image.filter(|pair| pair.split_once('=').is_some_and(|(name, _)| !ours(name)));
    let mut env: Vec<String> = kept.cloned().collect();
    env.extend(ask.env.iter().map(|(name, value)| format!("{name}={value}")));
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.push(format!("PATH={PATH}"));
    }
    env
}

fn mounts(tree: Option<&Path>, host_network: bool) -> Vec<Value> {
    let mount = |kind: &str, at: &str, source: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("tmpfs", "/dev/shm", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
        mount("tmpfs", "/tmp", "tmp", &["nosuid", "nodev", "mode=1777"]),
    ];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let bound = ["rbind", "nosuid", "noexec", "nodev", "ro"];
    if host_network {
        // A new one shows the devices of a network, which has to be the container's own.
        mounts.push(mount("none", "/sys", "/sys", &bound));
        let names = ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|file| Path::new(file).exists());
        mounts.extend(names.map(|file| mount("none", file, file, &bound)));
    } else {
        mounts.push(mount("sysfs", "/sys", "sysfs", &read_only));
    }
    let tree = tree.map(|at| at.display().to_string());
    mounts.extend(tree.map(|at| mount("none", &at, &at, &["rbind", "nosuid", "nodev"])));
    mounts
}

fn seccomp() -> Value {
    let architectures = match std::env::consts::ARCH {
        "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => vec![],
    };
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": [
            {"names": &DENIED[..], "action": "SCMP_ACT_ERRNO"},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EAFNOSUPPORT,
             "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EAFNOSUPPORT,
             "args": [{"index": 0, "value": AF_ALG, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ],
    })
}
