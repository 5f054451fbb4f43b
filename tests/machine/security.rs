//! Tests what a module can reach besides its tree, for each way in which modules run.
//! docs/security.md and docs/limits.md say which statement each test shows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::images::{Entry, Image};
use crate::support::{CommandOutput, Home, wait_for};
use serde_json::Value;

/// Shell functions: `refused` fails if its command succeeds, `writes` writes to a file, and
/// `processes` counts the processes that are visible.
const PRELUDE: &str = "refused() { if \"$@\" 2>/dev/null; then echo \"not refused: $*\"; exit 9; fi; }; \
    writes() { echo 1 > \"$1\"; }; \
    processes() { ls /proc | grep -c '^[0-9][0-9]*$'; }; ";

/// The capabilities of a module of root, as `/proc` shows them. docs/security.md lists them.
const FEW: &str = "00000000000405fb";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a script as a job, as the user that runs this test.
fn job(home: &Home, flags: &[&str], script: &str) -> CommandOutput {
    let script = format!("{PRELUDE}{script}");
    home.run([&["run"], flags, &["--", "sh", "-ec", &script]].concat())
}

/// Runs a shell script as an ordinary user in the home's folder. If root runs this test, the script
/// runs as `nobody`: the folder is bound to a path that `nobody` may enter, and every user may open
/// `/dev/fuse`, as on ordinary distributions. `$ION` is the program, and `$ION_HOME` its home.
fn as_user(home: &Home, script: &str) -> CommandOutput {
    as_user_after(home, "chown -R 65534 .", script)
}

/// Runs a shell script like [`as_user`]. If root runs this test, root runs the command `before`
/// first.
fn as_user_after(home: &Home, before: &str, script: &str) -> CommandOutput {
    let ion = home.path().join("ion");
    if !ion.exists() {
        fs::copy(crate::support::ION, &ion).unwrap();
    }
    let script = format!("export HOME=$PWD ION_HOME=$PWD/state ION=$PWD/ion; {script}");
    let mut shell = Command::new("sh");
    if is_root() {
        let enter = format!(
            "set -e; mount --rbind . /mnt; cd /mnt; test -e fuse || mknod fuse c 10 229; chmod 666 fuse; \
             mount --bind fuse /dev/fuse; {before}; exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$SCRIPT\""
        );
        shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", &enter]);
    } else {
        shell.args(["-c", &script]);
    }
    let output =
        shell.env("SCRIPT", script).env_remove("ION_LOG").current_dir(home.path()).output();
    CommandOutput::of(output.unwrap())
}

// ---- programs of root ----

#[test]
fn a_program_of_root_keeps_few_capabilities_and_cannot_change_the_machine() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let script = format!(
        "grep -q 'CapEff:.{FEW}' /proc/self/status; grep -q 'CapBnd:.{FEW}' /proc/self/status; \
         test $(processes) -lt 8; \
         refused umount -l /proc; refused mount -t tmpfs x /tmp; refused mount --bind /etc /tmp; refused nsenter -t 1 -m true; \
         for file in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/mm/ksm/run /sys/fs/cgroup/memory/cgroup.procs; do \
           test ! -e $file || refused writes $file; done; \
         test -z \"$(find /dev -type b)\"; refused mknod /tmp/ion-disk b 7 0; test ! -s /proc/kcore; \
         test -c /dev/null; echo x > /dev/null; head -c 1 /dev/urandom > /ion/out/data/f; \
         echo x > /dev/shm/x; test \"$(ls /dev/shm)\" = x; test -c /dev/ptmx; \
         chown 1:1 /ion/out/data/f; setpriv --reuid=65534 --clear-groups id -u | grep -q 65534"
    );
    job(&home, &[], &script).well();
}

