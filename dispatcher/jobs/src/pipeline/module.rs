//! One module, as the plane has it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ion_model::limits::LimitOverrides;
use ion_model::record::CommitMode;
use ion_model::source::tick_type;
use ion_model::term::Terms;
use ion_plane::address::FileUrls;
use ion_stores::encode;
use ion_stores::registry::EventSelector;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Container, ExecutorKind, ImageReference, ImageReferenceError, KubernetesFields, Link,
    LinkSettings, ParameterKind, Parameters, Pipeline, PipelineProblem, is_default,
};

/// How long a job may run unless its module sets `timeout`: the default of older Ion.
pub(super) const TIMEOUT: Duration = Duration::from_secs(600);

/// How often a failed job is retried unless its module sets `retries`. Commits are idempotent, so a
/// retry is safe; three retries outlast a store's restart.
pub(super) const RETRIES: u32 = 3;

/// The path at which a module finds its tree.
pub(super) const MOUNT_AT: &str = "/ion";

/// The environment variable in which older modules look for the path of their tree, before they try
/// [`MOUNT_AT`].
pub(super) const BASE_DIR: &str = "HANDLER_BASE_DIR";

/// The most jobs of one batch. Each job at which the module looks has a staging folder and a few
/// open files; a claim of more jobs would hold up the other writers of the store.
pub const BATCH_MAX: usize = 1000;

/// The entry of a module's `emits` that allows every event type. `ion run` uses it; a pipeline file
/// cannot contain it.
pub const ANY_TYPE: &str = "*";

/// What a gathering module does about a dead job below its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDead {
    /// It waits until the dead job is retried or dropped.
    #[default]
    Wait,
    /// It starts without what the dead job would have made.
    Go,
}

/// The API that Ion serves beside a job, for a module that does more than read and write files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleApi {
    /// No API.
    #[default]
    None,
    /// The localhost API of older Ion's second generation: `GET /ready`, then `GET /done`.
    Sidecar,
}

/// Why a module's programs cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The module names no program.
    #[error("\"run\" is empty")]
    NotNamed,
    /// There is no such file.
    #[error("program {0} is not there")]
    Missing(String),
    /// The file may not be executed.
    #[error("program {0} is not executable; allow it with `chmod +x {0}`")]
    NotExecutable(String),
    /// The program is not found by its name.
    #[error(
        "program {0:?} is in no folder of PATH; for a program of the module's folder write ./{0}"
    )]
    NotInPath(String),
    /// The image with the program cannot be used.
    #[error(transparent)]
    Image(#[from] ImageReferenceError),
    /// The program of a link cannot be run.
    #[error("link {name:?}")]
    Link {
        /// The link's name.
        name: String,
        /// Why its program cannot be run.
        #[source]
        source: Box<Self>,
    },
}

impl ProgramError {
    /// Returns the error as one of the link `name`.
    pub(super) fn of_link(self, name: &str) -> Self {
        Self::Link { name: name.to_owned(), source: self.into() }
    }
}

