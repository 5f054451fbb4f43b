//! Tests what daemons report to a service manager, and the units in `deploy/systemd`: systemd's own
//! programs check the units, and a real systemd runs them.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on panics; it starts programs, and says what it did not try"
)]

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use crate::support::{CommandOutput, DEADLINE, Home};

const PIPELINE: &str = "modules:\n  m:\n    on: [t]\n    run: [sh, -c, 'test -z \"${NOTIFY_SOCKET-}${WATCHDOG_USEC-}\"']\n";

/// Receives the messages of a socket in a thread of its own, because the socket holds only a few
/// datagrams that nobody has received.
fn listen(socket: UnixDatagram) -> mpsc::Receiver<String> {
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(length) = socket.recv(&mut bytes) {
            if said.send(String::from_utf8(bytes[..length].to_vec()).unwrap()).is_err() {
                return;
            }
        }
    });
    heard
}

/// Each daemon reports READY=1 first, then WATCHDOG=1 again and again, and STOPPING=1 at its end.
#[test]
fn a_service_manager_hears_ready_alive_and_stopping() {
    let mut home = Home::new();
    let pipeline = home.write("pipeline.yaml", PIPELINE);
    let pipeline = pipeline.to_str().unwrap();
    for (command, words) in [
        ("up", [pipeline].as_slice()),
        ("dispatch", &[pipeline]),
        ("gateway", &["--listen", "127.0.0.1:0"]),
        ("relay", &[]),
    ] {
        // Each daemon has a socket of its own, because it sends WATCHDOG=1 until its end, also
        // after it has begun to stop.
        let path = home.path().join(format!("notify-{command}"));
        let heard = listen(UnixDatagram::bind(&path).unwrap());
        let hears = || heard.recv_timeout(DEADLINE).unwrap();
        home.env = vec![
            ("NOTIFY_SOCKET".into(), path.to_str().unwrap().into()),
            ("WATCHDOG_USEC".into(), "400000".into()),
        ];
        let up = home.start(command, words);
        assert_eq!(hears(), "READY=1", "{command}");
        for _ in 0..3 {
            assert_eq!(hears(), "WATCHDOG=1", "{command}");
        }
        if command == "dispatch" {
            home.run(["event", "create", "t", "--wait"]).well();
        }
        assert_eq!(up.stop(), Some(0), "{command}");
        let mut last = hears();
        while last == "WATCHDOG=1" {
            last = hears();
        }
        assert_eq!(last, "STOPPING=1", "{command}");
    }
}

/// Where systemd cannot make a credential the file of the daemon's user, it gives the file mode
/// 0440. The gateway accepts a file of such a mode only in `CREDENTIALS_DIRECTORY`.
#[test]
fn tokens_that_systemd_hands_over_may_have_any_mode_and_no_others() {
    let mut home = Home::new();
    let tokens = home.write("credentials/tokens", "ci all 0123456789abcdef0123456789abcdef\n");
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o440)).unwrap();
    home.env = vec![("ION_GATEWAY_TOKENS_FILE".into(), tokens.to_str().unwrap().into())];
    let listen = ["--listen", "127.0.0.1:0"];
    let refused = home.run(["gateway"].iter().chain(&listen)).failed();
    assert!(refused.stderr.contains("tokens"), "{refused:#?}");
    home.env
        .push(("CREDENTIALS_DIRECTORY".into(), tokens.parent().unwrap().to_str().unwrap().into()));
    let gateway = home.start("gateway", &listen);
    assert_eq!(gateway.stop(), Some(0));
}

/// systemd-analyze finds no mistake in a unit, and rates its exposure no higher than the limit
/// here, so a change that confines a daemon less fails this test.
#[test]
fn the_units_are_what_systemd_understands_and_confine_the_daemons() {
    let home = Home::new();
    for (unit, exposure_max) in [("ion-dispatch@.service", 38), ("ion-gateway.service", 14)] {
        let text = std::fs::read_to_string(Path::new("deploy/systemd").join(unit)).unwrap();
        // The tests' program is not where the unit expects it.
        let text = text.replace("/usr/local/bin/ion ", &format!("{} ", crate::support::ION));
        let unit = home.write(unit, text);
        let analyze = |words: &[&str]| {
            let mut command = Command::new("systemd-analyze");
            CommandOutput::of(command.args(words).arg("--no-pager").arg(&unit).output().unwrap())
        };
        let verified = analyze(&["verify"]).well();
        assert_eq!(verified.stderr, "", "{unit:?}");
        let security =
            analyze(&["security", "--offline=true", &format!("--threshold={exposure_max}")]);
        println!("{}", security.stdout.lines().last().unwrap_or_default());
        assert_eq!(security.code, Some(0), "{security:#?}");
    }
}

