//! Images: each is found, checked and unpacked once, and then shared by all jobs of this home.
//!
//! # How it works
//! An image that is a folder in the OCI layout is read in place. Any other image becomes such a
//! folder first: an archive is untarred, and an image in a registry, or in Docker's own format, is
//! copied by `skopeo`. Ion unpacks the layers itself. That takes a few hundred lines, and the
//! kernel (`openat2`) does the one part that must not be wrong: where a path may lead.
//!
//! # Guarantees
//! Every folder `images/<digest>` is whole: one process at a time unpacks an image beside it, syncs
//! it and renames it. Every blob is compared with its digest. Nothing of an image is written
//! outside of its folder.
//!
//! A process locks the image that it uses, so that the image stays: `collect` removes only images
//! that no process has used for long.
//!
//! # After a crash
//! A half unpacked image stays as `<digest>.part` until the same image is asked for again, or until
//! `collect` removes it.

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
use ion_model::errors::error_chain;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::collect::{Collected, collect};
use self::fetch::{Fetch, FetchLock};
use self::layout::{ImageLayout, ImageManifest};
pub(super) use self::unpack::{HOST_FILES, USERS};

/// The suffixes of the files beside an unpacked image: its lock, and the folder that is being
/// unpacked or removed.
const LOCK: &str = "lock";
const PART: &str = "part";

/// The file of an image's configuration, beside its files; it is written when these are whole. Its
/// number changes when unpacking changes: an image that an older version unpacked is unpacked
/// again.
const CONFIG: &str = "config-3.json";

/// The folder of notes: the digest of each reference.
const REFS: &str = "refs";

/// How often an image is looked for that other processes make or remove at the same time, and the
/// wait between two tries.
const MAKE_TRIES: usize = 1000;
const MAKE_WAIT: Duration = Duration::from_millis(20);

/// The prefix of a folder into which an image is being fetched.
const FETCH: &str = "fetch-";

/// The reason why an image cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the image or of Ion cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The image is not valid, or is too large, or its bytes do not match their digests.
    #[error("{0}")]
    Wrong(String),
    /// Another program has to fetch the image, and could not.
    #[error("{0}")]
    NotFetched(String),
}

impl ImageError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Who owns the files of an unpacked image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageOwners {
    /// The image's users and groups, each shifted by this number: they match the containers' user
    /// namespaces.
    From(u32),
    /// The user who unpacks the image.
    Itself(u32),
}

/// An image's configuration of the programs that run from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// The user they run as.
    pub user: Option<String>,
    /// The environment variables, each as `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program.
    pub entrypoint: Option<Vec<String>>,
    /// The program's default arguments.
    pub cmd: Option<Vec<String>>,
    /// The folder that the program starts in.
    pub working_dir: Option<String>,
    /// Folders that the program may write to.
    pub volumes: Option<BTreeMap<String, Value>>,
    /// The signal that asks the program to end.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// Returns the folder that its programs start in.
    pub(super) fn working_folder(&self) -> PathBuf {
        Path::new("/").join(self.working_dir.as_deref().unwrap_or_default())
    }
}

/// An unpacked image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The root of its files.
    pub rootfs: PathBuf,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its lock: the image is not removed while this is open.
    pub used: Arc<File>,
}

/// The images of a home.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    owners: ImageOwners,
    fetch: Fetch,
}

impl Images {
    /// Returns the images below `home`; `env` is the environment of the registry client.
    pub fn new(home: &Path, owners: ImageOwners, env: Vec<(String, String)>) -> Self {
        Self { folder: images_folder(home), owners, fetch: Fetch::new(env) }
    }

    /// Returns an image. Fetches and unpacks it first if that has not been done. `say` receives a
    /// line about each wait.
    ///
    /// # Errors
    /// If the image is missing, does not match its digests, or would write outside of its folder.
    pub async fn get(
        self: &Arc<Self>,
        reference: &ImageReference,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.find_unpacked(reference).await? {
            return Ok(image);
        }
        let Some(note) = self.note_path(reference)? else {
            let (this, reference) = (self.clone(), reference.clone());
            return run_blocking(move || Ok(this.unpack_layout(&reference, None)?.0)).await;
        };
        let mut turn = FetchLock::take(&note, reference, say).await?;
        if let Some(image) = self.find_unpacked(reference).await? {
            return Ok(image);
        }
        if let Some(words) = turn.previous_failure(&note) {
            return Err(ImageError::NotFetched(words));
        }
        turn.write_failure("");
        let brought = self.fetch_and_unpack(reference, note, say).await;
        if let Err(error) = &brought {
            turn.write_failure(&error_chain(error));
        }
        brought
    }

