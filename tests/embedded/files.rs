//! Tests of ordinary programs in a job, whose files must come out as on a plain disk: shells beside
//! listings, times of files, `git clone`, access lists and the umask. Further tests show which
//! files `--file` accepts, and that `ion` refuses a home whose stores it cannot read.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{CommandOutput, Home, ION};

/// Runs a bash script in `out/data` of a job, which must succeed. Returns the output of `ion run`,
/// and what the script printed.
fn job(home: &Home, files: &[&str], script: &str) -> (CommandOutput, String) {
    let script = format!(
        "set -e; cd /ion/out/data; {{ {script}; }} > /ion/out/data/said; echo '{{\"eventType\":\"said\",\"files\":[\"said\"]}}' > /ion/out/events/said.json"
    );
    let mut words = vec!["--json", "run"];
    for file in files {
        words.extend(["--file", file]);
    }
    words.extend(["--", "bash", "-c", &script]);
    let ran = home.run(words).well();
    let said = ran.documents().into_iter().find(|event| event["type"] == "said").unwrap();
    let key = said["files"][0]["key"].as_str().unwrap();
    let said = std::fs::read_to_string(home.state().join("blobs").join(key)).unwrap();
    (ran, said)
}

#[test]
fn a_shell_appends_while_somebody_lists() {
    let script = r#"mkdir d; for i in $(seq 400); do printf x > d/f$i; done
(while [ ! -e stop ]; do ls -l d > /dev/null; find d -size +1k > /dev/null; done) &
for r in 1 2 3 4; do for i in $(seq 400); do echo abcdefghi >> d/f$i; done; done; touch stop; wait
cat d/* | wc -c; cat d/* | tr -d x | sort | uniq -c | tr -s ' '"#;
    let (_, said) = job(&Home::new(), &[], script);
    assert_eq!(said, "16400\n 1600 abcdefghi\n");
}

#[test]
fn an_append_is_at_the_end_though_a_listing_began_before_it() {
    let home = Home::new();
    home.write(
        "module.py",
        r#"
import os
os.chdir("/ion/out/data")
for n in range(1000): open(f"f{n:04}", "w").write("x")
listing = os.scandir("."); os.stat(next(listing))
def append(content):
    fd = os.open("f0900", os.O_WRONLY | os.O_APPEND); os.write(fd, content); os.close(fd)
append(b"y" * 99); os.unlink("f0950")
for entry in listing:
    if entry.name != "f0950": entry.stat()
append(b"z")
assert open("f0900").read() == "x" + "y" * 99 + "z" and os.path.getsize("f0900") == 101
assert not os.path.exists("f0950")
"#,
    );
    home.run(["run", "--", "python3", home.path().join("module.py").to_str().unwrap()]).well();
}

/// `--file` makes files of an event, or is refused with an error that names the file, before
/// anything is stored.
#[test]
fn files_of_a_command_are_kept_or_refused_by_name() {
    let home = Home::new();
    let script = "cd DIR; mkdir n p deep loops z; echo x > n/f; echo y > n/g; mkfifo p/pipe; mkdir -p deep/er/empty; echo d > deep/er/d; \
        ln -s er deep/again; echo l > loops/f; ln -s . loops/a; ln -s . loops/b; echo z > \"z/$(printf 'caf\\351')\"; ln -s gone dangling";
    let script = script.replace("DIR", &home.path().display().to_string());
    assert!(Command::new("bash").args(["-ec", &script]).status().unwrap().success());
    let names = |files: &[&str]| {
        let mut words = vec!["--json", "event", "create", "t"];
        files.iter().for_each(|file| words.extend(["--file", file]));
        let made: serde_json::Value = serde_json::from_str(&home.run(words).well().stdout).unwrap();
        let names = made["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file["name"].as_str().unwrap().to_owned());
        let folders = made["directories"].as_array().into_iter().flatten();
        names
            .chain(folders.map(|name| format!("{}/", name.as_str().unwrap())))
            .collect::<Vec<String>>()
    };
    assert_eq!(names(&["n"]), ["f", "g"]);
    assert_eq!(names(&["n=sub/"]), ["sub/f", "sub/g"]);
    assert_eq!(names(&["n=."]), ["f", "g"]);
    assert_eq!(names(&["n/f=a//./b"]), ["a/b"]);
    assert_eq!(names(&["n/f=in/", "n/g=in/other"]), ["in/f", "in/other"]);
    // A link to a folder counts as that folder.
    assert_eq!(names(&["deep"]), ["again/d", "er/d", "again/empty/", "er/empty/"]);
    let refused = [
        (vec!["n/f=/abs"], "cannot be called \"/abs\""),
        (vec!["n/f=.."], "cannot be called \"..\""),
        (vec!["n/f=."], "cannot be called \".\""),
        (vec!["n=../up"], "cannot be called \"../up\""),
        (vec!["n/f=a", "n/g=a/b"], "\"a\" would be a file and, for \"a/b\", a folder"),
        (vec!["n/g=a/b", "n/f=a"], "\"a\" would be a file and, for \"a/b\", a folder"),
        (vec!["n", "n/f"], "two files are called \"f\""),
        (vec!["p"], "\"p/pipe\" is a pipe"),
        (vec!["p/pipe"], "\"p/pipe\" is a pipe"),
        (vec!["/dev/null"], "\"/dev/null\" is a device"),
        (vec!["loops"], "\"loops/a\" leads back to \"loops\""),
        (vec!["z"], "is not UTF-8"),
        (vec!["dangling"], "\"dangling\" cannot be read"),
        (vec!["missing"], "\"missing\" cannot be read"),
    ];
    let stored = || {
        Command::new("find")
            .arg(home.state().join("blobs"))
            .args(["-type", "f"])
            .output()
            .unwrap()
            .stdout
    };
    let before = stored();
    for (files, said) in refused {
        let mut words = vec!["event", "create", "t", "--file", "n/g=good"];
        files.iter().for_each(|file| words.extend(["--file", *file]));
        let ran = home.run(words).failed();
        assert!(ran.stderr.contains(said), "{files:?}: {ran:#?}");
    }
    assert_eq!(stored(), before, "a refused command stores nothing");
}

#[test]
fn a_copy_of_an_input_keeps_the_time_that_is_set() {
    let home = Home::new();
    home.write("big", vec![b'x'; 30_000_000]);
    let script = r#"cp /ion/in/data/big a; printf X | dd of=a bs=1 seek=5 conv=notrunc status=none; touch -d 2015-05-05T00:00:00Z a
cp /ion/in/data/big b; printf X | dd of=b bs=1 seek=5 conv=notrunc status=none
tar cf t.tar b; touch -d 2015-05-05T00:00:00Z b
echo '{"eventType":"x","files":["a","b"]}' > /ion/out/events/e.json
stat -c %Y a b; cmp a b; cmp <(tar xOf t.tar) b"#;
    let (ran, said) = job(&home, &["big"], script);
    assert_eq!(said, "1430784000\n1430784000\n");
    let event = ran.documents().into_iter().find(|event| event["type"] == "x").unwrap();
    for file in event["files"].as_array().unwrap() {
        assert!(file["mtime"].to_string().starts_with("1430784000"), "{file}");
    }
}

#[test]
fn git_clones_from_the_input_to_the_output() {
    let home = Home::new();
    let git = |words: &[&str]| {
        let user = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        let output =
            Command::new("git").args(user).args(words).current_dir(home.path()).output().unwrap();
        CommandOutput::of(output).well();
    };
    git(&["init", "-q", "repository"]);
    home.write("repository/f", "content\n");
    git(&["-C", "repository", "add", "f"]);
    git(&["-C", "repository", "commit", "-qm", "x"]);
    let script = r#"export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git clone -q /ion/in/data/repository clone; cat clone/f; git -C clone fsck --full; git -C clone status --porcelain"#;
    let (_, said) = job(&home, &["repository=repository"], script);
    assert_eq!(said, "content\n");
}

/// The filesystem either takes an access list and obeys it, or refuses it.
#[test]
fn an_access_list_is_right_or_refused() {
    let script = r#"umask 022; touch f; chmod 640 f
if setfacl -m u:65534:rwx f 2> refused; then
    stat -c %a f; touch g; chmod 600 g; echo content > g; setfacl -m u:65534:r g
    chmod 755 .; setpriv --reuid=65534 --regid=65534 --clear-groups cat g
    mkdir d; setfacl -d -m u:65534:rwx d; touch d/x; stat -c %a d/x
else
    grep -q 'Operation not supported' refused; stat -c %a f
    ! setfacl -d -m u:65534:rwx . 2> refused; grep -q 'Operation not supported' refused
fi"#;
    let (_, said) = job(&Home::new(), &[], script);
    assert!(["670\ncontent\n664\n", "640\n"].contains(&said.as_str()), "{said}");
}

/// The umask of the module decides the modes of new files. The umask of the daemon does not.
#[test]
fn new_files_have_the_modes_of_the_modules_umask() {
    let home = Home::new();
    let module = "set -e; cd /ion/out/data; umask 022; touch f; mkdir d; mkfifo p; umask 007; touch g; mkdir e; \
                  test \"$(stat -c %a f d p g e | tr '\\n' ' ')\" = '644 755 644 660 770 '";
    for mask in ["077", "000", "022"] {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("umask {mask}; exec \"$0\" \"$@\""),
                ION,
                "run",
                "--",
                "bash",
                "-c",
                module,
            ])
            .env("ION_HOME", home.state())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .output();
        CommandOutput::of(output.unwrap()).well();
    }
}

#[test]
fn a_home_whose_stores_cannot_be_read_does_not_fall_back_to_the_embedded_ones() {
    let home = Home::new();
    let plane = home.state().join("plane.json");
    fs::create_dir_all(&plane).unwrap();
    let refused = |home: &Home| {
        let ran = home.run(["job", "list"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("plane.json says which stores"), "{ran:?}");
    };
    refused(&home);
    fs::remove_dir(&plane).unwrap();
    fs::write(&plane, "{\"blobs\":").unwrap();
    refused(&home);
}
