//! Flags and environment, read in this one place.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use dispatcher::executor::local::Namespaces;
use dispatcher::pipeline::{BoundError, PlaneSection, TIME_MAX, parse_time_within};
use dispatcher::secrets::{SecretError, SecretFolders};
use ionfs::cache::CacheLimits;
use ionfs::checksum::BLOCK_BYTES;
use ionfs::environment::variable;
use ionfs::home::make_home;
use ionfs::limits::{LimitOverrides, Limits};
use ionfs::node::NodeSettings;
use ionfs::stores::open::{DATABASE, StoreUrls, open};
use ionfs::stores::without_credentials;
use ionfs::stores::{DataPlane, Documents, ID_BYTES_MAX};
use ionfs::ticket::{TicketKey, TicketKeyError};

use crate::{CommandFailure, output};

/// The variables of the daemon's environment that modules see. None of them can be a credential.
const MODULE_VARIABLES: [&str; 8] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ"];

/// The further variables that the registry client (`skopeo`) sees: where it finds logins,
/// registries and certificates, and the proxies by which it reaches registries. No module sees
/// these.
const REGISTRY_VARIABLES: [&str; 16] = [
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRIES_CONFIG_PATH",
    "REGISTRIES_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "TMPDIR",
];

/// The document stores that a command has opened.
pub(crate) type OpenedDocuments = Arc<Mutex<Vec<Arc<dyn Documents>>>>;

/// The file below the home that names the stores of the last pipeline.
const PLANE_FILE: &str = "plane.json";

/// The name of the folder that holds all state, unless `--home` or `ION_HOME` names another.
const HOME_FOLDER: &str = ".ion";

/// The search path for programs when `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The folder of all state: stores, staging, locks [default: .ion in this folder, or in the
    /// nearest folder above that has one]
    #[arg(
        long,
        env = "ION_HOME",
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    home: Option<PathBuf>,
    /// The store for the bytes of files: file://, s3://, az:// or gs:// [default:
    /// file://HOME/blobs]
    #[arg(
        long,
        env = "ION_BLOBS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    blobs: Option<String>,
    /// The store for events and jobs: sqlite:// or mongodb:// [default: sqlite://HOME/ion.db]
    #[arg(
        long,
        env = "ION_DOCUMENTS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    documents: Option<String>,
    /// The bus that announces events to dispatchers: sqlite:// or amqp:// [default:
    /// sqlite://HOME/ion.db]
    #[arg(
        long,
        env = "ION_BUS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    bus: Option<String>,
    /// How long the close of an event file waits for unavailable stores before it fails with EIO
    #[arg(
        long,
        env = "ION_COMMIT_DEADLINE",
        default_value = "30s",
        value_parser = parse_deadline,
        global = true,
        value_name = "TIME",
        help_heading = "Global options"
    )]
    commit_deadline: Duration,
    /// A limit on each job, unless its module sets its own: event-bytes, event-values,
    /// event-value-bytes, event-files, path-bytes, path-depth, lineage-depth, staged-bytes,
    /// staged-files, open-files or processes; docs/limits.md explains each
    #[arg(
        long = "job-limit",
        env = "ION_JOB_LIMITS",
        value_delimiter = ',',
        global = true,
        value_name = "NAME=VALUE",
        help_heading = "Global options"
    )]
    limits: Vec<String>,
    /// Disk space for the cache of a remote object store, which is in HOME/cache and serves all
    /// jobs
    #[arg(
        long,
        env = "ION_CACHE_SIZE",
        default_value = "10GiB",
        value_parser = ionfs::limits::parse_bytes,
        global = true,
        value_name = "SIZE",
        help_heading = "Global options"
    )]
    cache_size: u64,
    /// Memory for the blocks that are being read, however many files are open [default: a 256th of
    /// the memory that this process may use, 64MiB to 256MiB]
    #[arg(
        long,
        env = "ION_CACHE_MEMORY",
        value_parser = ionfs::limits::parse_bytes,
        global = true,
        value_name = "SIZE",
        help_heading = "Global options"
    )]
    cache_memory: Option<u64>,
    /// The folder with the values of modules' secrets, each a file of its name; only its owner may
    /// enter it [default: systemd's credentials of this service, and /run/secrets]
    #[arg(
        long,
        env = "ION_SECRETS",
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    secrets: Option<PathBuf>,
    /// Print JSON documents instead of tables
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Log more: once for what happens, twice for details
    #[arg(short, long, action = clap::ArgAction::Count)]
    #[arg(global = true, help_heading = "Global options")]
    pub(crate) verbose: u8,
    /// Let the daemon answer every read itself, even where the kernel could
    #[arg(long, env = "ION_NO_PASSTHROUGH", global = true, help_heading = "Global options")]
    no_passthrough: bool,
    /// Run jobs without namespaces of their own; ION_DIR tells a module where its tree is
    #[arg(long, env = "ION_NO_NAMESPACES", global = true, help_heading = "Global options")]
    no_namespaces: bool,
}