    /// Fetches and unpacks an image, and notes its digest.
    async fn fetch_and_unpack(
        self: &Arc<Self>,
        reference: &ImageReference,
        note: PathBuf,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Image, ImageError> {
        // The fetched files are removed once they are unpacked.
        let folder = self.folder.clone();
        let brought = run_blocking(move || {
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
                run_blocking(move || unpack::layout_archive(&file, &to)).await?;
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
        run_blocking(move || {
            let (image, digest) = this.unpack_layout(&reference, Some(brought.path()))?;
            write_atomically(&note, digest.as_bytes()).map_err(ImageError::file(&note))?;
            Ok(image)
        })
        .await
    }

    /// Returns an image of a layout, unpacked, and its digest. The layout is the one that the
    /// reference names, or the one that was fetched to `brought`.
    fn unpack_layout(
        &self,
        reference: &ImageReference,
        brought: Option<&Path>,
    ) -> Result<(Image, String), ImageError> {
        let (folder, tag) = match (reference, brought) {
            (ImageReference::Layout { folder, tag }, _) => (&**folder, tag.as_deref()),
            (_, Some(brought)) => (brought, None),
            (_, None) => return Err(ImageError::Wrong(format!("image {reference} is not here"))),
        };
        let layout = ImageLayout::open(folder)?;
        let manifest = layout.find_manifest(tag)?;
        Ok((self.find_or_make(&layout, &manifest)?, manifest.digest))
    }

    async fn find_unpacked(
        self: &Arc<Self>,
        reference: &ImageReference,
    ) -> Result<Option<Image>, ImageError> {
        let (this, wanted) = (self.clone(), reference.clone());
        run_blocking(move || this.find_unpacked_blocking(&wanted)).await
    }

    /// Returns the image, if what its reference names now has been unpacked.
    fn find_unpacked_blocking(
        &self,
        reference: &ImageReference,
    ) -> Result<Option<Image>, ImageError> {
        let digest = match (reference, self.note_path(reference)?) {
            (ImageReference::Layout { folder, tag }, _) => {
                ImageLayout::open(folder)?.find_manifest(tag.as_deref())?.digest
            }
            (_, Some(note)) => match std::fs::read_to_string(note) {
                Ok(digest) => digest,
                Err(_) => return Ok(None),
            },
            (_, None) => return Ok(None),
        };
        lock_for_use(&self.image_folder(&digest))
    }

    /// Returns the file that notes the digest of a reference, unless the reference is a layout,
    /// whose digest can be read at once. An archive is known by its inode, size and modification
    /// time; a name in a registry keeps the image that it had when it was first fetched.
    fn note_path(&self, reference: &ImageReference) -> Result<Option<PathBuf>, ImageError> {
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

    fn image_folder(&self, digest: &str) -> PathBuf {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        match self.owners {
            ImageOwners::From(_) => self.folder.join(digest),
            // Another user of the same home cannot use files that this user owns.
            ImageOwners::Itself(uid) => self.folder.join(format!("{digest}-{uid}")),
        }
    }

    /// Returns an image. Unpacks it unless another process has.
    fn find_or_make(
        &self,
        layout: &ImageLayout,
        manifest: &ImageManifest,
    ) -> Result<Image, ImageError> {
        let place = self.image_folder(&manifest.digest);
        std::fs::create_dir_all(&self.folder).map_err(ImageError::file(&self.folder))?;
        for _ in 0..MAKE_TRIES {
            if let Some(image) = lock_for_use(&place)? {
                return Ok(image);
            }
            if let Some(_held) = lock_if_unused(&place)? {
                if read_config(&place)?.is_none() {
                    self.make(layout, manifest, &place)?;
                }
                // This lock ends here, and the image is locked again for use in the next round:
                // waiting processes, or `collect`, may get it first.
                continue;
            }
            // Wait for the process that unpacks or removes it now.
            drop(take_lock(&place, FlockOperation::LockShared)?);
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

    /// Unpacks an image; the caller holds its lock.
    fn make(
        &self,
        layout: &ImageLayout,
        manifest: &ImageManifest,
        place: &Path,
    ) -> Result<(), ImageError> {
        let part = with_suffix(place, PART);
        let remove = |folder: &Path| match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::file(folder)(error))
            }
            _ => Ok(()),
        };
        remove(&part)?;
        let unpacked = self.unpack_layers(layout, manifest, &part);
        if unpacked.is_err() {
            let _ = remove(&part);
        }
        unpacked?;
        // An image that an older Ion unpacked, and that no process uses.
        remove(place)?;
        let placed =
            std::fs::rename(&part, place).and_then(|()| File::open(&self.folder)?.sync_all());
        placed.map_err(ImageError::file(place))
    }

    fn unpack_layers(
        &self,
        layout: &ImageLayout,
        manifest: &ImageManifest,
        part: &Path,
    ) -> Result<(), ImageError> {
        let rootfs = part.join("rootfs");
        std::fs::create_dir_all(&rootfs).map_err(ImageError::file(&rootfs))?;
        let config = layout.read_config(manifest)?;
        let mut root = unpack::ImageRoot::new(&rootfs, self.owners)?;
        for layer in &manifest.layers {
            root.add_layer(layout, layer)?;
        }
        root.finish(&config)?;
        let file = part.join(CONFIG);
        let text =
            serde_json::to_vec(&config).map_err(|error| ImageError::Wrong(error.to_string()))?;
        let written = std::fs::write(&file, text).and_then(|()| {
            // Everything is synced: a rename alone would name files that a power cut leaves empty.
            rustix::fs::syncfs(File::open(part)?).map_err(io::Error::from)
        });
        written.map_err(ImageError::file(&file))
    }
}

/// Returns the folder of a home's images.
fn images_folder(home: &Path) -> PathBuf {
    home.join("images")
}

fn with_suffix(place: &Path, ending: &str) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!("{name}.{ending}"))
}

/// Opens and locks the lock file of an image. The lock is held until the file is dropped. The
/// file's modification time is when the image was last used.
fn take_lock(place: &Path, how: FlockOperation) -> Result<File, ImageError> {
    let path = with_suffix(place, LOCK);
    let failed = || ImageError::file(&path);
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed())?;
        flock(&file, how).map_err(|error| failed()(error.into()))?;
        // The process that removes an image removes its lock file too, and this may be a removed
        // one.
        let (held, named) = (file.metadata().map_err(failed())?, std::fs::metadata(&path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// Locks an image exclusively, if no process uses it or is about to: the holder of this lock may
/// make the image, and remove it.
fn lock_if_unused(place: &Path) -> Result<Option<File>, ImageError> {
    match take_lock(place, FlockOperation::NonBlockingLockExclusive) {
        Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
            Ok(None)
        }
        held => held.map(Some),
    }
}

/// Returns an unpacked image, locked so that it is not removed while it is used; none if the image
/// has not been unpacked.
fn lock_for_use(place: &Path) -> Result<Option<Image>, ImageError> {
    if !place.exists() {
        return Ok(None);
    }
    let lock = take_lock(place, FlockOperation::LockShared)?;
    lock.set_modified(SystemTime::now()).map_err(ImageError::file(place))?;
    let config = read_config(place)?;
    Ok(config.map(|config| Image { rootfs: place.join("rootfs"), config, used: Arc::new(lock) }))
}

fn read_config(place: &Path) -> Result<Option<ImageConfig>, ImageError> {
    let file = place.join(CONFIG);
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::file(&file)(error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| ImageError::file(&file)(error.into()))
}

/// Returns the file of the program in the folders of `path`; none if it is in none of them.
pub(super) fn find_in_path(path: &str, program: &str) -> Option<PathBuf> {
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file())
}

fn write_atomically(to: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, text)?;
    file.persist(to)?;
    Ok(())
}

/// Runs work on the disk in a blocking thread. All such work of this module goes through here.
/// Unlike [`ion_system::run_blocking`], it turns a panic of the work into an [`ImageError`].
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(ImageError::Wrong(format!("unpacking broke off: {}", error_chain(&error))))
    })
}