/// A pipeline whose job needs everything that the units leave to jobs: namespaces, a mount, and
/// files of any mode.
const CONFINED: &str = "modules:\n  m:\n    on: [t]\n    emits: [x]\n    retries: 0\n    run: [sh, -ec, 'test $ION_DIR = /ion; \
    test $(id -un) = ion; echo > $ION_DIR/out/data/f; chmod 2755 $ION_DIR/out/data/f; \
    echo \"{\\\"eventType\\\": \\\"x\\\", \\\"files\\\": [\\\"f\\\"]}\" > $ION_DIR/out/events/x']\n";

/// A script that starts both units, runs one job as the user `ion`, stops the units and prints
/// their log. It exits with 3 if a unit does not start, and also fails if the job fails or the
/// dispatcher does not end well.
const STARTS_AND_WORKS: &str = "systemctl start ion-dispatch@words ion-gateway || { cat /run/log; exit 3; }; cd /var/lib/ion; \
    setpriv --reuid=ion --regid=ion --clear-groups env ION_HOME=/var/lib/ion ion event create t --wait || code=$?; \
    systemctl stop 'ion-*'; test $(systemctl show --property Result --value ion-dispatch@words) = success; cat /run/log; exit ${code-0}";

/// With the units as they are, jobs run, the gateway reads its credential, and both daemons become
/// ready and stop when systemd asks them to. With any one of four directives that the dispatcher's
/// unit leaves out on purpose, no job runs.
#[test]
fn under_a_real_systemd_jobs_run_as_tightly_as_they_can() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: only root can start a systemd");
        return;
    }
    let home = Home::new();
    home.write("etc/words.yaml", CONFINED);
    home.write("etc/tokens", "ci all 0123456789abcdef0123456789abcdef\n");
    let manager = |script: &str| {
        let mut command = Command::new("tests/machine/systemd/manager.sh");
        CommandOutput::of(
            command
                .arg(crate::support::ION)
                .arg(home.path().join("etc"))
                .arg(script)
                .output()
                .unwrap(),
        )
    };
    let ran = manager(STARTS_AND_WORKS).well();
    for said in ["succeeded m", "ion: ready: m", "requests under way are answered"] {
        assert!(ran.stdout.contains(said), "{ran:#?}");
    }
    for (directive, code, said) in [
        // With this directive, the dispatcher does not even start.
        ("PrivateDevices=yes", 3, "jobs cannot have their files here: /dev/fuse"),
        ("RestrictNamespaces=yes", 1, "dead m"),
        ("RestrictSUIDSGID=yes", 1, "dead m"),
        ("SystemCallFilter=~@mount", 1, "dead m"),
    ] {
        let drop_in = format!(
            "printf '[Service]\n{directive}\n' > /run/units/ion-dispatch@.service.d/more.conf"
        );
        let ran = manager(&format!("{drop_in}; systemctl daemon-reload; {STARTS_AND_WORKS}"));
        assert!(ran.code == Some(code) && ran.stdout.contains(said), "{directive}: {ran:#?}");
    }
}

#[test]
fn a_manager_whose_socket_is_no_file_is_told_and_one_that_is_gone_is_done_without() {
    let mut home = Home::new();
    let name = format!("ion-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut said = [0; 256];
    home.env = vec![("NOTIFY_SOCKET".into(), format!("@{name}"))];
    let relay = home.start("relay", &[]);
    let length = socket.recv(&mut said).unwrap();
    assert_eq!(said[..length], *b"READY=1");
    drop(socket);
    assert_eq!(relay.stop(), Some(0));
}
