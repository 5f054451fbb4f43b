//! The versions of modules: what an attempt runs, as a short text in its record and as a document
//! that says what that was.
//!
//! # How it works
//! A version is a SHA-256 over the arguments, the content of the programs, of the arguments that
//! are files beside the pipeline and of the module's `files`, the images, the environment and the
//! names of its secrets. The
//! content of a file is read when an attempt runs it first, and again only when the file's place,
//! size or times have changed; otherwise an attempt costs one `stat` for each file. The document of
//! a version is inserted when this process runs the version first.
//!
//! # What it never does
//! Fail an attempt: a file that cannot be read is a part of the version without its content, and a
//! document that cannot be stored is stored with the next attempt. Write down a value of the
//! environment.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ion_model::checksum::hex;
use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::version::{FileDigest, ModuleVersion, ProgramRecord, VersionRecord};
use ion_plane::upload::open_regular;
use ion_stores::{
    Collection, DataPlane, Documents, Durability, FieldRange, Pages, Query, StoreError, decode,
    encode,
};
use ion_system::run_blocking;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::pipeline::{ImageReference, MODULE_FILES_MAX, Module, find_files};

/// How old the last change of a file must be for its times to tell it from the next change, in
/// milliseconds. Some filesystems count seconds: with a shorter time a change right after another
/// could be missed, with a longer one an edited program is read for more attempts.
const SETTLED_AFTER: Millis = 2000;

/// How many bytes of a file are read at once.
const PIECE: usize = 256 << 10;

/// The longest argument that may name a file, in bytes: what the kernel allows.
const PATH_BYTES_MAX: usize = 4096;

/// Finds the versions of the modules of one process.
#[derive(Debug)]
pub struct ModuleVersions {
    plane: DataPlane,
    search_path: String,
    known: Mutex<HashMap<String, Arc<KnownModule>>>,
}

impl ModuleVersions {
    /// Makes an empty set of versions, whose documents are kept in `plane`. Programs without a
    /// slash are looked up in `search_path`, which is a `PATH`.
    pub fn new(plane: DataPlane, search_path: impl Into<String>) -> Self {
        Self { plane, search_path: search_path.into(), known: Mutex::default() }
    }

    /// Returns the version that an attempt of this module runs now. Its document is stored if this
    /// process has not stored it yet.
    pub async fn current(&self, module: &Arc<Module>) -> ModuleVersion {
        let known = lock(&self.known).entry(module.name.clone()).or_default().clone();
        let (module, path, shared) = (module.clone(), self.search_path.clone(), known.clone());
        let record =
            run_blocking(move || lock(&shared.files).describe(&module, &path, clock::now())).await;
        if lock(&known.stored).as_ref() != Some(&record.version) {
            match self.store(&record).await {
                Ok(()) => *lock(&known.stored) = Some(record.version.clone()),
                Err(error) => tracing::warn!(
                    module = record.module,
                    error = error_chain(&error),
                    "a version of a module could not be stored; the next attempt tries again"
                ),
            }
        }
        record.version
    }