/// One module, as registered in the plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Module {
    /// Its name: the id of its document.
    #[serde(rename = "id")]
    pub name: String,
    /// Event types it starts on; empty for a gathering module.
    #[serde(default)]
    pub on: Vec<String>,
    /// The terms that an event must meet to start it; for a gathering module, the event below which
    /// it gathers.
    #[serde(rename = "where", default, skip_serializing_if = "Terms::is_empty")]
    pub terms: Terms,
    /// The event type it gathers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather: Option<String>,
    /// The event type below which it gathers: one job for each event of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<String>,
    /// What a gathering job does about a dead job below its event.
    #[serde(default)]
    pub on_dead: OnDead,
    /// Event types it may publish.
    #[serde(default)]
    pub emits: Vec<String>,
    /// What its sources pass to it; none if no source may start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Parameters>,
    /// The names of the secrets that it reads as files; no value of any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The program and its arguments; empty for a chain, and where the image names the program.
    pub run: Vec<String>,
    /// The executor that runs its jobs.
    #[serde(default)]
    pub executor: ExecutorKind,
    /// The container that its jobs run in; none for programs of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Where its pods may run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kubernetes: KubernetesFields,
    /// The programs that its input passes through, from stdin to stdout; empty for a module that
    /// reads and writes files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// What its links may use, and how they are kept ready.
    #[serde(default)]
    pub link_settings: LinkSettings,
    /// Whether its programs keep the daemon's capabilities and see the machine's devices and
    /// settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// The variables that it adds to the environment of its programs.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The files that belong to it beside its program, as patterns of paths below the working
    /// folder. Its version changes with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// When its events are committed.
    #[serde(default)]
    pub commit: CommitMode,
    /// The API that Ion serves beside its jobs.
    #[serde(default)]
    pub api: ModuleApi,
    /// Whether the values that it reads contain the addresses of the event's files.
    #[serde(default)]
    pub urls: FileUrls,
    /// How long a job may run.
    #[serde(with = "milliseconds", rename = "timeoutMs")]
    pub timeout: Duration,
    /// How often a failed job is tried again.
    pub retries: u32,
    /// How many of its waiting events one process takes at most, each with a job and a tree of its
    /// own; none for a process for each job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// How many of its jobs, or of its batches, one dispatcher runs at the same time, at most.
    pub concurrency: usize,
    /// The limits of its jobs that differ from the daemon's.
    #[serde(default, skip_serializing_if = "LimitOverrides::is_empty")]
    pub limits: LimitOverrides,
    /// The working folder of its programs: the folder of the pipeline file.
    pub directory: PathBuf,
    /// The name of the pipeline file in that folder; none if the module was registered without a
    /// file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
}

pub(crate) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

