//! Runs programs that write, list and rewrite files of one folder at the same time, below
//! `out/data` and in a plain folder. Both folders must end up the same to the byte, and so must the
//! blobs of an event that names all files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::CommandOutput;
use crate::support::mount::{Blobs, Mount, Passthrough};
use crate::support::trees::picture;

/// Runs a program of tests/machine/programs in a new folder. Returns a description of everything
/// that is in the folder afterwards.
fn runs(program: &str, folder: &Path) -> BTreeMap<PathBuf, String> {
    fs::create_dir(folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/programs").join(program);
    let shell = if program.ends_with(".py") { "python3" } else { "bash" };
    // `timeout` kills a program that hangs in the filesystem, so that it does not hang the tests.
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "240", shell]).arg(script).current_dir(folder).stdin(Stdio::null());
    let ran = CommandOutput::of(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "{program} in {}: {ran:#?}", folder.display());
    picture(folder)
}

fn leaves_the_same(program: &str) {
    for passthrough in [Passthrough::Allowed, Passthrough::Off] {
        let mount = Mount::new(passthrough, Blobs::Files, &[]);
        let plain = mount.home.path().join("work");
        let (ours, theirs) = (runs(program, &mount.data().join("work")), runs(program, &plain));
        let odd: Vec<_> =
            ours.iter().filter(|entry| theirs.get(entry.0) != Some(entry.1)).collect();
        let missing: Vec<_> =
            theirs.iter().filter(|entry| ours.get(entry.0) != Some(entry.1)).collect();
        assert!(
            odd.is_empty() && missing.is_empty(),
            "{passthrough:?}: below out/data {odd:#?}, in a plain folder {missing:#?}"
        );
        assert!(!theirs.is_empty());
        let files = theirs.iter().filter(|(_, what)| what.starts_with('f'));
        let files: Vec<String> =
            files.map(|(name, _)| format!("work/{}", name.display())).collect();
        let event = mount.commit(&files.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(event.files.len(), files.len());
        for file in &event.files {
            let wanted = fs::read(mount.home.path().join(&file.name)).unwrap();
            assert!(mount.content(file) == wanted, "{passthrough:?}: the blob of {}", file.name);
        }
    }
}

#[test]
fn make_builds_the_same_with_many_compilers() {
    leaves_the_same("make.sh");
}

#[test]
fn git_packs_a_repository_that_is_committed_to() {
    leaves_the_same("git.sh");
}

#[test]
fn mail_is_delivered_once_and_whole() {
    leaves_the_same("maildir.py");
}

#[test]
fn rsync_updates_files_in_place() {
    leaves_the_same("rsync.sh");
}

#[test]
fn a_log_is_rotated_without_a_lost_line() {
    leaves_the_same("rotate.py");
}
