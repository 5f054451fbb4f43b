//! Containers: a sandbox starts one in place of the module's program, if the module has an image.
//!
//! # How it works
//! `job-init` makes the job's namespaces and mounts its tree as for any other job, and then starts
//! `crun`, which makes the container inside them: its own root, read-only, with the tree bound in,
//! users that have no account on this machine, no capability, and no network unless the module asks
//! for it. So the leash, signals, output, limits and adoption are the same as for every job, and
//! all that `crun` needs (the bundle, its state) lies in a tmpfs that goes with the namespace.
//!
//! # What it never does
//! Run anything of an image with rights of its own on this machine: no capability is left, and none
//! can be gained again.

mod cgroups;
mod error;
mod program;
mod users;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ion_jobs::pipeline::{Container, Network};
use ion_model::errors::error_chain;
use ion_model::id::EventId;
use ion_model::secret::SECRETS_FOLDER;
use rustix::fs::{Mode as Permissions, OFlags, ResolveFlags};
use serde_json::{Value, json};

use self::cgroups::{CgroupError, Cgroups};
pub use self::error::{ContainerError, RuntimeError};
use self::program::{ImageFiles, program_fault};
use self::users::{User, resolve_user};
use super::image::{HOST_FILES, Image, ImageConfig, ImageOwners, Images, USERS, find_in_path};
use super::sandbox::{
    self, BUNDLE, CONTAINER_SECRETS, CgroupLimits, MASKED, READ_ONLY, ROOTFS, SandboxMode,
};

/// The first of the machine's user ids that a container's users are mapped to. systemd leaves
/// 1,879,048,192 to 2,147,352,575 unassigned, and tools that assign ids to people's own containers
/// begin far below.
const FIRST_USER: u32 = 0x7140_0000;

/// The `PATH` of an image that names none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The folders that are searched for a runtime beside an ordinary user's `PATH`.
const SYSTEM_PATH: &str = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin";

/// The host name that a container has for itself.
const HOST_NAME: &str = "ion";

/// The host names that a container resolves to itself, whatever its network.
const OWN_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The most bytes that are read of this machine's `/etc/hosts`.
const HOSTS_MAX: u64 = 4 << 20;

/// The folders that every container has of its own, whatever its image has there: no volume
/// replaces them.
const OF_CONTAINER: [&str; 4] = ["/dev", "/ion", "/proc", "/sys"];

/// The names of signals; the index is the number.
const SIGNALS: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The first and the last real-time signal, as C libraries count them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The denied system calls. No module needs them, and they have often been a way out of a
/// container: they concern the kernel's keys, mounts, modules, namespaces and tracers. Those that a
/// capability guards would fail anyway; here they fail before the kernel looks at them.
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

/// The flag of `clone` for a new user namespace.
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// The error for `clone3`, and for the `socketcall` of 32-bit programs: a filter cannot read their
/// arguments. C libraries then use `clone` and `socket` instead.
const ENOSYS: u32 = 38;

/// Sockets of virtual machines: network namespaces do not contain them, and their other end is the
/// host that runs this virtual machine.
const AF_VSOCK: u32 = 40;

/// Sockets of the kernel's cryptography: much code that modules do not need, as libraries have
/// their own.
const AF_ALG: u32 = 38;

/// The error for both, as of a kernel that does not know such sockets.
const EAFNOSUPPORT: u32 = 97;

/// A request for a container.
pub(crate) struct ContainerRequest<'a> {
    /// The image and its settings.
    pub(crate) container: &'a Container,
    /// The program and its arguments; empty: those of the image.
    pub(crate) argv: Vec<String>,
    /// The variables that are added to the image's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where the job's tree is; none: it has no tree.
    pub(crate) tree: Option<&'a Path>,
    /// Whether it has secrets, in `/run/secrets`.
    pub(crate) has_secrets: bool,
    /// The most processes and threads.
    pub(crate) processes: u64,
    /// Receives a line about each wait, for the log.
    pub(crate) say: &'a (dyn Fn(&str) + Send + Sync),
}

