//! Compares ordinary programs that use many names and many small writes, below `out/data` and in a
//! plain folder of the same disk. Also counts the requests that each program makes of the daemon:
//! these counts do not depend on how busy the machine is.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{middle, read};
use super::support::mount::{Blobs, Mount, Passthrough};

const NAMES: usize = 20_000;
const PACKED: usize = 2_000;
const ROUNDS: usize = 3;

/// The kinds of requests that a program waits for.
const WAITED_FOR: [&str; 13] = [
    "lookup",
    "getattr",
    "setattr",
    "mkdir",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "opendir",
    "readdir",
    "readdirplus",
    "getxattr",
];

/// One row: the program, the number of its files, the goal for the ratio, and the rounds.
struct Program<'bench> {
    name: &'bench str,
    files: usize,
    goal: &'bench str,
    rounds: usize,
    /// Whether the kernel's cache of names is dropped before each round.
    forgets: bool,
    run: &'bench dyn Fn(&Path),
}

pub(super) fn programs() {
    let mount = Mount::new(Passthrough::Allowed, Blobs::Files, &[]);
    let native = mount.home.path().join("native");
    fs::create_dir(&native).unwrap();
    let folders = [mount.data(), native];
    for folder in &folders {
        fs::create_dir(folder.join("names")).unwrap();
        (0..NAMES).for_each(|n| fs::write(folder.join(format!("names/file-{n}")), "x").unwrap());
        fs::create_dir(folder.join("packed")).unwrap();
        (0..PACKED)
            .for_each(|n| fs::write(folder.join(format!("packed/f{n}")), [1; 2000]).unwrap());
        shell(folder, "tar cf packed.tar packed");
        fs::write(folder.join("large"), vec![7; 500 << 20]).unwrap();
    }
    let small = |folder: &Path| {
        fs::create_dir(folder.join("small")).unwrap();
        (0..PACKED).for_each(|n| fs::write(folder.join(format!("small/f{n}")), [1; 100]).unwrap());
    };
    let pieces = |folder: &Path| {
        let mut file = File::create(folder.join("pieces")).unwrap();
        (0..PACKED * 10).for_each(|_| file.write_all(&[2; 512]).unwrap());
    };
    let find = |folder: &Path| shell(folder, "find names -size +0 | wc -l");
    let list = |folder: &Path| shell(folder, "ls -l names");
    let again =
        |name, files, goal, run| Program { name, files, goal, rounds: ROUNDS, forgets: false, run };
    let first = |name, files, goal, run| Program { forgets: true, ..again(name, files, goal, run) };
    let programs = [
        again("read 500 MB of out/data again", 1, "<= 1.5", &|folder| {
            read(&folder.join("large"));
        }),
        first("find -size of 20,000, first", NAMES, "<= 3", &find),
        again("find -size of 20,000, again", NAMES, "<= 3", &find),
        first("ls -l of 20,000, first", NAMES, "<= 3", &list),
        again("ls -l of 20,000, again", NAMES, "<= 3", &list),
        again("ls -f of 20,000, again", NAMES, "", &|folder| shell(folder, "ls -f names")),
        again("2,000 files of 100 B", PACKED, "", &small),
        again("20,000 writes of 512 B", PACKED * 10, "", &pieces),
        again("untar 2,000 files of 2 kB", PACKED, "", &|folder| {
            shell(folder, "tar xf packed.tar -C out")
        }),
        again("cp -a of 2,000 files of 2 kB", PACKED, "", &|folder| {
            shell(folder, "cp -a packed out/copy")
        }),
    ];
    for program in &programs {
        row(&mount, &folders, program);
    }
}

fn row(mount: &Mount, [ours, theirs]: &[std::path::PathBuf; 2], program: &Program<'_>) {
    let ready = |folder: &Path| {
        shell(folder, "rm -rf small out && mkdir out && sync");
        if program.forgets {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    };
    let timed = |folder: &Path| {
        let began = Instant::now();
        (program.run)(folder);
        began.elapsed()
    };
    let requests = || WAITED_FOR.map(|kind| mount.node.metrics.request_counter(kind).get());
    for folder in [ours, theirs].into_iter().filter(|_| !program.forgets) {
        ready(folder);
        timed(folder);
    }
    let (mut times, mut made) = ([vec![], vec![]], [0; WAITED_FOR.len()]);
    for _ in 0..program.rounds {
        ready(ours);
        let before = requests();
        times[0].push(timed(ours));
        let after = requests();
        made = std::array::from_fn(|at| after[at] - before[at]);
        ready(theirs);
        times[1].push(timed(theirs));
    }
    let [ours, theirs]: [Duration; 2] = times.map(middle);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "{:<58} {ours:>11.2?} {theirs:>11.2?} {ratio:>8.3}  {}",
        format!("{} / native", program.name),
        program.goal
    );
    let each: Vec<String> = WAITED_FOR
        .iter()
        .zip(made)
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| {
            let of_each = count as f64 / program.files as f64;
            format!("{kind} {of_each:.3}")
        })
        .collect();
    println!("    requests for each of {}: {}", program.files, each.join(", "));
}

#[expect(clippy::disallowed_methods, reason = "a bench starts programs")]
fn shell(folder: &Path, line: &str) {
    let status = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{line}");
}
