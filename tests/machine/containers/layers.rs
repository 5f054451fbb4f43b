//! Tests layers as other tools write them: each unpacked file equals the packed one, or the layer
//! is refused with an error that names the file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::archives::{filled, head, with_layer};
use super::{pipeline, run};
use crate::support::images::{Image, gzip};
use crate::support::{CommandOutput, Home};

/// The size in bytes of a file that consists mostly of holes.
const SPARSE_BYTES: u64 = 8 << 20;

/// Runs a program of this machine in a folder, and returns its output.
fn here(folder: &Path, argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{argv:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script in the image of this name.
fn in_image(home: &Home, name: &str, script: &str) -> CommandOutput {
    let script = json!(script);
    pipeline(home, &format!("  m: {{on: [x], image: 'oci:{name}', run: [sh, -c, {script}]}}\n"));
    run(home, "m")
}

/// Asserts that a layer is refused with an error that has these words.
fn refused(home: &Home, name: &str, layer: &[u8], words: &[&str]) {
    let layout = Image::of("exit 0").write(home, name);
    with_layer(&layout, "", layer);
    let ran = in_image(home, name, "true");
    assert_ne!(ran.code, Some(0), "{ran:#?}");
    let all = [&["its layer \"sha256:"], words].concat();
    assert!(all.iter().all(|word| ran.stderr.contains(word)), "{name}: {all:?} {ran:#?}");
}

/// Returns the path of a file in the unpacked image that has it.
fn unpacked(home: &Home, file: &str) -> PathBuf {
    let images = fs::read_dir(home.state().join("images")).unwrap().flatten();
    let mut found =
        images.map(|image| image.path().join("rootfs").join(file)).filter(|path| path.exists());
    found.next().unwrap()
}

/// Returns an archive of one entry with these PAX records.
fn records<'r>(
    records: impl IntoIterator<Item = (&'r str, &'r [u8])>,
    header: &Header,
    content: &[u8],
) -> Vec<u8> {
    let mut tar = Builder::new(vec![]);
    tar.append_pax_extensions(records).unwrap();
    tar.append(header, content).unwrap();
    tar.into_inner().unwrap()
}

/// GNU tar writes files with holes in four forms.
#[test]
fn files_with_holes_are_whole_in_every_form_that_tar_writes() {
    let home = Home::new();
    let files = home.path().join("files");
    let long = format!("{}/{}", "folder".repeat(15), "name".repeat(20));
    fs::create_dir_all(files.join(&long).parent().unwrap()).unwrap();
    let sparse = |name: &str, pieces: &[(u64, usize)], size: u64| {
        let file = File::create(files.join(name)).unwrap();
        for &(at, length) in pieces {
            let bytes: Vec<u8> = (0..length).map(|n| (n as u64 + at / 4096) as u8 | 1).collect();
            file.write_all_at(&bytes, at).unwrap();
        }
        file.set_len(size).unwrap();
    };
    sparse("few", &[(0, 4096), (3 << 20, 8192)], SPARSE_BYTES);
    sparse("to-its-end", &[(1 << 20, 4096), (SPARSE_BYTES - 100, 100)], SPARSE_BYTES);
    sparse("nothing", &[], SPARSE_BYTES);
    let many: Vec<(u64, usize)> = (0..300).map(|n| (n * 16384, 4096)).collect();
    sparse("many", &many, 300 * 16384);
    sparse(&long, &[(1 << 20, 4096)], SPARSE_BYTES);
    fs::hard_link(files.join("few"), files.join("second-name")).unwrap();
    fs::write(files.join("plain"), "plain\n").unwrap();
    let find = "find . -type f | sort | while read -r f; do sha256sum \"$f\"; done";
    let packed = here(&files, &["sh", "-c", find]);
    assert_eq!(packed.lines().count(), 7);
    for (form, flags) in [
        ("gnu", &["--format=gnu"][..]),
        ("posix-0.0", &["--format=posix", "--sparse-version=0.0"]),
        ("posix-0.1", &["--format=posix", "--sparse-version=0.1"]),
        ("posix-1.0", &["--format=posix", "--sparse-version=1.0"]),
    ] {
        let tar = [&["tar", "-S", "--hole-detection=seek"], flags, &["-cf", "layer.tar", "files"]]
            .concat();
        here(home.path(), &tar);
        let layer = fs::read(home.path().join("layer.tar")).unwrap();
        assert!(layer.len() < 4 << 20, "{form} leaves out the holes: {} bytes", layer.len());
        let layout = Image::of("exit 0").write(&home, form);
        with_layer(&layout, "+gzip", &gzip(&layer));
        let found = in_image(&home, form, &format!("cd /files && {find}")).well();
        let found: Vec<&str> = found
            .stderr
            .lines()
            .filter_map(|line| line.split_once("| "))
            .map(|(_, line)| line)
            .collect();
        assert_eq!(found, packed.lines().collect::<Vec<_>>(), "{form}");
    }
    let blocks = std::os::unix::fs::MetadataExt::blocks(
        &fs::metadata(unpacked(&home, "files/few")).unwrap(),
    );
    assert!(blocks * 512 < SPARSE_BYTES, "the unpacked file keeps its holes: {blocks} blocks");
}

/// Returns a header in the form of Unix V7, which has no magic, and in which a name that ends in a
/// slash is a folder.
fn head_of_v7(name: &str, bytes: u64) -> Header {
    filled(Header::new_old(), name, 0o755, bytes)
}

/// A reader easily loses or misreads these parts of a layer without an error.
#[test]
fn records_attributes_times_and_old_folders_of_a_layer_are_kept() {
    let home = Home::new();
    let mut layer = records(
        [
            ("SCHILY.xattr.user.lines", &b"one\n\ntwo\n"[..]),
            ("path", b"named-by-record"),
            ("mtime", b"1000000000.5"),
        ],
        &head(EntryType::Regular, "another-name", 3),
        b"yes",
    );
    // Removes the two blocks that end the archive, so that it goes on with the added entries.
    let mut add = |more: &[u8]| {
        layer.truncate(layer.len() - 1024);
        layer.extend_from_slice(more);
    };
    add(&records([("mtime", &b"-1.25"[..])], &head(EntryType::Regular, "before-1970", 0), b""));
    // The size in a record overrides the one in the header, and a hard link never has content,
    // whatever size its header states.
    add(&records([("size", &b"5"[..])], &head(EntryType::Regular, "sized-by-record", 0), b"bytes"));
    let mut link = head(EntryType::Link, "link", 5000);
    link.set_link_name("sized-by-record").unwrap();
    link.set_cksum();
    let mut tar = Builder::new(vec![]);
    tar.append(&link, &b""[..]).unwrap();
    tar.append(&head_of_v7("old/", 0), &b""[..]).unwrap();
    tar.append(&head_of_v7("old/file", 3), &b"old"[..]).unwrap();
    tar.append(&head(EntryType::new(b'V'), "a label", 0), &b""[..]).unwrap();
    add(&tar.into_inner().unwrap());
    let comment = records([("comment", &b"0123"[..])], &head(EntryType::Regular, "last", 0), b"");
    let comment = [
        &[head(EntryType::XGlobalHeader, "pax", 16).as_bytes().as_slice()].concat(),
        &comment[512..],
    ]
    .concat();
    add(&comment);
    let layout = Image::of("exit 0").write(&home, "kept");
    with_layer(&layout, "", &layer);
    let ran = in_image(
        &home,
        "kept",
        "cd /; stat -c '%n %y' named-by-record before-1970; cat named-by-record sized-by-record link old/file; echo; \
         test -d old; test -f last; test ! -e another-name",
    )
    .well();
    for words in [
        "named-by-record 2001-09-09 01:46:40.500000000",
        "before-1970 1969-12-31 23:59:58.750000000",
        "yesbytesbytesold",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran:#?}");
    }
    let file = unpacked(&home, "named-by-record");
    let attributes = here(
        home.path(),
        &["getfattr", "--only-values", "-n", "user.lines", file.to_str().unwrap()],
    );
    assert_eq!(attributes, "one\n\ntwo\n");
}

/// The error names the entry and the part of it that cannot be read.
#[test]
fn a_layer_that_would_be_misread_is_refused_by_name() {
    let home = Home::new();
    let file = || head(EntryType::Regular, "the-file", 4);
    for (name, key, value, words) in [
        (
            "star",
            "SCHILY.realsize",
            "8388608",
            &["\"the-file\"", "SCHILY.realsize", "--format=gnu"][..],
        ),
        (
            "later",
            "GNU.sparse.major",
            "2",
            &["\"the-file\"", "GNU.sparse.major", "without `--sparse`"],
        ),
        ("number", "size", "4x", &["\"the-file\"", "size=\"4x\"", "no number"]),
        ("owner", "uid", "-7", &["\"the-file\"", "uid=\"-7\"", "no number"]),
        ("time", "mtime", "soon", &["\"the-file\"", "mtime=\"soon\"", "no time"]),
        ("map", "GNU.sparse.map", "0,4,2,4", &["map of holes", "\"the-file\"", "damaged"]),
    ] {
        refused(&home, name, &records([(key, value.as_bytes())], &file(), b"data"), words);
    }
    let damaged =
        [head(EntryType::XHeader, "pax", 12).as_bytes().as_slice(), &block(b"99 path=abc\n")]
            .concat();
    refused(
        &home,
        "damaged",
        &[damaged, entry(&file(), b"data")].concat(),
        &["first entry", "PAX", "malformed"],
    );
    let everywhere =
        [head(EntryType::XGlobalHeader, "pax", 12).as_bytes().as_slice(), &block(b"12 path=abc\n")]
            .concat();
    refused(
        &home,
        "all",
        &[everywhere, entry(&file(), b"data")].concat(),
        &["\"path\"", "all entries", "--pax-option"],
    );
    refused(
        &home,
        "volume",
        &entry(&head(EntryType::new(b'M'), "the-file", 4), b"data"),
        &["\"the-file\"", "volume"],
    );
    refused(
        &home,
        "solaris",
        &entry(&head(EntryType::new(b'X'), "the-file", 4), b"data"),
        &["\"the-file\"", "'X'"],
    );
    // The size is 2 to the power of 64, plus 4.
    let mut huge = file();
    huge.as_gnu_mut().unwrap().size = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4];
    huge.set_cksum();
    refused(&home, "huge", &entry(&huge, b"data"), &["\"the-file\"", "no number that fits"]);
    let short = entry(&head(EntryType::Regular, "the-file", 4000), b"data");
    refused(&home, "short", &short[..1024], &["\"the-file\"", "cut off"]);
    refused(&home, "text", &[b'x'; 2000], &["no tar archive"]);
}