/// Makes containers from the images of this machine.
#[derive(Debug)]
pub struct Containers {
    images: Arc<Images>,
    mode: SandboxMode,
    owners: ImageOwners,
    path: String,
    /// Looked for when the first container is made; other jobs need none.
    cgroups: OnceLock<Result<Cgroups, Arc<CgroupError>>>,
}

impl Containers {
    /// Returns a maker of containers with images below `home`. `env` is the environment that every
    /// program of this daemon begins with, `registries` what the registry client has in addition.
    pub fn new(
        home: &Path,
        mode: SandboxMode,
        env: &[(String, String)],
        registries: &[(String, String)],
    ) -> Self {
        let owners = choose_owners(mode);
        let own = env
            .iter()
            .find(|(key, _)| key == "PATH")
            .map(|(_, path)| path.clone())
            .unwrap_or_default();
        Self {
            images: Arc::new(Images::new(home, owners, [env, registries].concat())),
            mode,
            owners,
            path: own,
            cgroups: OnceLock::new(),
        }
    }

    /// Prepares a container: returns all that a sandbox needs to run it.
    pub(crate) async fn make(
        &self,
        ask: ContainerRequest<'_>,
    ) -> Result<sandbox::SandboxContainer, ContainerError> {
        if self.mode == SandboxMode::Plain {
            return Err(ContainerError::NoNamespaces);
        }
        let runtime = find_runtime(&self.path)?;
        let image = self.images.get(&ask.container.image, ask.say).await?;
        let bounds = self.plan_limits(&ask)?;
        let user =
            ask.container.user.as_deref().or(image.config.user.as_deref()).unwrap_or_default();
        let user = resolve_user(&image, user)?;
        let first = match self.owners {
            ImageOwners::From(first) => Some(first),
            ImageOwners::Itself(_) => None,
        };
        let signal = image.config.stop_signal.as_deref().unwrap_or("SIGTERM");
        let signal =
            parse_signal(signal).ok_or_else(|| ContainerError::StopSignal(signal.to_owned()))?;
        let config = bundle_config(&ask, &image, self.owners, &user)?;
        let host = ask.container.network == Network::Host;
        Ok(sandbox::SandboxContainer {
            runtime,
            config: config.to_string(),
            files: [("hosts", hosts_text(host)), ("hostname", format!("{HOST_NAME}\n"))]
                .map(|(name, text)| (name.to_owned(), text))
                .to_vec(),
            rootfs: image.rootfs,
            owner: first.map(|first| (first + user.uid, first + user.gid)),
            signal,
            bounds,
            image: Some(image.used),
        })
    }

    /// Returns the control groups for a container. Without control groups a job has no limits,
    /// which is an error only if the module asks for limits.
    fn plan_limits(&self, ask: &ContainerRequest<'_>) -> Result<CgroupLimits, ContainerError> {
        let cgroups = self.cgroups.get_or_init(|| {
            let found = Cgroups::find().inspect_err(|error| {
                tracing::warn!(
                    reason = error_chain(error),
                    "containers have no control groups: their memory and processors are not limited"
                );
            });
            found.map_err(Arc::new)
        });
        let resources = ask.container.resources;
        match cgroups {
            Ok(cgroups) => {
                Ok(cgroups.plan_limits(EventId::random().as_str(), resources, ask.processes))
            }
            Err(_) if resources.is_empty() => Ok(CgroupLimits::default()),
            Err(error) => Err(ContainerError::Resources(error.clone())),
        }
    }
}

/// Returns the path of the container runtime.
///
/// # Errors
/// [`RuntimeError::NoRuntime`], which says how to install one.
pub fn find_runtime(path: &str) -> Result<PathBuf, RuntimeError> {
    find_in_path(&format!("{path}:{SYSTEM_PATH}"), "crun").ok_or(RuntimeError::NoRuntime)
}

