//! Tests hostile images: they try to use up memory, to hang the daemon, or to read files outside
//! the image.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{pipeline, run};
use crate::support::images::{Image, digest, gzip};
use crate::support::{CommandOutput, Home, ION};

/// The bytes that an archive claims for one name: more than the daemon may use, and far more than a
/// name needs.
const HUGE: u64 = 6 << 30;

/// The size in bytes of a piece that is compressed once and repeated.
const PIECE: usize = 64 << 20;

/// Adds a blob to a layout. Returns its descriptor.
fn add_blob(layout: &Path, media_type: &str, content: &[u8]) -> Value {
    let digest = digest(content);
    fs::write(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap()), content)
        .unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": content.len()})
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the path of the blob that a descriptor names.
fn blob_of(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    layout
        .join("blobs/sha256")
        .join(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
}

/// Changes the manifest of the only image of a layout.
fn change_manifest(layout: &Path, change: impl FnOnce(&mut Value)) {
    let mut index = read_json(&layout.join("index.json"));
    let mut manifest = read_json(&blob_of(layout, &index["manifests"][0]));
    change(&mut manifest);
    let manifest = add_blob(
        layout,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    for key in ["digest", "size"] {
        index["manifests"][0][key] = manifest[key].clone();
    }
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

/// Adds a layer of these bytes on top of an image.
pub(super) fn with_layer(layout: &Path, compression: &str, content: &[u8]) {
    let layer =
        add_blob(layout, &format!("application/vnd.oci.image.layer.v1.tar{compression}"), content);
    change_manifest(layout, |manifest| manifest["layers"].as_array_mut().unwrap().push(layer));
}

/// Returns a gzip file of a header, followed by this many bytes of repeated content.
fn bomb(head: &[u8], block: &[u8], bytes: u64) -> Vec<u8> {
    let piece = gzip(&block.repeat(PIECE / block.len()));
    let mut bomb = gzip(head);
    for _ in 0..bytes / PIECE as u64 {
        bomb.extend_from_slice(&piece);
    }
    bomb
}

/// Returns the header of an entry that claims to have this many bytes.
pub(super) fn head(kind: EntryType, name: &str, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    filled(header, name, 0o644, bytes)
}

/// Fills the fields that every form of a header has. The entry belongs to root, and its time is the
/// start of 1970.
pub(super) fn filled(mut header: Header, name: &str, mode: u32, bytes: u64) -> Header {
    // The name is in the same place in each form.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    header
}

/// Runs the module in a process with a limited address space. Returns its output and its peak
/// memory in KiB.
fn run_small(home: &Home) -> (CommandOutput, u64) {
    home.write("f", "content\n");
    let program = "import resource, subprocess, sys\n\
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))\n\
        ran = subprocess.run(sys.argv[1:], preexec_fn=limit, timeout=120)\n\
        print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n\
        sys.exit(ran.returncode)";
    let output = Command::new("python3")
        .args(["-c", program, ION, "run", "m", "--file", "f", "--pipeline", "pipeline.yaml"])
        .env("ION_HOME", home.state())
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let ran = CommandOutput::of(output);
    let kib = ran
        .stdout
        .rsplit("KiB ")
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{ran:#?}"));
    (ran, kib)
}

#[test]
fn an_archive_that_is_all_names_is_refused_in_little_memory() {
    let home = Home::new();
    // The map of holes has no end: each of its blocks says that another one follows.
    let mut sparse = head(EntryType::GNUSparse, "sparse", 0);
    sparse.as_gnu_mut().unwrap().isextended[0] = 1;
    sparse.set_cksum();
    let mut goes_on = [0; 512];
    goes_on[504] = 1;
    let zeros = [0; 512];
    let name = |kind| head(kind, "././@LongLink", HUGE);
    let record = format!("{HUGE} path=");
    let record =
        [head(EntryType::XHeader, "pax", HUGE).as_bytes().as_slice(), record.as_bytes()].concat();
    for (what, head, block) in [
        ("name", name(EntryType::GNULongName).as_bytes().to_vec(), &zeros),
        ("link", name(EntryType::GNULongLink).as_bytes().to_vec(), &zeros),
        ("record", record, &zeros),
        ("map", sparse.as_bytes().to_vec(), &goes_on),
    ] {
        let layout = Image::of("exit 0").write(&home, what);
        let layer = bomb(&head, block, HUGE);
        assert!(layer.len() < 96 << 20, "{} bytes", layer.len());
        with_layer(&layout, "+gzip", &layer);
        pipeline(&home, &format!("  m: {{on: [x], image: 'oci:{what}', run: [\"true\"]}}\n"));
        let (ran, kib) = run_small(&home);
        println!("{what}: {} bytes of gzip, at most {kib} KiB", layer.len());
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        for word in [what, "its layer \"sha256:", "1048576 bytes"] {
            assert!(ran.stderr.contains(word), "{word}: {ran:#?}");
        }
        assert!(kib < 512 << 10, "{what}: {kib} KiB");
    }
}

#[test]
fn an_archive_whose_window_or_holes_cannot_be_had_is_refused_by_name() {
    let home = Home::new();
    let refused = |image: &str, words: &[&str]| {
        pipeline(&home, &format!("  m: {{on: [x], image: 'oci:{image}', run: [\"true\"]}}\n"));
        let (ran, kib) = run_small(&home);
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} {ran:#?}");
        assert!(kib < 512 << 10, "{image}: {kib} KiB");
    };
    // The frame asks for a window of 2 GiB, and has one empty block.
    let layout = Image::of("exit 0").write(&home, "window");
    with_layer(&layout, "+zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00]);
    refused("window", &["memory"]);
    // Records and names that are long but valid are read.
    let mut tar = Builder::new(vec![]);
    tar.append_pax_extensions([("SCHILY.xattr.user.large", vec![b'x'; 200_000].as_slice())])
        .unwrap();
    tar.append(&head(EntryType::Regular, "fine", 5), &b"fine\n"[..]).unwrap();
    let mut name = head(EntryType::GNULongName, "././@LongLink", 151);
    name.set_cksum();
    tar.append(&name, [&[b'n'; 150][..], b"\0"].concat().as_slice()).unwrap();
    tar.append(&head(EntryType::Regular, "short", 5), &b"long\n"[..]).unwrap();
    let layout = Image::of("exit 0").write(&home, "fine");
    with_layer(&layout, "", &tar.into_inner().unwrap());
    let names = "n".repeat(150);
    pipeline(&home, &format!("  m: {{on: [x], image: 'oci:fine', run: [cat, /fine, /{names}]}}\n"));
    let ran = run(&home, "m").well();
    assert!(ran.stderr.contains("| fine\n") && ran.stderr.contains("| long\n"), "{ran:#?}");
}

#[test]
fn an_image_whose_files_are_links_or_pipes_is_refused_and_nothing_hangs() {
    let home = Home::new();
    let refused = |image: &str, words: &[&str]| {
        pipeline(&home, &format!("  m: {{on: [x], image: '{image}', run: [\"true\"]}}\n"));
        let (ran, _) = run_small(&home);
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} {ran:#?}");
    };
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        let made = Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    };
    let layout = Image::of("exit 0").write(&home, "pipe");
    pipe(&layout.join("index.json"));
    refused("oci:pipe", &["index.json", "no regular file"]);
    let layout = Image::of("exit 0").write(&home, "marker");
    pipe(&layout.join("oci-layout"));
    refused("oci:marker", &["no file oci-layout"]);
    // The blob is a link to a file that never ends, and then to a file of this machine.
    let layout = Image::of("exit 0").write(&home, "endless");
    change_manifest(&layout, |manifest| manifest["layers"][0]["size"] = json!(u64::MAX / 4));
    let manifest =
        read_json(&blob_of(&layout, &read_json(&layout.join("index.json"))["manifests"][0]));
    let layer = blob_of(&layout, &manifest["layers"][0]);
    for to in ["/dev/zero", "/etc/passwd"] {
        fs::remove_file(&layer).unwrap();
        symlink(to, &layer).unwrap();
        refused("oci:endless", &["cannot be used", "blobs/sha256"]);
    }
    // An archive's links are unpacked with it, and they are refused as well.
    let mut tar = Builder::new(fs::File::create(home.path().join("links.tar")).unwrap());
    let good = Image::of("exit 0").write(&home, "good");
    tar.append_path_with_name(good.join("oci-layout"), "oci-layout").unwrap();
    let mut link = head(EntryType::Symlink, "index.json", 0);
    tar.append_link(&mut link, "index.json", "/etc/passwd").unwrap();
    tar.into_inner().unwrap().flush().unwrap();
    refused("oci-archive:links.tar", &["index.json"]);
}
