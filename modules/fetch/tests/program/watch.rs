//! `ion-fetch watch`.

use std::fs;
use std::path::PathBuf;

use crate::folder::Folder;

/// A folder that is watched, beside the program's own.
struct Watched {
    folder: Folder,
    path: PathBuf,
}

impl Watched {
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.path().join("watched");
        fs::create_dir(&path).unwrap();
        Self { folder, path }
    }

    fn put(&self, name: &str, text: &str) {
        self.folder.write(&format!("watched/{name}"), text);
    }

    /// Runs the program, and returns the paths that its events name.
    fn run(&self, arguments: &[&str]) -> Vec<String> {
        let path = self.path.to_str().unwrap();
        let fixed = ["--keep-state", "--settle", "50ms", "--path", path];
        let ended = self.folder.run_strictly("watch", &[&fixed[..], arguments].concat());
        assert_eq!(ended.code, 0, "{}", ended.said);
        let mut paths = Vec::new();
        for event in self.folder.take_events().values() {
            let name = event["path"].as_str().unwrap();
            let file = event["files"][0].as_str().unwrap();
            let copy = self.folder.text(&format!("out/data/{file}")).unwrap();
            assert_eq!(event["size"], copy.len().to_string());
            paths.push(name.to_owned());
        }
        paths.sort();
        paths
    }
}

#[test]
fn each_file_is_published_once_and_a_changed_one_again() {
    let watched = Watched::new();
    watched.put("old", "o");
    assert_eq!(watched.run(&[]), [""; 0]);
    watched.put("new", "n");
    watched.put("sub/deep", "d");
    assert_eq!(watched.run(&[]), ["new"]);
    assert_eq!(watched.run(&["--recursive"]), ["sub/deep"]);
    watched.put("old", "longer");
    assert_eq!(watched.run(&["--recursive"]), ["old"]);
    assert_eq!(watched.run(&["--recursive"]), [""; 0]);
}

#[test]
fn drafts_links_and_files_that_are_being_written_are_left_alone() {
    use std::io::Write as _;
    let watched = Watched::new();
    for name in [".hidden", "a.part", "b~", "c.tmp"] {
        watched.put(name, "x");
    }
    std::os::unix::fs::symlink("/etc/passwd", watched.path.join("link")).unwrap();
    let mut file = fs::File::create(watched.path.join("growing")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            file.write_all(b"x").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    });
    let path = watched.path.to_str().unwrap();
    let arguments = ["--keep-state", "--settle", "3s", "--first", "all", "--path", path];
    let ended = watched.folder.run_strictly("watch", &arguments);
    assert_eq!((ended.code, watched.folder.take_events().len()), (0, 0), "{}", ended.said);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    fs::rename(watched.path.join("a.part"), watched.path.join("a")).unwrap();
    assert_eq!(watched.run(&[]), ["a", "growing"]);
}

#[test]
fn a_published_file_is_put_away_by_the_next_run_and_no_other_ever() {
    let watched = Watched::new();
    watched.put("old", "o");
    watched.run(&["--after", "delete"]);
    watched.put("new", "n");
    assert_eq!(watched.run(&["--after", "delete"]), ["new"]);
    assert!(watched.path.join("new").exists());
    watched.run(&["--after", "delete"]);
    assert!(!watched.path.join("new").exists());
    assert!(watched.path.join("old").exists());
    let done = watched.folder.path().join("done");
    watched.put("next", "n");
    let after = format!("move={}", done.display());
    assert_eq!(watched.run(&["--after", &after]), ["next"]);
    watched.run(&["--after", &after]);
    assert_eq!(fs::read_to_string(done.join("next")).unwrap(), "n");
}

#[test]
fn one_event_may_have_all_files_of_a_run() {
    let watched = Watched::new();
    watched.put("a", "1");
    watched.put("b", "2");
    let path = watched.path.to_str().unwrap();
    let arguments = ["--settle", "50ms", "--first", "all", "--emit", "files", "--path", path];
    assert_eq!(watched.folder.run_strictly("watch", &arguments).code, 0);
    let events = watched.folder.take_events();
    assert_eq!(events["files"]["count"], "2");
    assert_eq!(events["files"]["files"].as_array().unwrap().len(), 3);
    assert_eq!(watched.folder.text("out/data/items.ndjson").unwrap().lines().count(), 2);
}

#[test]
fn a_parameter_names_a_folder_only_below_the_allowed_one() {
    let watched = Watched::new();
    let root = watched.folder.path().to_str().unwrap().to_owned();
    watched.folder.write("in/meta/path", "watched");
    let run = |arguments: &[&str]| watched.folder.run_strictly("watch", arguments);
    assert_eq!(run(&["--below", &root]).code, 0);
    assert_eq!(run(&[]).code, 2);
    watched.folder.write("in/meta/path", "/etc");
    let ended = run(&["--below", &root]);
    assert!(ended.code == 2 && ended.said.contains("is not below"), "{}", ended.said);
    assert_eq!(run(&["--path", "/nowhere"]).code, 1);
}