/// Returns the version that a runtime reports.
///
/// # Errors
/// When it cannot be started, or reports none.
pub fn runtime_version(runtime: &Path) -> Result<String, RuntimeError> {
    #[expect(clippy::disallowed_methods, reason = "asked by `ion doctor`, beside any job")]
    let output = std::process::Command::new(runtime).arg("--version").env_clear().output();
    let output =
        output.map_err(|source| RuntimeError::Start { runtime: runtime.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(RuntimeError::NoVersion(runtime.to_owned())),
    }
}

/// Returns the path of the program that fetches images from registries.
///
/// # Errors
/// [`RuntimeError::NoFetcher`], which says how to install one.
pub fn find_fetcher(path: &str) -> Result<PathBuf, RuntimeError> {
    find_in_path(path, "skopeo").ok_or(RuntimeError::NoFetcher)
}

/// Returns who owns an image's files: a range of user ids of this machine that has no other use,
/// or, where there is no such range (an ordinary user's daemon, or one in a container), the
/// daemon's own user.
fn choose_owners(mode: SandboxMode) -> ImageOwners {
    let uid = rustix::process::geteuid().as_raw();
    let covers = |line: &str| {
        let numbers: Vec<u64> =
            line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let (first, end) = (u64::from(FIRST_USER), u64::from(FIRST_USER + USERS));
        matches!(numbers[..], [from, _, count] if from <= first && end <= from + count)
    };
    let has_range = |map: &str| fs::read_to_string(map).is_ok_and(|map| map.lines().any(covers));
    match mode {
        SandboxMode::Root if has_range("/proc/self/uid_map") && has_range("/proc/self/gid_map") => {
            ImageOwners::From(FIRST_USER)
        }
        _ => ImageOwners::Itself(uid),
    }
}

/// Returns a container's `/etc/hosts`: its own names, or all names of this machine if it has this
/// machine's network.
fn hosts_text(of_machine: bool) -> String {
    let mut text = String::from(OWN_HOSTS);
    if of_machine {
        let read = fs::File::open("/etc/hosts").and_then(|file| {
            let mut text = vec![];
            file.take(HOSTS_MAX).read_to_end(&mut text).map(|_| text)
        });
        if let Ok(of_machine) = read {
            text = format!("{}\n", String::from_utf8_lossy(&of_machine).trim_end());
        }
    }
    format!("{text}127.0.0.1\t{HOST_NAME}\n")
}

/// Returns the number of a signal, written as SIGINT, INT, 2, SIGRTMIN+3 or SIGRTMAX-1.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = if let Some(more) = name.strip_prefix("RTMIN") {
        RTMIN + if more.is_empty() { 0 } else { more.strip_prefix('+')?.parse::<i32>().ok()? }
    } else if let Some(less) = name.strip_prefix("RTMAX") {
        RTMAX - if less.is_empty() { 0 } else { less.strip_prefix('-')?.parse::<i32>().ok()? }
    } else {
        return SIGNALS
            .iter()
            .position(|known| !known.is_empty() && *known == name)?
            .try_into()
            .ok();
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// Returns the program and the arguments that the image names. An entrypoint of one empty word
/// counts as missing, as in podman.
fn image_command(image: &ImageConfig) -> Vec<String> {
    let entrypoint = image.entrypoint.iter().flatten();
    let none =
        image.entrypoint.as_ref().is_some_and(|words| words.len() == 1 && words[0].is_empty());
    entrypoint.filter(|_| !none).chain(image.cmd.iter().flatten()).cloned().collect()
}

/// Returns the bundle's `config.json`, of the OCI runtime specification.
fn bundle_config(
    ask: &ContainerRequest<'_>,
    image: &Image,
    owners: ImageOwners,
    user: &User,
) -> Result<Value, ContainerError> {
    let args = if ask.argv.is_empty() { image_command(&image.config) } else { ask.argv.clone() };
    let Some(program) = args.first() else {
        return Err(ContainerError::NoProgram);
    };
    let (uid, gid) = (user.uid, user.gid);
    let first = match owners {
        ImageOwners::From(first) => Some(first),
        ImageOwners::Itself(_) => None,
    };
    let env = environment(ask, &image.config, user);
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let host = ask.container.network == Network::Host;
    let mut mounts = bundle_mounts(ask.tree, host, &writable_folders(image, first, user)?);
    if ask.has_secrets {
        // The last one: a volume of the image may be at /run.
        mounts.push(json!({
            "destination": SECRETS_FOLDER, "type": "none", "source": CONTAINER_SECRETS,
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }));
    }
    let mounted =
        mounts.iter().filter_map(|mount| Some(PathBuf::from(mount["destination"].as_str()?)));
    let files = ImageFiles { rootfs: &image.rootfs, user, first, mounted: mounted.collect() };
    let folder = image.config.working_folder();
    if let Some(why) = program_fault(&files, program, path, &folder) {
        return Err(ContainerError::Program { program: program.clone(), why });
    }
    let (uids, gids) = match owners {
        ImageOwners::From(first) => {
            let all = json!([{"containerID": 0, "hostID": first, "size": USERS}]);
            (all.clone(), all)
        }
        ImageOwners::Itself(own) => (
            json!([{"containerID": uid, "hostID": own, "size": 1}]),
            json!([{"containerID": gid, "hostID": rustix::process::getegid().as_raw(), "size": 1}]),
        ),
    };
    // An ordinary user may not set groups.
    let groups = if first.is_some() { &*user.groups } else { &[] };
    let kinds = ["pid", "ipc", "uts", "mount", "user", "cgroup", "network"];
    let namespaces = kinds.iter().filter(|kind| !(host && **kind == "network"));
    let namespaces: Vec<Value> = namespaces.map(|kind| json!({"type": kind})).collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": HOST_NAME,
        "root": {"path": ROOTFS, "readonly": true},
        "process": {
            "terminal": false,
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": args,
            "env": env,
            "cwd": folder,
            "noNewPrivileges": true,
            "capabilities": {},
        },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "uidMappings": uids,
            "gidMappings": gids,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp_filter(),
        },
    }))
}