    async fn store(&self, record: &VersionRecord) -> Result<(), StoreError> {
        // The records of the attempts that name the version are written later. A store that keeps
        // an order loses them too if a power failure undoes this write.
        let durability = Durability::WithNextSync;
        let document = encode(record);
        self.plane.documents.insert(Collection::Plane, document, None, durability).await.map(drop)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the document of a version, if it was ever run and stored.
///
/// # Errors
/// When the documents cannot be read.
pub async fn find_version(
    documents: &dyn Documents,
    module: &str,
    version: &ModuleVersion,
) -> Result<Option<VersionRecord>, StoreError> {
    let found = documents.get(Collection::Plane, &VersionRecord::id_of(module, version)).await?;
    found.map(|found| decode(Collection::Plane, found)).transpose()
}

/// Returns pages of the documents of a module's versions, in the order of their ids.
pub fn version_pages(module: &str) -> Pages {
    let of_module = FieldRange::prefix("id", &VersionRecord::id_prefix(module));
    Pages::by_id(Query::all(Collection::Plane).within(of_module))
}

/// What is known of a module.
#[derive(Debug, Default)]
struct KnownModule {
    /// Held while files are read, so only threads that may block lock it. Attempts that begin
    /// meanwhile wait, instead of reading the same files.
    files: Mutex<KnownFiles>,
    /// The version whose document is known to be stored.
    stored: Mutex<Option<ModuleVersion>>,
}

/// The digests of the files that belonged to a module when an attempt ran last.
#[derive(Debug, Default)]
struct KnownFiles(HashMap<PathBuf, HashedFile>);

impl KnownFiles {
    /// Returns the document of the version that `module` has now.
    fn describe(&mut self, module: &Module, search_path: &str, now: Millis) -> VersionRecord {
        let former = std::mem::take(&mut self.0);
        let path = module.env.get("PATH").map_or(search_path, String::as_str);
        let mut hasher =
            FileHasher { directory: &module.directory, path, now, former, files: &mut self.0 };
        let programs = programs_of(module, &mut hasher);
        let files = hasher.matching_files(&module.files);
        let version = version_of(&programs, &files, module);
        VersionRecord {
            id: VersionRecord::id_of(&module.name, &version),
            module: module.name.clone(),
            version,
            first_seen: now,
            programs,
            files,
            env: module.env.keys().cloned().collect(),
            secrets: module.secrets.clone(),
        }
    }
}

/// Returns the programs of a module with the digests of their files.
fn programs_of(module: &Module, hasher: &mut FileHasher<'_>) -> Vec<ProgramRecord> {
    if module.links.is_empty() {
        let image = module.container.as_ref().map(|container| &container.image);
        return vec![hasher.program(None, image, module.run.clone())];
    }
    let program = |link: &crate::pipeline::Link| {
        let argv = [&link.command].into_iter().chain(&link.arguments).cloned().collect();
        // A link whose image is no reference never starts: it has no image to look at.
        let container = module.link_container(link).ok().flatten();
        hasher.program(Some(&link.name), container.as_ref().map(|container| &container.image), argv)
    };
    module.links.iter().map(program).collect()
}

/// The part of a program that its version depends on. The names of links and the places of files on
/// this machine are left out: another machine has the same version.
#[derive(Serialize)]
struct HashedProgram<'a> {
    image: Option<&'a str>,
    argv: &'a [String],
    files: Vec<(&'a str, Option<&'a str>)>,
}

/// Returns the part of files that a version depends on.
fn hashed_files(files: &[FileDigest]) -> Vec<(&str, Option<&str>)> {
    files.iter().map(|file| (file.name.as_str(), file.sha256.as_deref())).collect()
}

/// Returns the version of these programs and files with the module's environment and the names of
/// its secrets. Their values are no part of it: a rotated secret is the same program.
fn version_of(programs: &[ProgramRecord], files: &[FileDigest], module: &Module) -> ModuleVersion {
    let hashed = |program: &'_ ProgramRecord| {
        serde_json::json!(HashedProgram {
            image: program.image.as_deref(),
            argv: &program.argv,
            files: hashed_files(&program.files),
        })
    };
    let programs: Vec<_> = programs.iter().map(hashed).collect();
    let files = hashed_files(files);
    // JSON keeps the border between two texts, whatever they contain.
    let mut text = serde_json::json!({"programs": programs, "files": files, "env": module.env});
    if !module.secrets.is_empty() {
        text["secrets"] = serde_json::json!(module.secrets);
    }
    let mut digits = hex(&Sha256::digest(text.to_string()));
    digits.truncate(ModuleVersion::DIGITS);
    ModuleVersion::new(digits)
}

/// Hashes the files of one module.
struct FileHasher<'a> {
    /// The folder of the pipeline.
    directory: &'a Path,
    /// The `PATH` of its programs.
    path: &'a str,
    now: Millis,
    /// What was known before.
    former: HashMap<PathBuf, HashedFile>,
    /// What is known now.
    files: &'a mut HashMap<PathBuf, HashedFile>,
}

