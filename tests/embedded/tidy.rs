//! Checks of the source files for what the compiler cannot see: which file may name which library
//! or room, where `unsafe` may stand, and that files which others may change are reached by
//! descriptors only. docs/ARCHITECTURE.md describes the rooms.

use std::path::{Path, PathBuf};

/// Returns every Rust file below a folder of the repository, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(at: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    walk(&root.join(folder), &mut all);
    assert!(!all.is_empty());
    all.into_iter()
        .map(|(path, text)| (path.strip_prefix(root).unwrap().to_owned(), text))
        .collect()
}

/// Asserts that below `folder` only files whose path contains one of `rooms` contain `word`.
fn only(folder: &str, word: &str, rooms: &[&str]) {
    for (path, text) in sources(folder) {
        let path = path.to_str().unwrap();
        assert!(
            rooms.iter().any(|room| path.contains(room)) || !text.contains(word),
            "{path} contains {word:?}; only {rooms:?} may"
        );
    }
}

/// The manifests of the crates say which crate may use which library. This test says which files of
/// a crate may name it.
#[test]
fn each_library_is_named_in_one_room() {
    only("ionfs/fs/src", "fuser::", &["src/fuse", "src/mount.rs"]);
    only("ionfs/stores/src", "rusqlite::", &["src/sqlite"]);
    only("ionfs/stores/src", "object_store::", &["src/object"]);
    only("ionfs/stores/src", "mongodb::", &["src/mongo.rs"]);
    only("ionfs/stores/src", "lapin::", &["src/amqp"]);
    only("src", "opentelemetry", &["src/spans.rs"]);
    only("handler-shim/src", "clap::", &["src/cli"]);
    only("handler-shim/src", "std::env::", &["cli/settings.rs"]);
    for library in ["tar_core::", "flate2::", "zstd::"] {
        only("dispatcher/run/src", library, &["image"]);
    }
    for library in ["kube::", "k8s_openapi::"] {
        only("dispatcher/run/src", library, &["executor/kubernetes"]);
    }
    for library in ["axum::", "hyper::"] {
        only("dispatcher/run/src", library, &["executor/sidecar.rs"]);
    }
    only("modules/index/src", "reqwest::", &["src/server.rs", "src/error.rs"]);
    only("modules/index/src", "clap::", &["src/cli.rs"]);
    only("modules/fetch/src", "quick_xml::", &["src/feed/tree.rs", "src/html.rs"]);
    only("modules/fetch/src", "html5ever::", &["src/html.rs", "src/page.rs"]);
    only("modules/fetch/src", "clap::", &["src/cli.rs"]);
    for library in ["flate2::", "brotli_decompressor::"] {
        only("modules/fetch/src", library, &["src/http/body.rs"]);
    }
    only("dispatcher/gateway/src", "async_compression::", &["src/encoding.rs"]);
    for folder in ["src", "ionfs", "dispatcher", "handler-shim/src"] {
        only(folder, "prometheus_client::", &["src/metrics.rs"]);
        only(folder, "csi::serve", &["src/csi.rs"]);
    }
}

#[test]
fn layers_point_one_way() {
    only("ionfs/fs/src", "crate::mount", &["src/fuse"]);
    only("ionfs/fs/src", "crate::fuse", &["src/mount.rs", "src/fuse"]);
    only("dispatcher", "executor.run(", &["dispatch/src/attempt.rs"]);
    // Chains run for any caller. Only these files name the room of chains.
    only("dispatcher", "ion_run::chain", &["gateway/src/portal.rs", "dispatcher/src/lib.rs"]);
    only("dispatcher/run/src", "crate::chain", &["executor/local.rs"]);
    only("src", "handler_shim", &["src/bin/ion-handler.rs"]);
    // Only this file opens what a module has left, and it follows no link out of the folder.
    only("handler-shim/src", "openat2", &["src/folder.rs"]);
}