/// Returns the image's environment, with the job's own variables over it.
fn environment(ask: &ContainerRequest<'_>, image: &ImageConfig, user: &User) -> Vec<String> {
    let ours = |name: &str| ask.env.iter().any(|(key, _)| key == name);
    let of_image = image.env.iter().flatten();
    let kept = of_image.filter(|pair| pair.split_once('=').is_some_and(|(name, _)| !ours(name)));
    let mut env: Vec<String> = kept.cloned().collect();
    env.extend(ask.env.iter().map(|(name, value)| format!("{name}={value}")));
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.push(format!("PATH={PATH}"));
    }
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    env
}

/// A folder that is a tmpfs, which counts as the container's memory. It begins with the image's
/// content of that folder.
struct TmpfsFolder {
    at: PathBuf,
    options: Vec<String>,
}

/// Returns the folders of an image that its programs may write to: `/tmp` and its volumes, parents
/// first.
fn writable_folders(
    image: &Image,
    first: Option<u32>,
    user: &User,
) -> Result<Vec<TmpfsFolder>, ContainerError> {
    let mut folders = vec![PathBuf::from("/tmp")];
    for volume in image.config.volumes.iter().flat_map(|volumes| volumes.keys()) {
        let at: PathBuf = Path::new("/").join(volume).components().collect();
        if at == Path::new("/") {
            return Err(ContainerError::WritableRoot);
        }
        if !OF_CONTAINER.iter().any(|own| at.starts_with(own)) && !folders.contains(&at) {
            folders.push(at);
        }
    }
    folders.sort();
    let folders = folders.into_iter().map(|at| {
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).to_vec();
        let opened = open_in_image(image, &at).and_then(|folder| Ok((folder.metadata()?, folder)));
        let (metadata, folder) =
            opened.map_err(|source| ContainerError::Folder { at: at.clone(), source })?;
        if at == Path::new("/tmp") {
            options.push("mode=1777".into());
        } else {
            let of_container = |id: u32, own: u32| {
                first.map_or(own, |first| id.saturating_sub(first).min(USERS - 1))
            };
            let (uid, gid) =
                (of_container(metadata.uid(), user.uid), of_container(metadata.gid(), user.gid));
            options.extend([
                format!("mode={:o}", metadata.mode() & 0o1777),
                format!("uid={uid}"),
                format!("gid={gid}"),
            ]);
        }
        if has_content(&folder) {
            options.push("tmpcopyup".into());
        }
        Ok(TmpfsFolder { at, options })
    });
    folders.collect()
}