impl Module {
    /// Returns a module with this name and program. All other fields have the defaults of a
    /// pipeline file.
    pub fn new(name: &str, run: Vec<String>, directory: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            on: vec![],
            terms: Terms::default(),
            gather: None,
            per: None,
            on_dead: OnDead::default(),
            emits: vec![],
            params: None,
            secrets: vec![],
            run,
            executor: ExecutorKind::default(),
            container: None,
            kubernetes: KubernetesFields::default(),
            links: vec![],
            link_settings: LinkSettings::default(),
            privileged: false,
            env: BTreeMap::new(),
            files: vec![],
            commit: CommitMode::default(),
            api: ModuleApi::default(),
            urls: FileUrls::default(),
            timeout: TIMEOUT,
            retries: RETRIES,
            batch: None,
            concurrency: default_concurrency(),
            limits: LimitOverrides::default(),
            directory,
            pipeline: None,
        }
    }

    /// Returns the module that a pipeline file with these `fields` declares, without a file. The
    /// fields are checked as in a file, but not whether the programs exist.
    ///
    /// # Errors
    /// The first mistake.
    pub fn from_fields(
        name: &str,
        fields: &serde_json::Map<String, serde_json::Value>,
        directory: &Path,
    ) -> Result<Self, PipelineProblem> {
        // JSON is also YAML.
        let text = serde_json::json!({"modules": {name: fields}}).to_string();
        let parsed = Pipeline::parse(&text, directory);
        let (mut pipeline, _) = parsed.map_err(|mistake| *mistake.problem)?;
        Ok(pipeline.modules.pop().expect("a pipeline without a module is refused"))
    }

    /// Returns the path of its tree: `/ion`, unless its `env` sets `HANDLER_BASE_DIR`.
    pub fn base_dir(&self) -> PathBuf {
        self.env.get(BASE_DIR).map_or_else(|| MOUNT_AT.into(), PathBuf::from)
    }

    /// Returns a hash that tells this definition from every other one.
    pub fn fingerprint(&self) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, encode(self).to_string().as_bytes()).simple().to_string()
    }

    /// Returns the names of the fields in which another definition differs.
    pub fn differing_fields(&self, other: &Self) -> Vec<String> {
        let (one, other) = (encode(self), encode(other));
        let all =
            [&one, &other].into_iter().flat_map(|fields| fields.as_object().into_iter().flatten());
        let names: BTreeSet<&String> = all.map(|(name, _)| name).collect();
        names
            .into_iter()
            .filter(|name| one[name.as_str()] != other[name.as_str()])
            .cloned()
            .collect()
    }

    /// Returns whether its sources name secrets of their own.
    pub fn has_secret_parameter(&self) -> bool {
        let mut parameters = self.params.iter().flat_map(|parameters| parameters.values());
        parameters.any(|parameter| parameter.kind == ParameterKind::Secret)
    }

    /// Returns how many of its jobs one process runs, at most.
    pub fn jobs_at_once(&self) -> usize {
        self.batch.unwrap_or(1).clamp(1, BATCH_MAX)
    }

    /// Returns the event types whose messages reach its queue.
    pub fn subscribed_types(&self) -> Vec<String> {
        let ticks = self.params.as_ref().map(|_| tick_type(&self.name));
        self.on.iter().chain(&self.per).cloned().chain(ticks).collect()
    }

    /// Returns which events start it.
    pub fn selector(&self) -> EventSelector {
        EventSelector { on: self.subscribed_types(), terms: self.terms.clone() }
    }

    /// Returns the program and its arguments. A program with a slash is joined to the module's
    /// folder, unless it runs in an image: then the path is the image's.
    pub fn argv(&self) -> Vec<String> {
        if self.container.is_none() {
            self.resolve_program(self.run.clone())
        } else {
            self.run.clone()
        }
    }

    /// Returns the program and the arguments of one of its links. Paths are treated as in
    /// [`Module::argv`].
    pub fn link_argv(&self, link: &Link) -> Vec<String> {
        let argv = [&link.command].into_iter().chain(&link.arguments).cloned().collect();
        if link.image.is_empty() { self.resolve_program(argv) } else { argv }
    }

    /// Returns the container that one of its links runs in; none for a program of this machine.
    ///
    /// # Errors
    /// When the link's image is not a valid image reference.
    pub fn link_container(&self, link: &Link) -> Result<Option<Container>, ImageReferenceError> {
        match (&self.container, &*link.image) {
            (Some(container), _) => Ok(Some(container.clone())),
            (None, "") => Ok(None),
            (None, image) => {
                ImageReference::parse(image, &self.directory).map(Container::from_image).map(Some)
            }
        }
    }

    fn resolve_program(&self, mut argv: Vec<String>) -> Vec<String> {
        if let Some(program) = argv.first_mut()
            && program.contains('/')
        {
            *program = self.directory.join(&*program).display().to_string();
        }
        argv
    }

    /// Returns the type of the event that starts it when the event is created from outside: the
    /// first of its types.
    pub fn first_start_type(&self) -> Option<&str> {
        self.on.first().map(String::as_str)
    }

    /// Checks that its programs and images exist and that the programs are executable. `path` is
    /// the `PATH` in which programs without a slash are looked up.
    ///
    /// # Errors
    /// What is wrong and what to do about it.
    pub fn check_programs(&self, path: &str) -> Result<(), ProgramError> {
        let check = |container: Option<Container>, argv| match container {
            Some(container) => container.image.check().map_err(ProgramError::from),
            None => check_program(argv, path),
        };
        if self.links.is_empty() {
            return check(self.container.clone(), self.argv());
        }
        self.links.iter().try_for_each(|link| {
            let container = self.link_container(link).map_err(ProgramError::from);
            let checked = container.and_then(|container| check(container, self.link_argv(link)));
            checked.map_err(|error| error.of_link(&link.name))
        })
    }
}

/// Checks that the program of this command line exists and is executable.
fn check_program(argv: Vec<String>, path: &str) -> Result<(), ProgramError> {
    let program = argv.into_iter().next().ok_or(ProgramError::NotNamed)?;
    let executable = |file: &Path| {
        file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let file = Path::new(&program);
        return match file.metadata() {
            Err(_) => Err(ProgramError::Missing(program)),
            Ok(_) if !executable(file) => Err(ProgramError::NotExecutable(program)),
            Ok(_) => Ok(()),
        };
    }
    let found = path.split(':').any(|folder| executable(&Path::new(folder).join(&program)));
    if found { Ok(()) } else { Err(ProgramError::NotInPath(program)) }
}

pub(super) fn default_concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}