#[test]
fn privileged_keeps_the_capabilities_and_not_the_machines_processes() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find(|line| line.starts_with("CapEff:")).unwrap();
    // When the job unmounts its own /proc, the machine's /proc does not appear.
    let script = format!(
        "grep -q '{all}' /proc/self/status; mount -t tmpfs x /mnt; test $(processes) -lt 8; \
         umount -l /proc; test -z \"$(ls /proc)\"; test -e /dev/kmsg"
    );
    job(&home, &["--privileged"], &script).well();
    let refused = job(&home, &[], "mount -t tmpfs x /mnt").failed();
    assert!(refused.stderr.contains("run: exit status"), "{refused:#?}");
}

// ---- Ion's own state ----

/// A script that checks the paths of its daemon's state, as a job sees them: they are empty, and
/// the job can neither change nor unmount them.
const NO_STATE: &str = "for place in $PLACES; do test -z \"$(cat $place/* $place 2>/dev/null)\"; test -z \"$(ls -A $place/)\"; \
    refused writes $place/x; refused mv $place $place.old; refused rmdir $place; refused umount $place; done; \
    python3 uncover.py $PLACES; test -x beside; ";

/// A program that tries to uncover paths with all capabilities of a new user namespace. The kernel
/// locks such mounts together, and returns EINVAL.
const UNCOVER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS, MNT_DETACH, MS_BIND, EINVAL = 0x10000000, 0x20000, 2, 4096, 22
assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, ctypes.get_errno()
for place in sys.argv[1:]:
    assert libc.umount2(place.encode(), MNT_DETACH) == -1 and ctypes.get_errno() == EINVAL, ctypes.get_errno()
    above = os.path.dirname(place).encode()
    assert libc.mount(above, b'/srv', None, MS_BIND, None) == -1 and ctypes.get_errno() == EINVAL, ctypes.get_errno()
";

/// Creates a folder with a secret for an event, and with programs beside the state.
fn home_with_state() -> Home {
    let home = Home::new();
    home.program("beside", "#!/bin/sh\n");
    home.write("uncover.py", UNCOVER);
    home.write("secret", "hunter2");
    home
}

#[test]
fn no_program_sees_the_home_it_runs_from() {
    let home = home_with_state();
    // The event puts something into the state.
    home.run(["event", "create", "x", "--file", "secret"]).well();
    let script = format!("PLACES={}; {NO_STATE}", home.state().display());
    job(&home, &[], &script).well();
    assert!(home.state().join("ion.db").metadata().unwrap().len() > 0);
    // This home belongs to an ordinary user, and its modes would let the job's user read it all.
    let script = format!("{PRELUDE} PLACES=$PWD/state; {NO_STATE}");
    let home = home_with_state();
    let words = "set -e; $ION event create x --file secret; test -s state/ion.db; test -n \"$(ls state/blobs)\"; \
        $ION run -- sh -ec \"$JOB\"; $ION check --deep";
    let words = format!("export JOB='{}'; {words}", script.replace('\'', "'\\''"));
    as_user(&home, &words).well();
}

#[test]
fn no_program_sees_embedded_stores_that_lie_elsewhere() {
    let mut home = home_with_state();
    let (blobs, database) = (home.path().join("b/blobs"), home.path().join("d/x.db"));
    home.env = vec![
        ("ION_BLOBS".into(), format!("file://{}", blobs.display())),
        ("ION_DOCUMENTS".into(), format!("sqlite://{}", database.display())),
        ("ION_BUS".into(), format!("sqlite://{}", database.display())),
    ];
    home.run(["event", "create", "x", "--file", "secret"]).well();
    let script = format!(
        "PLACES={}; {NO_STATE} for file in {at}*; do test ! -s $file; refused writes $file; refused rm $file; done; \
         test -e {at} && test -e {at}-wal",
        blobs.display(),
        at = database.display(),
    );
    job(&home, &[], &script).well();
    assert!(database.metadata().unwrap().len() > 0);
    assert!(blobs.read_dir().unwrap().next().is_some());
    home.run(["check", "--deep"]).well();
}

