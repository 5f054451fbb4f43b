//! A test of a module that swaps a folder for a symbolic link while the daemon acts on the folder's
//! files. The daemon never reaches anything outside of the job's tree.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::support::Home;

/// The program of a module. Its processes act on the files of a folder in every way that there is,
/// while one process swaps the folder, again and again, for a link to another folder of the
/// machine.
const SWAPS: &str = r#"
import os, sys, time
os.chdir("/ion/out/data")
victim, seconds = sys.argv[1], float(sys.argv[2])
NAMES = ("f", "g")
os.mkdir("real")
for n in NAMES: open("real/" + n, "w").write("mine")
os.symlink(victim, "link")
os.rename("real", "d")
got = []
def swap():
    while time.monotonic() < until:
        os.rename("d", "real"); os.rename("link", "d")
        os.rename("d", "link"); os.rename("real", "d")
def through(fd, act):
    try: act(fd)
    finally: os.close(fd)
def spied(read):
    def act(path):
        value = read(path)
        if b"secret" in value: got.append(value)
    return act
# These act on a descriptor. The kernel has looked the name up before, so only the daemon has to
# find the file again.
by_fd = [
    lambda fd: spied(lambda fd: os.getxattr(fd, "user.k"))(fd),
    lambda fd: os.setxattr(fd, "user.mine", b"1"),
    lambda fd: os.listxattr(fd),
    lambda fd: os.removexattr(fd, "user.k"),
    lambda fd: os.fchmod(fd, 0o666),
    lambda fd: os.fchown(fd, 65534, 65534),
    lambda fd: os.utime(fd, (1, 1)),
    lambda fd: os.ftruncate(fd, 3),
    lambda fd: os.fstat(fd),
    lambda fd: spied(lambda fd: os.pread(fd, 100, 0))(fd),
    lambda fd: os.pwrite(fd, b"mine", 0),
    lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC)),
    lambda fd: os.link(f"/proc/self/fd/{fd}", f"l{fd}", follow_symlinks=True) or os.unlink(f"l{fd}"),
]
# These act on names below a descriptor of the folder. The daemon looks the names up.
def names(folder):
    fd = os.open("new", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=folder)
    os.close(fd)
    os.rename("new", "newer", src_dir_fd=folder, dst_dir_fd=folder)
    os.mkdir("sub", dir_fd=folder); os.rmdir("sub", dir_fd=folder)
    os.symlink("x", "s", dir_fd=folder); os.readlink("s", dir_fd=folder); os.unlink("s", dir_fd=folder)
    os.mkfifo("p", dir_fd=folder); os.unlink("p", dir_fd=folder)
    os.link("newer", "h", src_dir_fd=folder, dst_dir_fd=folder); os.unlink("h", dir_fd=folder)
    os.unlink("newer", dir_fd=folder)
    [os.stat(n, dir_fd=folder, follow_symlinks=False) for n in os.listdir(folder)]
def on_files(acts):
    folder = os.open("d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    n = 0
    while time.monotonic() < until:
        try: through(os.open(NAMES[n % 2], os.O_RDWR, dir_fd=folder), acts[n % len(acts)])
        except OSError: pass
        n += 1
def in_folder():
    folder = os.open("d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    while time.monotonic() < until:
        try: names(folder)
        except OSError: pass
until = time.monotonic() + seconds
def started(work, *args):
    pid = os.fork()
    if pid == 0:
        work(*args)
        os._exit(1 if got else 0)
    return pid
# The workers are processes, because Python's threads would take turns.
workers = [started(on_files, by_fd[:8] if i < 8 else by_fd[i:] + by_fd[:i]) for i in range(12)]
workers += [started(in_folder), started(swap)]
assert all(os.waitpid(pid, 0)[1] == 0 for pid in workers), "no process reads a file of the other folder"
"#;

#[test]
fn a_folder_that_is_swapped_for_a_link_leads_no_act_out_of_the_tree() {
    let home = Home::new();
    let victim = home.path().join("victim");
    fs::create_dir(&victim).unwrap();
    for name in ["f", "g"] {
        let file = victim.join(name);
        fs::write(&file, "a secret").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        rustix::fs::setxattr(&file, "user.k", b"a secret", rustix::fs::XattrFlags::empty())
            .unwrap();
    }
    let picture = || {
        let file = |name: &str| {
            let file = victim.join(name);
            let about = fs::metadata(&file).unwrap();
            let mut names = [0; 4096];
            let length = rustix::fs::listxattr(&file, &mut names).unwrap();
            let attributes = String::from_utf8_lossy(&names[..length]).into_owned();
            let changed = (about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec());
            let who = (about.mode(), about.uid(), about.gid(), about.nlink());
            (fs::read_to_string(file).unwrap(), who, changed, attributes)
        };
        let mut names: Vec<_> =
            fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        (file("f"), file("g"), names)
    };
    let before = picture();
    home.write("module.py", SWAPS);
    let module = home.path().join("module.py");
    for delay in ["beneath=0", "beneath=400"] {
        home.run_with(
            &[("ION_DELAYPOINTS", delay)],
            ["run", "--", "python3", module.to_str().unwrap(), victim.to_str().unwrap(), "3"],
        )
        .well();
        assert_eq!(picture(), before, "{delay}");
    }
}
