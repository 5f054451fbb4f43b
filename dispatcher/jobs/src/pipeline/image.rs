//! References to images, as a pipeline file contains them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageReference {
    /// `oci:<folder>[:<tag>]`: a folder in the OCI image layout.
    Layout {
        /// The folder.
        folder: PathBuf,
        /// The tag of the image; not needed if the folder has only one image.
        tag: Option<String>,
    },
    /// `oci-archive:<file>`: such a folder as a tar file.
    OciArchive(PathBuf),
    /// `docker-archive:<file>`: what `docker save` writes.
    DockerArchive(PathBuf),
    /// `name`, `name:tag` or `name@sha256:...`: an image in a registry.
    Registry(String),
}

/// Why an image cannot be the one of a module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageReferenceError {
    /// The text names no image.
    #[error(
        "{0:?} is no image; allowed: name:tag, name@sha256:..., oci:FOLDER[:TAG], \
         oci-archive:FILE, docker-archive:FILE"
    )]
    Malformed(String),
    /// The folder does not have the OCI image layout.
    #[error(
        "image {0} is not there: the folder has no file oci-layout, as `skopeo copy \
         docker://NAME oci:FOLDER` makes"
    )]
    NoLayout(ImageReference),
    /// There is no such archive.
    #[error("image {0} is not there")]
    Missing(ImageReference),
}

/// The most bytes of a reference to a registry: a name has at most 255, a tag 128, a digest 71.
const REFERENCE_MAX: usize = 500;

impl ImageReference {
    /// Reads a reference. Relative files and folders are below `directory`.
    ///
    /// # Errors
    /// [`ImageReferenceError::Malformed`], which says what is allowed.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ImageReferenceError> {
        let wrong = || ImageReferenceError::Malformed(text.to_owned());
        let file =
            |path: &str| if path.is_empty() { Err(wrong()) } else { Ok(directory.join(path)) };
        if let Some(rest) = text.strip_prefix("oci:") {
            // A tag may be a whole image name with colons, as copied images have it: the folder
            // ends at the first colon.
            let (folder, tag) = match rest.split_once(':') {
                Some((_, "")) => return Err(wrong()),
                Some((folder, tag)) => (folder, Some(tag.to_owned())),
                None => (rest, None),
            };
            return Ok(Self::Layout { folder: file(folder)?, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return Ok(Self::OciArchive(file(rest)?));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return Ok(Self::DockerArchive(file(rest)?));
        }
        // A text that a registry's client would read as an option, or as another kind of location,
        // is refused.
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        let well = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= REFERENCE_MAX
            && text.chars().all(allowed)
            && !text.contains("//")
            && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if well { Ok(Self::Registry(text.to_owned())) } else { Err(wrong()) }
    }
}

impl ImageReference {
    /// Checks that an image on this machine exists. Its content is read when a job starts.
    pub(super) fn check(&self) -> Result<(), ImageReferenceError> {
        match self {
            Self::Layout { folder, .. } if !folder.join("oci-layout").is_file() => {
                Err(ImageReferenceError::NoLayout(self.clone()))
            }
            Self::OciArchive(file) | Self::DockerArchive(file) if !file.is_file() => {
                Err(ImageReferenceError::Missing(self.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout { folder, tag: None } => write!(f, "oci:{}", folder.display()),
            Self::Layout { folder, tag: Some(tag) } => write!(f, "oci:{}:{tag}", folder.display()),
            Self::OciArchive(file) => write!(f, "oci-archive:{}", file.display()),
            Self::DockerArchive(file) => write!(f, "docker-archive:{}", file.display()),
            Self::Registry(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_say_where_an_image_is() {
        let parse = |text: &str| {
            ImageReference::parse(text, Path::new("/p")).map(|image| image.to_string())
        };
        for (text, shown) in [
            ("oci:images/tool", "oci:/p/images/tool"),
            ("oci:images/tool:v1", "oci:/p/images/tool:v1"),
            ("oci:/abs", "oci:/abs"),
            ("oci:images/tool:docker.io/x:v1", "oci:/p/images/tool:docker.io/x:v1"),
            ("oci-archive:a.tar", "oci-archive:/p/a.tar"),
            ("docker-archive:a.tar", "docker-archive:/p/a.tar"),
            ("alpine", "alpine"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("a/b@sha256:0123", "a/b@sha256:0123"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(shown));
        }
        for text in
            ["", "oci:", "oci:x:", "-x", "a b", "docker://a", "a:", "../a", "oci-archive:", "é"]
        {
            assert!(parse(text).unwrap_err().to_string().contains("allowed: name:tag"), "{text}");
        }
    }
}