#[test]
fn a_program_that_lies_in_the_home_is_there_and_the_state_beside_it_is_not() {
    let home = Home::new();
    let script = "#!/bin/sh\nset -e\ntest -e data.txt\ntest ! -e ion.db\ntest ! -e jobs\ntest -z \"$(ls ../state/blobs ../../state/blobs 2>/dev/null)\"\n\
        echo '{\"eventType\":\"seen\"}' > /ion/out/events/e\n";
    for folder in ["state", "state/pipelines/mine"] {
        home.program(&format!("{folder}/look"), script);
        home.write(&format!("{folder}/data.txt"), "x");
        let file = home.write(
            &format!("{folder}/pipeline.yaml"),
            "modules:\n  look: {on: [go], emits: [seen], run: [./look]}\n",
        );
        let ran = home.run(["--json", "run", "look", "--pipeline", file.to_str().unwrap()]).well();
        assert_eq!(ran.types(), ["seen"], "{ran:#?}");
    }
}

#[test]
fn a_home_that_was_put_elsewhere_under_a_daemon_is_not_shown() {
    let home = Home::new();
    home.write("go", "#!/bin/sh\n");
    let file =
        home.write("pipeline.yaml", "modules:\n  look: {on: [go], run: [ls, state], retries: 0}\n");
    let up = home.up(&file);
    // A job that may write to the folder above could do this. The daemon goes on with the files
    // that it has open.
    let away = home.path().join("away");
    fs::rename(home.state(), &away).unwrap();
    fs::create_dir(home.state()).unwrap();
    let run = |words: &[&str]| {
        CommandOutput::of(home.ion().env("ION_HOME", &away).args(words).output().unwrap())
    };
    run(&["event", "create", "go"]).well();
    let mut jobs = Value::Null;
    wait_for("the job to end", || {
        jobs = run(&["--json", "job", "list"]).well().documents().into();
        ["dead", "succeeded"].contains(&jobs[0]["state"].as_str().unwrap_or_default())
    });
    assert_eq!(jobs[0]["state"], "dead", "{jobs:#}");
    let reason = jobs[0]["attempts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("another folder than when the daemon started"), "{reason}");
    up.kill();
}

// ---- links of a chain ----

#[test]
fn a_link_sees_its_own_processes_and_no_state() {
    let mut home = Home::new();
    let script = format!(
        "{PRELUDE}cat > /dev/null; test $(processes) -lt 8; test -z \"$(ls -A {})\"; refused umount -l /proc; \
         refused grep -l hunter2 /proc/*/environ; grep Cap /proc/self/status",
        home.state().display()
    );
    home.program("link", &format!("#!/bin/sh\nset -e\n{script}\n"));
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  link: {on: [go], emits: [done], run: [./link], stdio: true, retries: 0}\n",
    );
    home.env.push(("ION_TEST_PASSWORD".into(), "hunter2".into()));
    let up = home.up(&file);
    home.write("f", "x");
    home.run(["event", "create", "go", "--file", "f", "--wait"]).well();
    let events = home.trace();
    let made = events.iter().find(|event| event["type"] == "done").unwrap();
    let key = made["files"][0]["key"].as_str().unwrap();
    let said = fs::read_to_string(home.state().join("blobs").join(key)).unwrap();
    let few = if is_root() { FEW } else { "0000000000000000" };
    assert!(said.contains(&format!("CapEff:\t{few}")), "{said}");
    assert_eq!(up.stop(), Some(0));
}

// ---- other users of the machine ----

