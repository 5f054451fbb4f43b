//! The OCI image layout: a folder of blobs, each named by its digest, and an index that says what
//! they are.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ion_model::checksum::hex;
use ion_model::text::{QUOTE_MAX, REASON_MAX, cut_owned, quote};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{ImageConfig, ImageError};

/// The most bytes of an index, a manifest or a configuration: they are read whole. Registries allow
/// 4 MiB.
const DOCUMENT_MAX: u64 = 4 << 20;

/// The most nested indexes: one for platforms, one for what a tool adds.
const DEPTH_MAX: usize = 3;

/// The annotation of an index that holds the tag of an image.
const TAG: &str = "org.opencontainers.image.ref.name";

/// A folder in the layout. Its content comes from others: each file is opened below the folder,
/// through no link that leads out of it, and is read only if it is a regular file, because a pipe
/// would never end.
pub(super) struct ImageLayout {
    folder: PathBuf,
    root: OwnedFd,
}

/// The description of a blob, and the digest and size to check it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlobDescriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    platform: Option<ImagePlatform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ImagePlatform {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
struct ImageIndex {
    manifests: Vec<BlobDescriptor>,
}

#[derive(Deserialize)]
struct ManifestDocument {
    config: BlobDescriptor,
    layers: Vec<BlobDescriptor>,
}

#[derive(Deserialize)]
struct ImageConfiguration {
    #[serde(default)]
    config: Option<ImageConfig>,
}

/// One image of a layout.
pub(super) struct ImageManifest {
    /// The digest that identifies the image.
    pub(super) digest: String,
    config: BlobDescriptor,
    /// The layers, from the lowest to the highest.
    pub(super) layers: Vec<BlobDescriptor>,
}

impl ImagePlatform {
    fn to_text(&self) -> String {
        let Self { architecture, os, variant } = self;
        if variant.is_empty() {
            format!("{os}/{architecture}")
        } else {
            format!("{os}/{architecture}/{variant}")
        }
    }
}

/// Returns this processor's level among the variants of amd64: each level has one more set of
/// instructions.
#[cfg(target_arch = "x86_64")]
fn processor_level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let second = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let third = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let third = third && has!("lzcnt") && has!("movbe");
    let fourth = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
    let fourth = fourth && has!("avx512vl");
    [second, third, fourth].into_iter().take_while(|has| *has).fold(1, |level, _| level + 1)
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_level() -> u32 {
    1
}

/// Returns the rank of a variant among those that a processor can run, the lowest being the best;
/// none if the processor cannot run it. The variant for all processors comes first, so that all
/// machines of an architecture take the same one, and then the one that uses the most of this
/// processor.
fn variant_rank(architecture: &str, variant: &str, level: u32) -> Option<u32> {
    match (architecture, variant) {
        (_, "") | ("amd64", "v1") | ("arm64", "v8") => Some(0),
        ("amd64", variant) => {
            let needs: u32 = variant.strip_prefix('v')?.parse().ok()?;
            level.checked_sub(needs).map(|unused| unused + 1)
        }
        ("arm64", _) => None,
        _ => Some(1),
    }
}

