//! Images: found, checked and unpacked once, then shared by all jobs of this home.
//!
//! # How it works
//! An image that is a folder in the OCI layout is read where it is. Any other becomes one first: an
//! archive is untarred, and what lies in a registry, or in Docker's own format, is copied by
//! `skopeo`. Its layers are unpacked by ourselves: that is a few hundred lines, and the one part of
//! it that must not be wrong, where a path may lead, is the kernel's (`openat2`).
//!
//! # Guarantees
//! What is below `images/<digest>` is whole: it was unpacked beside it, synced and renamed, by one
//! process at a time. Every blob was compared with its digest. Nothing of an image was written
//! outside of its folder.
//!
//! An image that some process uses is locked by it, and stays: `collect` removes those that nobody
//! has used for long.
//!
//! # After a crash
//! What was begun stays as `<digest>.part` until the same image is asked for again, or `collect`
//! comes by.

mod archive;
mod collect;
mod fetch;
mod layout;
mod unpack;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ion_jobs::pipeline::ImageReference;
use ion_model::checksum::hex;
use ion_model::errors::chain;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::collect::{Collected, collect};
use self::fetch::{Fetch, Turn};
use self::layout::{Layout, Manifest};
pub(super) use self::unpack::{HOST_FILES, USERS};

/// What is beside an unpacked image: its lock, and what is being unpacked or removed.
const LOCK: &str = "lock";
const PART: &str = "part";

/// What an image says, beside its files; written when these are whole. The number changes with what
/// unpacking makes of an image: one that was unpacked before is unpacked anew.
const CONFIG: &str = "config-2.json";

/// Where the digests of references are noted.
const REFS: &str = "refs";

/// How often an image is looked for that others make or remove at the same time, and the wait
/// before each but the first.
const MAKE_TRIES: usize = 1000;
const MAKE_WAIT: Duration = Duration::from_millis(20);

/// What is being brought here.
const FETCH: &str = "fetch-";

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its files or ours cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It says what no image says, or is too large, or its bytes are not those that its digests
    /// name.
    #[error("{0}")]
    Wrong(String),
    /// It lies where only another program reaches.
    #[error("{0}")]
    NotFetched(String),
}

impl ImageError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Whose an image's files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The image's users and groups, each so many numbers further: those of the containers' user
    /// namespaces.
    From(u32),
    /// The user who unpacks.
    Itself(u32),
}

/// What an image says of the programs that run from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// As whom.
    pub user: Option<String>,
    /// The environment, each as `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program.
    pub entrypoint: Option<Vec<String>>,
    /// Its usual arguments.
    pub cmd: Option<Vec<String>>,
    /// The folder it starts in.
    pub working_dir: Option<String>,
    /// Folders that it may write to.
    pub volumes: Option<BTreeMap<String, Value>>,
    /// What asks it to end.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// The folder its programs start in.
    pub(super) fn folder(&self) -> PathBuf {
        Path::new("/").join(self.working_dir.as_deref().unwrap_or_default())
    }
}

/// An unpacked image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The root of its files.
    pub rootfs: PathBuf,
    /// What it says.
    pub config: ImageConfig,
    /// Its lock: it is not removed while anybody has this.
    pub used: Arc<File>,
}

/// The images of a home.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    owners: Owners,
    fetch: Fetch,
}

impl Images {
    /// Those below `home`; `env` is the environment of the registries' client.
    pub fn new(home: &Path, owners: Owners, env: Vec<(String, String)>) -> Self {
        Self { folder: folder_of(home), owners, fetch: Fetch::new(env) }
    }

    /// An image, fetched and unpacked if it was not yet. What it is waited for is said to `say`.
    ///
    /// # Errors
    /// When it is not there, is not what its digests say, or would write where it must not.
    pub async fn get(
        self: &Arc<Self>,
        reference: &ImageReference,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.at_hand_soon(reference).await? {
            return Ok(image);
        }
        let Some(note) = self.note(reference)? else {
            let (this, reference) = (self.clone(), reference.clone());
            return blocking(move || Ok(this.unpacked(&reference, None)?.0)).await;
        };
        let mut turn = Turn::take(&note, reference, say).await?;
        if let Some(image) = self.at_hand_soon(reference).await? {
            return Ok(image);
        }
        if let Some(words) = turn.failure(&note) {
            return Err(ImageError::NotFetched(words));
        }
        turn.leave("");
        let brought = self.bring(reference, note, say).await;
        if let Err(error) = &brought {
            turn.leave(&chain(error));
        }
        brought
    }