#[test]
fn another_user_of_the_machine_reads_nothing() {
    if !is_root() {
        // Only root can become another user.
        return;
    }
    let home = Home::new();
    home.write("secret", "hunter2");
    // The home is open to all users, as the homes of older versions are.
    fs::create_dir(home.state()).unwrap();
    fs::set_permissions(home.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let said = home.run(["event", "create", "x", "--file", "secret"]).well();
    assert!(said.stderr.contains("could enter the home"), "{said:#?}");
    let again = home.run(["event", "create", "x", "--file", "secret"]).well();
    assert!(!again.stderr.contains("could enter the home"), "{again:#?}");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.state()), 0o700);
    assert_eq!(mode(&home.state().join("ion.db")), 0o600);
    assert_eq!(mode(&home.state().join("blobs")), 0o700);
    let file = home.write(
        "pipeline.yaml",
        "modules:\n  waits: {on: [wait], run: [sh, -c, 'echo begun; umask 0; echo hunter2 > /ion/out/data/f; exec sleep 600']}\n",
    );
    let up = home.up(&file);
    home.run(["event", "create", "wait"]).well();
    wait_for("the job to write", || {
        home.jobs().iter().any(|job| job["state"] == "running")
            && Command::new("grep")
                .args(["-rqs", "begun"])
                .arg(home.state().join("jobs"))
                .status()
                .unwrap()
                .success()
    });
    let tree = home.path().join("tree");
    let nobody = |words: &str| as_user_after(&home, "chmod 755 .", words);
    {
        let _mount = Mounted::with(&home, &tree, &[]);
        let words = "ls state; cat state/ion.db state/blobs/*/*; grep -r hunter2 state; ls tree; cat tree/correlations/*";
        let ran = nobody(words);
        assert!(ran.stdout.is_empty(), "{ran:#?}");
        for place in ["state", "tree"] {
            assert!(
                ran.stderr.lines().any(|line| line.contains(place) && line.contains("denied")),
                "{ran:#?}"
            );
        }
    }
    let _mount = Mounted::with(&home, &tree, &["--allow-other"]);
    let ran = nobody("ls tree").well();
    assert!(ran.stdout.contains("correlations"), "{ran:#?}");
    assert_eq!(up.stop(), Some(0));
}

/// A running `ion mount`, which is stopped on drop.
struct Mounted(std::process::Child);

impl Mounted {
    fn with(home: &Home, at: &Path, flags: &[&str]) -> Self {
        let child = home.ion().arg("mount").arg(at).args(flags).spawn().unwrap();
        wait_for("the mount", || at.join("correlations").exists());
        Self(child)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::support::signal(self.0.id(), "TERM");
        self.0.wait().unwrap();
    }
}

// ---- the daemon itself ----

/// Without namespaces, a module of the daemon's user sees the daemon's process, but not its
/// environment, memory or descriptors.
#[test]
fn without_namespaces_the_daemon_is_seen_and_closed() {
    // The parent of this shell is the job's first process. The parent of the first process is the
    // process that forks jobs for the daemon, and the parent of that process is the daemon.
    let look = "ppid() { cut -d' ' -f4 /proc/$1/stat; }; d=/proc/$(ppid $(ppid $PPID)); grep -q no-namespaces $d/cmdline; \
        refused head -c 1 $d/environ; refused readlink $d/fd/1; refused head -c 1 $d/mem; refused ls $d/root/; refused cat $d/maps; \
        echo seen $d";
    let home = Home::new();
    let script = format!("{PRELUDE}{look}").replace('\'', "'\\''");
    let ran = as_user(
        &home,
        &format!("export ION_TEST_PASSWORD=hunter2; $ION --no-namespaces run -- sh -ec '{script}'"),
    );
    // Without namespaces, an ordinary user cannot have a tree where fusermount3 is missing. Root
    // does not need it.
    if !ran.stderr.contains("fusermount") {
        let ran = ran.well();
        assert!(ran.stderr.contains("seen /proc/"), "{ran:#?}");
    }
    if is_root() {
        let mut home = home;
        home.env.push(("ION_TEST_PASSWORD".into(), "hunter2".into()));
        let ran = job(&home, &["--no-namespaces"], look);
        assert!(ran.well().stderr.contains("seen /proc/"));
    }
}