/// A module may swap a file or a folder for a link between two system calls. So the code reaches
/// such files only by descriptors below a root (`ionfs::beneath`), and never by a path.
#[test]
fn what_others_may_change_is_reached_by_no_path() {
    let by_path = [
        "std::fs::",
        "File::open(",
        "File::create(",
        "OpenOptions",
        "tokio::fs",
        "CWD",
        "fs::open(",
        "openat(",
        "openat2(",
        "statat(",
        "mkdirat(",
        "unlinkat(",
        "renameat(",
        "linkat(",
        "symlinkat(",
        "mknodat(",
        "chmodat(",
        "chownat(",
        "utimensat(",
        "readlinkat(",
        "accessat(",
        "getxattr(self",
        "lgetxattr(",
        "lsetxattr(",
        "llistxattr(",
        "lremovexattr(",
        "/proc/self/fd",
    ];
    // Which file may make which of these calls, how many times, and what it reaches by them.
    let allowed = [
        ("ionfs/fs/src/view.rs", "std::fs::", 1, "a running job's log, which is the daemon's own"),
        ("ionfs/fs/src/tree/files.rs", "File::open(", 1, "the same"),
        ("handler-shim/src/folder.rs", "std::fs::", 2, "the root itself, which the operator named"),
        ("handler-shim/src/folder.rs", "openat2(", 1, "below the root, without links out of it"),
        ("handler-shim/src/prepare.rs", "std::fs::", 1, "a type: the mode of an open file"),
        ("handler-shim/src/cli/settings.rs", "std::fs::", 1, "the log that the operator named"),
        (
            "handler-shim/src/development.rs",
            "std::fs::",
            8,
            "a developer's own folders, with no other user's module",
        ),
        (
            "dispatcher/run/src/image/unpack.rs",
            "fs::open(",
            1,
            "the root itself, which Ion has just made",
        ),
        (
            "dispatcher/run/src/image/unpack.rs",
            "File::open(",
            1,
            "the archive that the pipeline names",
        ),
        (
            "dispatcher/run/src/image/unpack.rs",
            "openat2(",
            1,
            "below the root, without links out of it",
        ),
    ];
    // In an image's folder, each of these calls acts on one name in a folder that is held open.
    let by_one_name = [
        "openat(",
        "statat(",
        "mkdirat(",
        "unlinkat(",
        "renameat(",
        "linkat(",
        "symlinkat(",
        "mknodat(",
    ];
    let by_one_name =
        [&by_one_name[..], &["chmodat(", "chownat(", "utimensat(", "readlinkat(", "accessat("]]
            .concat();
    let unpacks = |path: &Path| path.ends_with("image/unpack.rs");
    let rooms = ["ionfs/fs/src", "handler-shim/src", "dispatcher/run/src/image"];
    for (path, text) in rooms.into_iter().flat_map(sources) {
        // A mount is made at the path that its caller names.
        if path.ends_with("ionfs/fs/src/mount.rs") {
            continue;
        }
        // In the room of images, only the file that unpacks the archives of others is checked.
        if path.to_str().unwrap().contains("image") && !unpacks(&path) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        for call in by_path {
            if unpacks(&path) && by_one_name.contains(&call) {
                continue;
            }
            let is_made = |line: &&str| {
                let line = line.split("//").next().unwrap();
                line.contains(call)
                    && !line.contains("std::fs::File;")
                    && !line.contains("std::fs::DirEntry")
            };
            let made = code.lines().filter(is_made).count();
            let most =
                allowed.iter().find(|(file, allowed, ..)| path.ends_with(file) && *allowed == call);
            assert!(
                made <= most.map_or(0, |(_, _, most, _)| *most),
                "{} calls {call:?} {made} times; ionfs/system/src/beneath.rs has safe calls for it",
                path.display()
            );
        }
    }
}

#[test]
fn unsafe_lines_and_promises_stay_where_they_belong() {
    for folder in ["src", "ionfs", "dispatcher", "handler-shim/src", "modules"] {
        only(folder, "unsafe {", &["ionfs/system/src/sys.rs"]);
        for promise in ["TODO", "FIXME", "todo!(", "unimplemented!("] {
            only(folder, promise, &[]);
        }
    }
    // The next state of a job and the next step of a commit are pure functions: they use neither a
    // clock nor a store.
    let pure = |(path, _): &(PathBuf, String)| {
        path.ends_with("dispatcher/jobs/src/job.rs")
            || path.ends_with("ionfs/plane/src/commit/steps.rs")
    };
    let all: Vec<_> = ["dispatcher", "ionfs"].into_iter().flat_map(sources).filter(pure).collect();
    assert_eq!(all.len(), 2);
    for (path, text) in all {
        assert!(
            !text.contains("clock::now") && !text.contains("async"),
            "{} uses the clock or is asynchronous",
            path.display()
        );
    }
}