    /// Fetches and unpacks an image, and notes which one it is.
    async fn bring(
        self: &Arc<Self>,
        reference: &ImageReference,
        note: PathBuf,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Image, ImageError> {
        // What is brought here goes when it has been unpacked.
        let folder = self.folder.clone();
        let brought = blocking(move || {
            std::fs::create_dir_all(&folder).map_err(ImageError::file(&folder))?;
            tempfile::Builder::new()
                .prefix(FETCH)
                .tempdir_in(&folder)
                .map_err(ImageError::file(&folder))
        });
        let brought = brought.await?;
        match reference {
            ImageReference::Layout { .. } => {}
            ImageReference::OciArchive(file) => {
                let (file, to) = (file.clone(), brought.path().to_owned());
                blocking(move || unpack::archive(&file, &to)).await?;
            }
            ImageReference::DockerArchive(file) => {
                let file = file.display();
                self.fetch
                    .copy(&format!("docker-archive:{file}"), reference, brought.path())
                    .await?;
            }
            ImageReference::Registry(name) => {
                say(&format!("fetches image {name}"));
                self.fetch.copy(&format!("docker://{name}"), reference, brought.path()).await?;
            }
        }
        let (this, reference) = (self.clone(), reference.clone());
        blocking(move || {
            let (image, digest) = this.unpacked(&reference, Some(brought.path()))?;
            write_whole(&note, digest.as_bytes()).map_err(ImageError::file(&note))?;
            Ok(image)
        })
        .await
    }

    /// An image of a layout, and its digest: the one that its reference names, or the one where it
    /// was brought.
    fn unpacked(
        &self,
        reference: &ImageReference,
        brought: Option<&Path>,
    ) -> Result<(Image, String), ImageError> {
        let (folder, tag) = match (reference, brought) {
            (ImageReference::Layout { folder, tag }, _) => (&**folder, tag.as_deref()),
            (_, Some(brought)) => (brought, None),
            (_, None) => return Err(ImageError::Wrong(format!("image {reference} is not here"))),
        };
        let layout = Layout::open(folder)?;
        let manifest = layout.manifest(tag)?;
        Ok((self.made(&layout, &manifest)?, manifest.digest))
    }

    async fn at_hand_soon(
        self: &Arc<Self>,
        reference: &ImageReference,
    ) -> Result<Option<Image>, ImageError> {
        let (this, wanted) = (self.clone(), reference.clone());
        blocking(move || this.at_hand(&wanted)).await
    }

    /// The image, if what its reference names now has been unpacked.
    fn at_hand(&self, reference: &ImageReference) -> Result<Option<Image>, ImageError> {
        let digest = match (reference, self.note(reference)?) {
            (ImageReference::Layout { folder, tag }, _) => {
                Layout::open(folder)?.manifest(tag.as_deref())?.digest
            }
            (_, Some(note)) => match std::fs::read_to_string(note) {
                Ok(digest) => digest,
                Err(_) => return Ok(None),
            },
            (_, None) => return Ok(None),
        };
        used(&self.place(&digest))
    }

    /// Where an image's digest is noted that only another program could tell. What a file holds is
    /// known by its time and size; a name in a registry keeps the image that it was when it was
    /// first asked for.
    fn note(&self, reference: &ImageReference) -> Result<Option<PathBuf>, ImageError> {
        let key = match reference {
            ImageReference::Layout { .. } => return Ok(None),
            ImageReference::Registry(name) => name.clone(),
            ImageReference::OciArchive(file) | ImageReference::DockerArchive(file) => {
                let metadata = std::fs::metadata(file).map_err(ImageError::file(file))?;
                let (mtime, nanos) = (metadata.mtime(), metadata.mtime_nsec());
                format!("{reference} {} {} {mtime}.{nanos}", metadata.ino(), metadata.len())
            }
        };
        Ok(Some(self.folder.join(REFS).join(hex(&Sha256::digest(key)))))
    }

    fn place(&self, digest: &str) -> PathBuf {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        match self.owners {
            Owners::From(_) => self.folder.join(digest),
            // Another user of the same home cannot use files that are this one's.
            Owners::Itself(uid) => self.folder.join(format!("{digest}-{uid}")),
        }
    }

    /// An image, unpacked unless another process has.
    fn made(&self, layout: &Layout, manifest: &Manifest) -> Result<Image, ImageError> {
        let place = self.place(&manifest.digest);
        std::fs::create_dir_all(&self.folder).map_err(ImageError::file(&self.folder))?;
        for _ in 0..MAKE_TRIES {
            if let Some(image) = used(&place)? {
                return Ok(image);
            }
            if let Some(_held) = unused(&place)? {
                if config_of(&place)?.is_none() {
                    self.make(layout, manifest, &place)?;
                }
                // Not from here on to its use: who waits for it has it first, or `collect`.
                continue;
            }
            // Whoever unpacks it now, or removes it, is waited for.
            drop(locked(&place, FlockOperation::LockShared)?);
            #[expect(
                clippy::disallowed_methods,
                reason = "a blocking thread; others may be about to unpack it"
            )]
            std::thread::sleep(MAKE_WAIT);
        }
        let words = format!(
            "{} is not there, and something that runs from it holds its lock",
            place.display()
        );
        Err(ImageError::Wrong(words))
    }

    /// Unpacks an image, whose lock is held.
    fn make(&self, layout: &Layout, manifest: &Manifest, place: &Path) -> Result<(), ImageError> {
        let part = beside(place, PART);
        let remove = |folder: &Path| match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::file(folder)(error))
            }
            _ => Ok(()),
        };
        remove(&part)?;
        let unpacked = self.unpack(layout, manifest, &part);
        if unpacked.is_err() {
            let _ = remove(&part);
        }
        unpacked?;
        // Of an older Ion, and not used by anybody.
        remove(place)?;
        let placed =
            std::fs::rename(&part, place).and_then(|()| File::open(&self.folder)?.sync_all());
        placed.map_err(ImageError::file(place))
    }

    fn unpack(&self, layout: &Layout, manifest: &Manifest, part: &Path) -> Result<(), ImageError> {
        let rootfs = part.join("rootfs");
        std::fs::create_dir_all(&rootfs).map_err(ImageError::file(&rootfs))?;
        let config = layout.config(manifest)?;
        let mut root = unpack::Root::new(&rootfs, self.owners)?;
        for layer in &manifest.layers {
            root.add_layer(layout, layer)?;
        }
        root.finish(&config)?;
        let file = part.join(CONFIG);
        let text =
            serde_json::to_vec(&config).map_err(|error| ImageError::Wrong(error.to_string()))?;
        let written = std::fs::write(&file, text).and_then(|()| {
            // All of it, as a rename alone would name files that a power cut leaves empty.
            rustix::fs::syncfs(File::open(part)?).map_err(io::Error::from)
        });
        written.map_err(ImageError::file(&file))
    }
}