/// The settings of one command.
#[derive(Debug)]
pub(crate) struct CommandSettings {
    pub(crate) home: PathBuf,
    pub(crate) json: bool,
    /// The stores that flags and environment name. They override every file.
    given: PlaneSection,
    urls: StoreUrls,
    passthrough: bool,
    /// The document stores to close before the command ends.
    pub(crate) opened: OpenedDocuments,
    commit_deadline: Duration,
    limits: Limits,
    cache: CacheLimits,
    /// The folder of secrets that flags or environment name.
    secrets: Option<PathBuf>,
    /// Whether jobs get namespaces of their own.
    pub(crate) namespaces: Namespaces,
}

impl CommandSettings {
    pub(crate) fn resolve(global: Global) -> Result<Self, CommandFailure> {
        let home = match &global.home {
            Some(home) => std::path::absolute(home)?,
            None => find_home(&std::env::current_dir()?)?,
        };
        let given =
            PlaneSection { blobs: global.blobs, documents: global.documents, bus: global.bus };
        warn_of_passwords();
        let recorded = read_recorded_plane(&home.join(PLANE_FILE))?;
        let namespaces =
            if global.no_namespaces { Namespaces::Never } else { Namespaces::WherePossible };
        let urls = StoreUrls::embedded(&home);
        let passthrough = !global.no_passthrough;
        let (json, commit_deadline) = (global.json, global.commit_deadline);
        let opened = OpenedDocuments::default();
        let limits = LimitOverrides::from_arguments(&global.limits)?.apply_to(Limits::default());
        let secrets = global.secrets.map(std::path::absolute).transpose()?;
        let defaults = CacheLimits::default();
        let cache = CacheLimits {
            disk_bytes: global.cache_size,
            // At least four blocks: with fewer, reads would wait for each other.
            memory_bytes: global.cache_memory.unwrap_or(defaults.memory_bytes).max(4 * BLOCK_BYTES),
            ..defaults
        };
        let mut settings = Self {
            opened,
            cache,
            home,
            json,
            given,
            urls,
            passthrough,
            commit_deadline,
            limits,
            secrets,
            namespaces,
        };
        settings.choose_stores(&recorded)?;
        Ok(settings)
    }

    /// Chooses each store: the one that flags or environment name, else the one that the file
    /// names, else the embedded one.
    fn choose_stores(&mut self, file: &PlaneSection) -> Result<(), CommandFailure> {
        let wanted = PlaneSection {
            blobs: self.given.blobs.clone().or_else(|| file.blobs.clone()),
            documents: self.given.documents.clone().or_else(|| file.documents.clone()),
            bus: self.given.bus.clone().or_else(|| file.bus.clone()),
        };
        let wanted = wanted.expand_variables(variable)?;
        let defaults = StoreUrls::embedded(&self.home);
        self.urls = StoreUrls {
            blobs: wanted.blobs.unwrap_or(defaults.blobs),
            documents: wanted.documents.unwrap_or(defaults.documents),
            bus: wanted.bus.unwrap_or(defaults.bus),
        };
        Ok(())
    }