impl FileHasher<'_> {
    /// Returns a program with the digests of its files.
    fn program(
        &mut self,
        link: Option<&str>,
        image: Option<&ImageReference>,
        argv: Vec<String>,
    ) -> ProgramRecord {
        let files = match image {
            // The program and its files are in the image.
            Some(image) => self.image_file(image).into_iter().collect(),
            None => self.files_of(&argv),
        };
        let image = image.map(ToString::to_string);
        ProgramRecord { link: link.map(str::to_owned), image, argv, files }
    }

    /// Returns the digests of a program and of its arguments that are files beside the pipeline.
    fn files_of(&mut self, argv: &[String]) -> Vec<FileDigest> {
        let Some((program, arguments)) = argv.split_first() else { return vec![] };
        let found = match program.contains('/') {
            true => Some(self.directory.join(program)),
            false => find_in_path(program, self.path),
        };
        let mut files = vec![self.digest(program, found)];
        for argument in arguments {
            let place = place_beside(self.directory, argument).filter(|place| place.is_file());
            if place.is_some() {
                files.push(self.digest(argument, place));
            }
        }
        files
    }

    /// Returns the digests of the files that these patterns find, at most [`MODULE_FILES_MAX`].
    fn matching_files(&mut self, patterns: &[String]) -> Vec<FileDigest> {
        let mut digests = Vec::new();
        for pattern in patterns {
            let room = MODULE_FILES_MAX.saturating_sub(digests.len());
            // One more shows whether some are left out.
            let mut found = find_files(self.directory, pattern, room + 1);
            let is_cut = found.len() > room;
            found.truncate(room);
            let is_empty = found.is_empty();
            digests.extend(found.into_iter().map(|name| {
                let place = self.directory.join(&name);
                self.digest(&name, Some(place))
            }));
            if is_empty || is_cut {
                digests.push(FileDigest { name: pattern.clone(), path: None, sha256: None });
            }
        }
        digests
    }

    /// Returns the digest of the file of an image that says what is in the image; none for an image
    /// in a registry, which is known by its name.
    fn image_file(&mut self, image: &ImageReference) -> Option<FileDigest> {
        let file = match image {
            ImageReference::Layout { folder, .. } => folder.join("index.json"),
            ImageReference::OciArchive(file) | ImageReference::DockerArchive(file) => file.clone(),
            ImageReference::Registry(_) => return None,
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some(self.digest(&name, Some(file)))
    }

    /// Returns the digest of a file that the module names `name`.
    fn digest(&mut self, name: &str, place: Option<PathBuf>) -> FileDigest {
        let sha256 = place.as_ref().and_then(|place| {
            if let Some(known) = self.files.get(place) {
                return Some(known.sha256.clone());
            }
            let hashed = self.hash(place)?;
            let sha256 = hashed.sha256.clone();
            self.files.insert(place.clone(), hashed);
            Some(sha256)
        });
        let path = place.map(|place| place.display().to_string());
        FileDigest { name: name.to_owned(), path, sha256 }
    }

    /// Hashes a file unless it is as it was when it was hashed last. None if it cannot be read.
    fn hash(&mut self, place: &Path) -> Option<HashedFile> {
        let stamp = FileStamp::of(&place.metadata().ok()?);
        if let Some(known) = self.former.remove(place)
            && known.stamp == stamp
            && known.is_settled
        {
            return Some(known);
        }
        let mut file = open_regular(place).ok()?;
        let sha256 = hash_file(&mut file).ok()?;
        let since_change = self.now.saturating_sub(stamp.changed_millis());
        let is_settled = since_change.saturating_abs() >= SETTLED_AFTER;
        Some(HashedFile { stamp, is_settled, sha256 })
    }
}

/// A file and the digest of its content.
#[derive(Clone, Debug)]
struct HashedFile {
    /// The file's stamp before it was read.
    stamp: FileStamp,
    /// Whether each later change of the file changes its stamp, however coarse the filesystem's
    /// clock is.
    is_settled: bool,
    /// The SHA-256 in hexadecimal digits.
    sha256: String,
}

/// What the kernel says about a file that changes with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When the content was changed last, in seconds and nanoseconds. A program may set it.
    modified: (i64, i64),
    /// When the file was changed last, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileStamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn changed_millis(&self) -> Millis {
        self.changed.0.saturating_mul(1000).saturating_add(self.changed.1 / 1_000_000)
    }
}

fn hash_file(file: &mut File) -> io::Result<String> {
    let (mut digest, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&digest.finalize())),
            bytes => digest.update(&piece[..bytes]),
        }
    }
}

/// Returns the file of this name in the first folder of a `PATH` that has it.
fn find_in_path(program: &str, path: &str) -> Option<PathBuf> {
    let places = path.split(':').map(|folder| Path::new(folder).join(program));
    places.into_iter().find(|place| place.is_file())
}