/// Where a home's images lie.
fn folder_of(home: &Path) -> PathBuf {
    home.join("images")
}

fn beside(place: &Path, ending: &str) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!("{name}.{ending}"))
}

/// The lock of an unpacked image, held so until it is dropped. Its time is when the image was last
/// used.
fn locked(place: &Path, how: FlockOperation) -> Result<File, ImageError> {
    let path = beside(place, LOCK);
    let failed = || ImageError::file(&path);
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed())?;
        flock(&file, how).map_err(|error| failed()(error.into()))?;
        // Whoever removes an image removes its lock too, and this may be that one.
        let (held, named) = (file.metadata().map_err(failed())?, std::fs::metadata(&path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// The same, if nobody uses the image or is about to: whoever has it alone may make the image, and
/// remove it.
fn unused(place: &Path) -> Result<Option<File>, ImageError> {
    match locked(place, FlockOperation::NonBlockingLockExclusive) {
        Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
            Ok(None)
        }
        held => held.map(Some),
    }
}

/// An unpacked image, which stays while it is used; none if there is none.
fn used(place: &Path) -> Result<Option<Image>, ImageError> {
    if !place.exists() {
        return Ok(None);
    }
    let lock = locked(place, FlockOperation::LockShared)?;
    lock.set_modified(SystemTime::now()).map_err(ImageError::file(place))?;
    let config = config_of(place)?;
    Ok(config.map(|config| Image { rootfs: place.join("rootfs"), config, used: Arc::new(lock) }))
}

fn config_of(place: &Path) -> Result<Option<ImageConfig>, ImageError> {
    let file = place.join(CONFIG);
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::file(&file)(error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| ImageError::file(&file)(error.into()))
}

/// Where a program of this name is.
pub(super) fn found_in(path: &str, program: &str) -> Option<PathBuf> {
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file())
}

fn write_whole(to: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, text)?;
    file.persist(to)?;
    Ok(())
}

/// The door of this room for work on the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(ImageError::Wrong(format!("unpacking broke off: {}", chain(&error))))
    })
}