    /// Takes the stores that a pipeline file names, and notes them in the home, so that `ion trace`
    /// and other commands open the same ones. The note has them as the file has: a password that
    /// the file takes from the environment is not written down.
    pub(crate) fn use_stores(&mut self, section: &PlaneSection) -> Result<(), CommandFailure> {
        self.choose_stores(section)?;
        let file = self.home.join(PLANE_FILE);
        if *section == PlaneSection::default() {
            return match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        make_home(&self.home)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        Ok(std::io::Write::write_all(&mut file, &serde_json::to_vec_pretty(section)?)?)
    }

    /// Opens the stores for a command that only looks at them, or steers existing jobs. Such a
    /// command never makes stores.
    ///
    /// # Errors
    /// When a file of an embedded store does not exist, or a store cannot be opened.
    pub(crate) async fn open_existing_plane(&self) -> Result<DataPlane, CommandFailure> {
        match self.urls.missing_database() {
            None => self.open_plane().await,
            Some(missing) => Err(CommandFailure(format!(
                "{} is not there: nothing has been run from this folder or one above it. Start with `ion up`, or name \
                 the folder that holds the state with --home (or ION_HOME)",
                missing.display()
            ))),
        }
    }

    /// Opens the stores, and makes embedded ones that do not exist yet.
    pub(crate) async fn open_plane(&self) -> Result<DataPlane, CommandFailure> {
        if self.home.exists()
            || self.urls.local_paths().iter().any(|store| store.starts_with(&self.home))
        {
            make_home(&self.home)?;
        }
        let plane = open(&self.urls).await?;
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(plane.documents.clone());
        Ok(plane)
    }

    /// Returns the settings of the node that this command runs.
    pub(crate) fn node_settings(&self) -> NodeSettings {
        NodeSettings {
            passthrough: self.passthrough,
            commit_deadline: self.commit_deadline,
            limits: self.limits,
            cache: self.cache,
            ..NodeSettings::new(&self.home)
        }
    }

    /// Returns where the values of modules' secrets are.
    ///
    /// # Errors
    /// When users other than the owner may enter the folder that was named, or it is not there.
    pub(crate) fn secret_folders(&self) -> Result<SecretFolders, SecretError> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|at| !at.is_empty());
        SecretFolders::new(self.secrets.clone(), credentials.map(PathBuf::from), &self.home)
    }

    /// The URLs of the stores.
    pub(crate) fn urls(&self) -> &StoreUrls {
        &self.urls
    }
}

/// Finds the home of a command that names none. As with `git`, it is in the working directory, or
/// in the nearest folder above that has one.
fn find_home(folder: &Path) -> Result<PathBuf, CommandFailure> {
    let mut homes = folder.ancestors().map(|folder| folder.join(HOME_FOLDER));
    // A folder that only has the name of a home holds neither file. One that cannot be looked into
    // is taken for a home.
    let is_home = |home: &PathBuf| {
        let has_file = |file: &str| match home.join(file).try_exists() {
            Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
            Ok(exists) => exists,
        };
        has_file(DATABASE) || has_file(PLANE_FILE)
    };
    let Some(home) = homes.find(is_home) else { return Ok(folder.join(HOME_FOLDER)) };
    let metadata = home.metadata()?;
    // Another user's home would decide which stores this command opens, with which variables of its
    // environment; and that user could not change the files that this command makes in it.
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(CommandFailure(format!(
            "{} belongs to user {}: run ion as that user, or name a home of your own with --home \
             (or ION_HOME)",
            home.display(),
            metadata.uid()
        )));
    }
    Ok(home)
}

/// Warns of passwords in the command line, which every list of processes shows.
fn warn_of_passwords() {
    let has_password = |word: OsString| {
        let word = word.to_string_lossy();
        without_credentials(&word) != word
    };
    if std::env::args_os().any(has_password) {
        output::print_message(
            "a password in the command line can be read by every user of this machine; set \
             ION_DOCUMENTS or ION_BUS instead",
        );
    }
}