/// Returns the content, filled up to one block of an archive.
fn block(content: &[u8]) -> Vec<u8> {
    let mut block = content.to_vec();
    block.resize(512, 0);
    block
}

fn entry(header: &Header, content: &[u8]) -> Vec<u8> {
    [header.as_bytes().as_slice(), &block(content)].concat()
}

/// The media type of a layer is often wrong, so Ion reads a layer by its first bytes.
#[test]
fn layers_are_read_by_what_they_are_and_not_by_what_is_said_of_them() {
    let home = Home::new();
    let plain =
        |name: &str| [entry(&head(EntryType::Regular, name, 5), b"data\n"), vec![0; 1024]].concat();
    let layout = Image::of("exit 0").write(&home, "said");
    with_layer(&layout, "", &gzip(&plain("gzip-called-tar")));
    with_layer(&layout, "+gzip", &plain("tar-called-gzip"));
    with_layer(&layout, "+gzip", &zstd::encode_all(&plain("zstd-called-gzip")[..], 1).unwrap());
    with_layer(&layout, "+zstd", &gzip(&plain("gzip-called-zstd")));
    with_layer(&layout, "+unheard-of", &plain("tar-called-anything"));
    // Some tools write a skippable frame before the others.
    let frame = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let framed = [frame, zstd::encode_all(&plain("zstd-framed")[..], 1).unwrap()].concat();
    with_layer(&layout, "+zstd", &framed);
    let all = "cat /gzip-called-tar /tar-called-gzip /zstd-called-gzip /gzip-called-zstd /tar-called-anything /zstd-framed";
    let ran = in_image(&home, "said", all).well();
    assert_eq!(ran.stderr.matches("| data\n").count(), 6, "{ran:#?}");
    refused(&home, "bzip2", b"BZh91AY", &["bzip2", "--dest-compress-format gzip"]);
    refused(&home, "xz", b"\xfd7zXZ\0", &["xz", "--dest-compress-format gzip"]);
    here(home.path(), &["tar", "-czf", "image.tar.gz", "-C", "said", "."]);
    pipeline(
        &home,
        "  m: {on: [x], image: 'oci-archive:image.tar.gz', run: [cat, /zstd-framed]}\n",
    );
    assert!(run(&home, "m").well().stderr.contains("| data"));
}