#[test]
fn credentials_do_not_stay_in_the_environment() {
    if !is_root() {
        // Only root may read the environment of a daemon.
        return;
    }
    let mut home = Home::new();
    let secrets = [
        ("ION_GATEWAY_TOKENS", "me events:write hunter2hunter2hunter2"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ];
    home.env = secrets.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let file = home.write("pipeline.yaml", "modules:\n  m: {on: [x], run: [\"true\"]}\n");
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file);
    let environment = |pid: u32| fs::read(format!("/proc/{pid}/environ"));
    let below = crate::support::below(up.pid()).into_iter();
    // A process that only tries what this machine can do may have ended by now.
    let all =
        below.filter_map(|(pid, _)| environment(pid).ok()).chain([environment(up.pid()).unwrap()]);
    for environment in all {
        let text = String::from_utf8_lossy(&environment);
        assert!(!text.contains("hunter2"), "{text}");
    }
    // The gateway still has its tokens.
    let address = crate::support::chains::address(&up);
    let answer = crate::support::http::request(&address, "POST", "/events/x", &[], b"");
    assert_eq!(answer.status, 401);
    let bearer = ("Authorization", "Bearer hunter2hunter2hunter2");
    let answer = crate::support::http::request(&address, "POST", "/events/x", &[bearer], b"");
    assert!(answer.status < 300, "{}", answer.status);
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn a_module_has_no_descriptor_of_whoever_started_its_daemon() {
    let home = Home::new();
    home.write("secret", "hunter2");
    for flags in ["", "--no-namespaces"] {
        let script = format!(
            "exec 7< secret 9<> secret; exec {} {flags} run -- sh -c 'ls /proc/self/fd; cat <&7; cat /proc/self/fd/9'",
            crate::support::ION
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("ION_HOME", home.state())
            .current_dir(home.path())
            .output();
        let ran = CommandOutput::of(output.unwrap()).failed();
        assert!(!ran.stderr.contains("hunter2"), "{ran:#?}");
        // The module has its three streams, and `ls` has one more for the folder that it lists.
        let descriptors: Vec<_> =
            ran.stderr.lines().filter_map(|line| Some(line.split_once("run | ")?.1)).collect();
        assert_eq!(&descriptors[..4], ["0", "1", "2", "3"], "{ran:#?}");
        assert!(descriptors[4].parse::<u32>().is_err(), "{ran:#?}");
    }
}

// ---- how many ----

#[test]
fn as_many_processes_as_were_said_and_not_one_more() {
    let home = Home::new();
    // The program reaches the limit twice, and uses up all process numbers in between: when the
    // kernel begins again, it leaves out the lowest numbers.
    let program = "
import os, signal, time
def fill():
    children = []
    try:
        while len(children) < 1000:
            pid = os.fork()
            if pid == 0:
                while True: time.sleep(600)
            children.append(pid)
    except OSError as e:
        assert e.errno == 11, e
    for pid in children: os.kill(pid, signal.SIGKILL)
    for pid in children: os.waitpid(pid, 0)
    return len(children)
first = fill()
for n in range(600):
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
print('forks', first, fill(), flush=True)
";
    home.write("forks.py", program);
    let words = "--job-limit processes=200 run -- python3 forks.py";
    let ran = as_user(&home, &format!("$ION {words}")).well();
    // The module's own process counts too, so it can have 199 children.
    assert!(ran.stderr.contains("forks 199 199"), "{ran:#?}");
    if is_root() {
        let ran = home.run(words.split(' ')).well();
        assert!(ran.stderr.contains("forks 199 199"), "{ran:#?}");
    }
}

// ---- containers ----

/// Returns a program that asks for a socket of a family, and exits with the errno. It uses the call
/// `socket`, or the call `socketcall` of programs of 32 bits.
#[cfg(target_arch = "x86_64")]
fn asks_for_a_socket(family: u8, of_32_bits: bool) -> Vec<u8> {
    const AT: u32 = 0x0040_0000;
    const HEADERS: u32 = 120;
    let call: &[u8] = if of_32_bits {
        // socketcall(SYS_SOCKET, arguments); the arguments follow the code.
        &[0xb8, 102, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xcd, 0x80]
    } else {
        // socket(family, SOCK_STREAM, 0)
        &[0xb8, 41, 0, 0, 0, 0xbf, family, 0, 0, 0, 0xbe, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x05]
    };
    // exit(-result)
    let exit: &[u8] = &[0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let mut code = [call, exit].concat();
    if of_32_bits {
        let arguments = AT + HEADERS + u32::try_from(code.len()).unwrap();
        code[11..15].copy_from_slice(&arguments.to_le_bytes());
        code.extend([u32::from(family), 1, 0].iter().flat_map(|word| word.to_le_bytes()));
    }
    let size = u64::from(HEADERS) + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend(u64::from(AT + HEADERS).to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    let (at, page) = (u64::from(AT), 4096);
    file.extend([0, at, at, size, size, page].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(code);
    file
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_container_has_no_sockets_that_no_namespace_holds() {
    const EAFNOSUPPORT: u8 = 97;
    const ENOSYS: u8 = 38;
    let home = Home::new();
    let (unix, kernel, machine) = (1, 38, 40);
    let programs = [
        ("unix", asks_for_a_socket(unix, false)),
        ("kernel", asks_for_a_socket(kernel, false)),
        ("machine", asks_for_a_socket(machine, false)),
        ("machine32", asks_for_a_socket(machine, true)),
    ];
    let files: Vec<_> = programs.iter().map(|(name, program)| Entry::File(name, program)).collect();
    // A program that gets a socket exits with its negative descriptor, which the shell shows as 256
    // less a small number, for instance 253.
    let script = "code() { \"$1\"; echo $1 $?; test $? = 0; }; code /unix; code /kernel; code /machine; code /machine32";
    Image::of(script).with(&files).write(&home, "image");
    for network in ["none", "host"] {
        let file = home.write(
            "pipeline.yaml",
            format!("modules:\n  m: {{on: [x], image: 'oci:image', network: {network}}}\n"),
        );
        let ran = home.run(["run", "m", "--pipeline", file.to_str().unwrap()]).well();
        assert!(ran.stderr.contains("| /unix 25"), "{ran:#?}");
        assert!(ran.stderr.contains(&format!("| /kernel {EAFNOSUPPORT}")), "{ran:#?}");
        assert!(ran.stderr.contains(&format!("| /machine {EAFNOSUPPORT}")), "{ran:#?}");
        assert!(ran.stderr.contains(&format!("| /machine32 {ENOSYS}")), "{ran:#?}");
    }
}

/// A container that shares the machine's network also reaches the machine's loopback.
#[test]
fn a_gateway_that_containers_reach_needs_tokens() {
    let home = Home::new();
    Image::of("true").write(&home, "image");
    let file = |network: &str| {
        let line = format!("  m: {{on: [x], image: 'oci:image', network: {network}}}\n");
        home.write(&format!("{network}.yaml"), format!("modules:\n{line}"))
    };
    let refused =
        home.run(["up", "--gateway", "127.0.0.1:0", file("host").to_str().unwrap()]).failed();
    assert!(
        refused.stderr.contains("\"m\"") && refused.stderr.contains("ION_GATEWAY_TOKENS"),
        "{refused:#?}"
    );
    let up = home.up_with(&["--gateway", "127.0.0.1:0"], &file("none"));
    assert_eq!(up.stop(), Some(0));
    let tokens = home.write("tokens", "me events:write 0123456789abcdef0123\n");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let with_tokens = ["--gateway", "127.0.0.1:0", "--gateway-tokens", tokens.to_str().unwrap()];
    let up = home.up_with(&with_tokens, &file("host"));
    assert_eq!(up.stop(), Some(0));
}