/// Opens a folder of an image. No link can lead out of the image.
fn open_in_image(image: &Image, at: &Path) -> std::io::Result<fs::File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        fs::File::open(&image.rootfs)?,
        at,
        flags,
        Permissions::empty(),
        resolve,
    )?
    .into())
}

fn has_content(folder: &fs::File) -> bool {
    let entries = rustix::fs::Dir::read_from(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_bytes().to_vec())
        .any(|name| name != b"." && name != b"..")
}

fn bundle_mounts(tree: Option<&Path>, host_network: bool, memory: &[TmpfsFolder]) -> Vec<Value> {
    let mount = |kind: &str, at: &str, source: &str, options: &[&str]| {
        json!({
            "destination": at, "type": kind, "source": source, "options": options,
        })
    };
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
    ];
    let memory = memory.iter().map(|TmpfsFolder { at, options }| {
        json!({"destination": at, "type": "tmpfs", "source": "memory", "options": options})
    });
    mounts.extend(memory);
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let bound = ["rbind", "nosuid", "noexec", "nodev", "ro"];
    if host_network {
        // The host's /sys is bound: a new sysfs needs a network of the container's own, whose
        // devices it shows.
        mounts.push(mount("none", "/sys", "/sys", &bound));
    } else {
        mounts.push(mount("sysfs", "/sys", "sysfs", &read_only));
    }
    for name in HOST_FILES {
        let at = format!("/etc/{name}");
        // A resolver is needed only where there is a network; the other files are the container's
        // own.
        let source = match name {
            "resolv.conf" if !host_network || !Path::new(&at).exists() => continue,
            "resolv.conf" => at.clone(),
            name => format!("{BUNDLE}/{name}"),
        };
        mounts.push(mount("none", &at, &source, &bound));
    }
    let tree = tree.map(|at| at.display().to_string());
    mounts.extend(tree.map(|at| mount("none", &at, &at, &["rbind", "nosuid", "nodev"])));
    mounts
}

fn seccomp_filter() -> Value {
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
             "args": [{"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER,
                       "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EAFNOSUPPORT,
             "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EAFNOSUPPORT,
             "args": [{"index": 0, "value": AF_ALG, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C12.
    #[test]
    fn signals_are_said_by_name_or_number() {
        for (text, is) in [
            ("SIGTERM", Some(15)),
            ("int", Some(2)),
            ("9", Some(9)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("", None),
            ("SIG", None),
            ("SIGNONE", None),
            ("0", None),
            ("65", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN3", None),
        ] {
            assert_eq!(parse_signal(text), is, "{text}");
        }
    }

    /// C7.
    #[test]
    fn an_entrypoint_of_one_empty_word_is_none() {
        let run = |entrypoint: &[&str], cmd: &[&str]| {
            let words =
                |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
            image_command(&ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            })
        };
        assert_eq!(run(&[""], &["sh", "-c"]), ["sh", "-c"]);
        assert_eq!(run(&["env"], &["sh"]), ["env", "sh"]);
        assert_eq!(run(&[""], &[]), [""; 0]);
        assert_eq!(run(&["", "x"], &[]), ["", "x"]);
    }
}
