//! Images made by a test: a folder in the OCI layout, from busybox and further layers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::Home;

/// The programs that busybox provides.
const PROGRAMS: &str = "cat cp date echo env false find grep head hostname id ip ls mkdir mount ping ps pwd readlink \
    sed sh sha256sum sleep sort stat telnet test touch tr true wc";

/// One entry of a layer.
pub enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Folder(&'a str, u32),
    Link(&'a str, &'a str),
}

/// An image: its layers and its configuration.
pub struct Image {
    layers: Vec<Vec<u8>>,
    /// Further layers as they are stored: the suffix of the media type, the bytes, and the digest
    /// of the unpacked content.
    stored: Vec<(String, Vec<u8>, String)>,
    pub config: Value,
}

/// Returns a layer as a tar file. Names are written unchanged, so that a test can write names that
/// no tool would write.
pub fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(vec![]);
    for entry in entries {
        let mut header = Header::new_gnu();
        let (name, kind, mode, content, link): (_, _, _, &[u8], _) = match entry {
            Entry::File(name, content) => (name, EntryType::Regular, 0o755, content, ""),
            Entry::Folder(name, mode) => (name, EntryType::Directory, *mode, &[], ""),
            Entry::Link(name, to) => (name, EntryType::Symlink, 0o777, &[], *to),
        };
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

impl Image {
    /// Returns an image of busybox that runs a script.
    pub fn of(script: &str) -> Self {
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
        let busybox =
            busybox.expect("busybox is missing; scripts/setup-tests.sh installs busybox-static");
        let names: Vec<String> = PROGRAMS.split(' ').map(|name| format!("bin/{name}")).collect();
        let script = format!("#!/bin/sh\n{script}\n");
        let mut entries = vec![
            Entry::Folder("bin", 0o755),
            Entry::Folder("etc", 0o755),
            Entry::File("bin/busybox", &busybox),
            Entry::File("etc/passwd", b"root:x:0:0::/:/bin/sh\nworker:x:1234:1235::/tmp:/bin/sh\n"),
            Entry::File("module", script.as_bytes()),
        ];
        entries.extend(names.iter().map(|name| Entry::Link(name, "busybox")));
        let config =
            json!({"Entrypoint": ["/module"], "Env": ["OF_IMAGE=yes"], "WorkingDir": "/etc"});
        Self { layers: vec![layer(&entries)], stored: vec![], config }
    }

    /// Adds a layer.
    pub fn with(mut self, entries: &[Entry<'_>]) -> Self {
        self.layers.push(layer(entries));
        self
    }

    /// Adds a layer on top that the test compressed itself, because it is too large to be held
    /// unpacked.
    pub fn with_compressed(mut self, layer: Vec<u8>) -> Self {
        // The layer was never unpacked, so the digest of its content is not known.
        self.stored.push(("+gzip".into(), layer, digest(b"unknown")));
        self
    }

    /// Adds a layer on top with this suffix of the media type, and the archive that it holds.
    pub fn with_stored(mut self, form: &str, layer: Vec<u8>, archive: &[u8]) -> Self {
        self.stored.push((form.into(), layer, digest(archive)));
        self
    }

    pub fn saying(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Writes the layout `name` beside the pipeline.
    pub fn write(&self, home: &Home, name: &str) -> PathBuf {
        let folder = home.path().join(name);
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |kind: &str, content: &[u8]| {
            let digest = digest(content);
            fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), content).unwrap();
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": kind, "digest": digest, "size": content.len()})
        };
        let plain =
            self.layers.iter().map(|layer| ("+gzip".to_owned(), gzip(layer), digest(layer)));
        let (layers, unpacked): (Vec<Value>, Vec<String>) = plain
            .chain(self.stored.iter().cloned())
            .map(|(form, layer, unpacked)| (blob(&format!("layer.v1.tar{form}"), &layer), unpacked))
            .unzip();
        let rootfs = json!({"type": "layers", "diff_ids": unpacked});
        let config = json!({"architecture": "amd64", "os": "linux", "config": self.config, "rootfs": rootfs});
        let config = blob("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        fs::write(
            folder.join("index.json"),
            json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
        )
        .unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        folder
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, bytes).unwrap();
    gzip.finish().unwrap()
}

/// Returns the largest file of a layout, which is a layer.
pub fn largest_blob(layout: &Path) -> PathBuf {
    let files =
        fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|file| file.metadata().unwrap().len()).unwrap()
}