/// Reads which stores the last dispatcher of this home has used; none if none has written it. The
/// embedded stores must not stand in for others that cannot be read.
fn read_recorded_plane(path: &Path) -> Result<PlaneSection, CommandFailure> {
    let failed = |error: &dyn std::fmt::Display| {
        CommandFailure(format!(
            "{} says which stores belong to this home, and cannot be read: {error}",
            path.display()
        ))
    };
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| failed(&error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(PlaneSection::default()),
        Err(error) => Err(failed(&error)),
    }
}

/// Returns whether the user wants colours on the terminal (no-color.org).
pub(crate) fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the search path for programs.
pub(crate) fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())
}

/// Returns the address of the service manager's socket, if there is one.
pub(crate) fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

/// Returns whether a file is a credential that the service manager gives to this service alone
/// (`LoadCredential=`).
pub(crate) fn is_credential(file: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| file.starts_with(folder))
}

/// Returns how long the service manager waits for a sign of life of this process, if it waits for
/// one.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_this_process =
        number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC")
        .filter(|micros| is_for_this_process && *micros > 1)
        .map(Duration::from_micros)
}

/// Returns the bearer token that requests for metrics must bring. It is not a flag, because every
/// user of the machine can read a command line.
pub(crate) fn metrics_token() -> Option<String> {
    variable("ION_METRICS_TOKEN").filter(|token| !token.is_empty())
}

/// Returns the lines of tokens that requests to the gateway must bring. Not a flag, for the same
/// reason.
pub(crate) fn gateway_tokens() -> Option<String> {
    variable("ION_GATEWAY_TOKENS").filter(|tokens| !tokens.is_empty())
}

/// Returns the key that signs the tokens of tickets. Not a flag, for the same reason.
pub(crate) fn ticket_key() -> Result<TicketKey, TicketKeyError> {
    TicketKey::new(&variable("ION_TICKET_KEY").unwrap_or_default())
}

/// Returns whether OpenTelemetry's standard variables ask for spans.
pub(crate) fn wants_spans() -> bool {
    let value_of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_word = |name: &str, word: &str| {
        value_of(name).is_some_and(|value| value.eq_ignore_ascii_case(word))
    };
    let endpoint = value_of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|| value_of("OTEL_EXPORTER_OTLP_ENDPOINT"));
    endpoint.is_some()
        && !is_word("OTEL_SDK_DISABLED", "true")
        && !is_word("OTEL_TRACES_EXPORTER", "none")
}

/// Returns the variables that every module's environment begins with.
pub(crate) fn module_environment() -> Vec<(String, String)> {
    let mut env = own_variables(&MODULE_VARIABLES);
    if !env.iter().any(|(key, _)| key == "PATH") {
        env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    env
}

/// Returns the variables that the registry client gets in addition to [`module_environment`].
pub(crate) fn registry_environment() -> Vec<(String, String)> {
    own_variables(&REGISTRY_VARIABLES)
}

fn own_variables(names: &[&str]) -> Vec<(String, String)> {
    names.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect()
}

/// The reason why the value of an argument is refused. `clap` adds the argument and the value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("an absolute path is needed")]
    Path,
    #[error("it must be KEY=VALUE")]
    Pair,
    #[error("it must be NAME=FILE; a name has letters, digits, '.', '_' and '-'")]
    SecretFile,
    #[error("an id has 1 to {ID_BYTES_MAX} bytes and no control characters")]
    Id,
    #[error("allowed: waiting, queued, starting, running, succeeded, dead, cancelled")]
    JobState,
}

/// Reads a deadline for an answer or a sign of life: one second to one day.
pub(crate) fn parse_deadline(text: &str) -> Result<Duration, BoundError> {
    parse_time_within(text, Duration::from_secs(1), Duration::from_secs(24 * 60 * 60))
}

/// Reads the longest time to wait, which may be zero.
pub(crate) fn parse_wait_limit(text: &str) -> Result<Duration, BoundError> {
    parse_time_within(text, Duration::ZERO, TIME_MAX)
}