impl ImageLayout {
    pub(super) fn open(folder: &Path) -> Result<Self, ImageError> {
        let no_image = || {
            ImageError::Wrong(format!(
                "{} is no image: it has no file oci-layout, as `skopeo copy ... oci:FOLDER` makes",
                folder.display()
            ))
        };
        let root = match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_image()),
            root => root.map_err(ImageError::file(folder))?,
        };
        let layout = Self { folder: folder.to_owned(), root: root.into() };
        match layout.open_file("oci-layout") {
            Ok(_) => Ok(layout),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(no_image()),
            Err(error) => Err(ImageError::file(&folder.join("oci-layout"))(error)),
        }
    }

    /// Opens a regular file below the folder.
    fn open_file(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(&self.root, path, flags, Mode::empty(), resolve)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
        }
    }

    /// Returns the image with this tag, for this kind of machine.
    pub(super) fn find_manifest(&self, tag: Option<&str>) -> Result<ImageManifest, ImageError> {
        let text = self.open_file("index.json").and_then(|file| {
            let mut text = Vec::new();
            file.take(DOCUMENT_MAX).read_to_end(&mut text).map(|_| text)
        });
        let text = text.map_err(ImageError::file(&self.folder.join("index.json")))?;
        let index: ImageIndex = serde_json::from_slice(&text).map_err(|error| {
            self.wrong_image(format!("its index.json is not a valid index: {error}"))
        })?;
        let tags = || index.manifests.iter().filter_map(|one| one.annotations.get(TAG));
        let mut chosen = match tag {
            None => index.manifests.clone(),
            Some(tag) => {
                let tagged = |one: &&BlobDescriptor| {
                    one.annotations.get(TAG).is_some_and(|name| name == tag)
                };
                index.manifests.iter().filter(tagged).cloned().collect()
            }
        };
        let known =
            || cut_owned(tags().map(String::as_str).collect::<Vec<_>>().join(", "), QUOTE_MAX);
        for _ in 0..DEPTH_MAX {
            let one = match self.choose_for_machine(chosen)? {
                Some(one) => one,
                None if tag.is_some() => {
                    return Err(self.wrong_image(format!(
                        "it has no tag {:?}; it has: {}",
                        tag.unwrap_or_default(),
                        known()
                    )));
                }
                None => {
                    return Err(self.wrong_image(format!(
                        "it holds several images; say which, with its tag: {}",
                        known()
                    )));
                }
            };
            if one.media_type.ends_with("image.index.v1+json")
                || one.media_type.ends_with("manifest.list.v2+json")
            {
                chosen = self.read_document::<ImageIndex>(&one)?.manifests;
                continue;
            }
            let ManifestDocument { config, layers } = self.read_document(&one)?;
            return Ok(ImageManifest { digest: one.digest, config, layers });
        }
        Err(self.wrong_image("its indexes lie too deep".into()))
    }

    /// Returns the image that runs on this machine; none if several could be meant.
    fn choose_for_machine(
        &self,
        mut found: Vec<BlobDescriptor>,
    ) -> Result<Option<BlobDescriptor>, ImageError> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let level = processor_level();
        let rank = |one: &BlobDescriptor| match &one.platform {
            None => Some(0),
            Some(p) if p.architecture == architecture && p.os == "linux" => {
                variant_rank(architecture, &p.variant, level)
            }
            Some(_) => None,
        };
        let all: Vec<String> =
            found.iter().filter_map(|one| Some(one.platform.as_ref()?.to_text())).collect();
        let any = !found.is_empty();
        found.retain(|one| rank(one).is_some());
        if any && found.is_empty() {
            let all = cut_owned(all.join(", "), QUOTE_MAX);
            return Err(self.wrong_image(format!(
                "it has nothing for linux/{architecture} that this processor can run; it has: {all}"
            )));
        }
        // The first of several for one platform is the preferred one; entries without platforms are
        // different images.
        let same = found.len() == 1 || found.iter().all(|one| one.platform.is_some());
        Ok(found.into_iter().min_by_key(rank).filter(|_| same))
    }

    /// Returns the image's configuration of its programs.
    pub(super) fn read_config(&self, manifest: &ImageManifest) -> Result<ImageConfig, ImageError> {
        self.read_document::<ImageConfiguration>(&manifest.config)
            .map(|configuration| configuration.config.unwrap_or_default())
    }

    fn read_document<T: DeserializeOwned>(
        &self,
        descriptor: &BlobDescriptor,
    ) -> Result<T, ImageError> {
        if descriptor.size > DOCUMENT_MAX {
            let digest = quote(&descriptor.digest);
            return Err(self.wrong_image(format!("{digest} has more than {DOCUMENT_MAX} bytes")));
        }
        let mut blob = self.open_blob(descriptor)?;
        let mut text = Vec::new();
        blob.read_to_end(&mut text).map_err(ImageError::file(&self.folder))?;
        blob.check(self)?;
        serde_json::from_slice(&text)
            .map_err(|error| self.wrong_image(format!("{}: {error}", descriptor.digest)))
    }

    /// Opens a blob. The caller reads it to its end and checks it.
    pub(super) fn open_blob(&self, descriptor: &BlobDescriptor) -> Result<LayerBlob, ImageError> {
        let digest = descriptor.digest.strip_prefix("sha256:").filter(|digest| {
            digest.len() == 64
                && digest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        });
        let digest = digest.ok_or_else(|| {
            self.wrong_image(format!("{} is no sha256 digest", quote(&descriptor.digest)))
        })?;
        let path = format!("blobs/sha256/{digest}");
        let file = self.open_file(&path).map_err(ImageError::file(&self.folder.join(&path)))?;
        Ok(LayerBlob {
            file: file.take(descriptor.size.saturating_add(1)),
            hash: Sha256::new(),
            read: 0,
            descriptor: descriptor.clone(),
        })
    }

    pub(super) fn wrong_image(&self, reason: String) -> ImageError {
        let reason = cut_owned(reason, REASON_MAX);
        ImageError::Wrong(format!("image {}: {reason}", self.folder.display()))
    }
}

/// A blob that is being read.
pub(super) struct LayerBlob {
    file: io::Take<File>,
    hash: Sha256,
    read: u64,
    descriptor: BlobDescriptor,
}

impl Read for LayerBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.read += length as u64;
        Ok(length)
    }
}

impl LayerBlob {
    /// Reads the rest, and compares the whole blob with its digest and size.
    pub(super) fn check(mut self, layout: &ImageLayout) -> Result<(), ImageError> {
        io::copy(&mut self, &mut io::sink()).map_err(ImageError::file(&layout.folder))?;
        let found = format!("sha256:{}", hex(&self.hash.finalize()));
        let BlobDescriptor { digest, size, .. } = &self.descriptor;
        if self.read == *size && found == *digest {
            return Ok(());
        }
        Err(layout.wrong_image(format!(
            "its blob {digest} is damaged: {} bytes of {size}, digest {found}",
            self.read
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C7.
    #[test]
    fn of_variants_the_one_for_all_processors_comes_first() {
        let order = |level| {
            let mut all = vec!["v4", "v2", "", "v3", "v9", "x"];
            all.retain(|variant| variant_rank("amd64", variant, level).is_some());
            all.sort_by_key(|variant| variant_rank("amd64", variant, level));
            all
        };
        assert_eq!(order(4), ["", "v4", "v3", "v2"]);
        assert_eq!(order(2), ["", "v2"]);
        assert_eq!(order(1), [""]);
        assert!((1..=4).contains(&processor_level()));
        assert_eq!(
            (variant_rank("arm64", "v8", 1), variant_rank("arm64", "v9", 1)),
            (Some(0), None)
        );
    }
}