/// Returns the place of an argument, if it can be a file below the pipeline's folder.
fn place_beside(directory: &Path, argument: &str) -> Option<PathBuf> {
    let is_name = !argument.is_empty()
        && argument.len() <= PATH_BYTES_MAX
        && !argument.starts_with('-')
        && !argument.contains(['\n', '\0']);
    let is_below = |path: &Path| {
        path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    (is_name && is_below(Path::new(argument))).then(|| directory.join(argument))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    use super::*;
    use crate::pipeline::Link;

    /// A module in a folder of its own.
    struct Bench {
        folder: tempfile::TempDir,
        module: Module,
        known: KnownFiles,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let run = ["./run.sh", "model.bin", "-v"].map(str::to_owned).to_vec();
            let mut module = Module::new("m", run, folder.path().into());
            module.env.insert("TOKEN".into(), "one".into());
            let bench = Self { folder, module, known: KnownFiles::default() };
            bench.write("run.sh", "#!/bin/sh\n");
            bench.write("model.bin", "weights");
            bench
        }

        fn write(&self, name: &str, content: &str) {
            let place = self.folder.path().join(name);
            std::fs::write(&place, content).unwrap();
            std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn version(&mut self) -> ModuleVersion {
            // An hour from now, every change is an old one.
            self.known.describe(&self.module, "/usr/bin:/bin", clock::now() + 3_600_000).version
        }
    }

    #[test]
    fn the_version_changes_with_each_part_and_with_nothing_else() {
        let mut bench = Bench::new();
        let first = bench.version();
        assert_eq!(first.as_str().len(), ModuleVersion::DIGITS);
        assert_eq!(bench.version(), first);
        let mut seen = vec![first.clone()];
        let mut expect_new = |bench: &mut Bench| {
            let version = bench.version();
            assert!(!seen.contains(&version), "{version}");
            seen.push(version);
        };
        bench.write("run.sh", "#!/bin/sh\ntrue\n");
        expect_new(&mut bench);
        bench.write("model.bin", "other weights");
        expect_new(&mut bench);
        bench.module.env.insert("TOKEN".into(), "two".into());
        expect_new(&mut bench);
        bench.module.run.push("more".into());
        expect_new(&mut bench);
        std::fs::remove_file(bench.folder.path().join("run.sh")).unwrap();
        expect_new(&mut bench);
        bench.module.files = vec!["lib/*.py".into()];
        expect_new(&mut bench);
        std::fs::create_dir(bench.folder.path().join("lib")).unwrap();
        bench.write("lib/a.py", "1");
        expect_new(&mut bench);
        bench.write("lib/a.py", "2");
        expect_new(&mut bench);
        bench.write("lib/b.py", "");
        expect_new(&mut bench);
        // Neither another name and limits nor another folder matter.
        let mut other = Bench::new();
        other.module.name = "n".into();
        other.module.retries = 7;
        assert_eq!(other.version(), first);
    }

    #[test]
    fn a_touched_file_with_the_same_content_has_the_same_version() {
        let mut bench = Bench::new();
        let first = bench.version();
        let file = File::options().write(true).open(bench.folder.path().join("run.sh")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(bench.version(), first);
    }

    #[test]
    fn a_file_is_read_again_only_if_its_stamp_changed_or_may_not_have_changed_yet() {
        let mut bench = Bench::new();
        let first = bench.version();
        // A digest that no file has shows whether the file was read.
        for known in bench.known.0.values_mut() {
            known.sha256 = "kept".into();
        }
        let kept = bench.version();
        assert_ne!(kept, first, "the files were not read");
        bench.write("run.sh", "#!/bin/sh\n");
        bench.write("model.bin", "weights");
        assert_eq!(bench.version(), first, "both were read");
        // Right after a change, a next one may leave the times as they are.
        let mut bench = Bench::new();
        let now = clock::now();
        bench.known.describe(&bench.module, "", now);
        assert!(bench.known.0.values().all(|known| !known.is_settled));
    }

    #[test]
    fn a_version_covers_every_link_and_image() {
        let mut bench = Bench::new();
        let link = |arguments: &[&str]| Link {
            name: "l".into(),
            image: String::new(),
            command: "./run.sh".into(),
            arguments: arguments.iter().map(|&one| one.to_owned()).collect(),
        };
        bench.module.links = vec![link(&[]), link(&["model.bin"])];
        let first = bench.version();
        bench.write("model.bin", "other");
        let second = bench.version();
        assert_ne!(second, first);
        bench.module.links[1].image = "registry.example/l:1".into();
        let third = bench.version();
        bench.module.links[1].image = "registry.example/l:2".into();
        assert!(![first, second, third].contains(&bench.version()));
    }

    #[tokio::test]
    async fn the_document_of_a_version_has_no_value_of_the_environment() {
        let plane = DataPlane::in_memory().unwrap();
        let versions = ModuleVersions::new(plane.clone(), "");
        let bench = Bench::new();
        let module = Arc::new(bench.module.clone());
        let version = versions.current(&module).await;
        assert_eq!(versions.current(&module).await, version);
        let documents = &*plane.documents;
        let record = find_version(documents, "m", &version).await.unwrap().unwrap();
        assert_eq!(
            (&record.env[..], &record.programs[0].argv),
            (&["TOKEN".to_owned()][..], &module.run)
        );
        let names: Vec<&str> =
            record.programs[0].files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["./run.sh", "model.bin"]);
        assert!(!encode(&record).to_string().contains("one"));
        bench.write("run.sh", "#!/bin/sh\nfalse\n");
        versions.current(&module).await;
        let page = version_pages("m").next(documents).await.unwrap().unwrap();
        assert_eq!(page.len(), 2);
    }
}
