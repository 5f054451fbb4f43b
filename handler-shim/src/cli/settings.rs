//! The flags and the environment of older Ion's handler, all read in this module.
//!
//! Each flag has an environment variable of its name in capitals with `_` for `.`, as in older Ion.
//! `ION_BLOBS`, `ION_DOCUMENTS` and `ION_BUS` name the stores, as for the command `ion`. A store
//! that they do not name is named by the older groups of flags, and otherwise is below `ION_HOME`.
//! So a deployment moves to other stores without a change to its command lines.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, ValueEnum};
use ion_model::limits::{LimitError, LimitOverrides, Limits};
use ion_model::text::write_field;
use ion_plane::address::FileUrls;
#[cfg(feature = "azure")]
use ion_stores::object::ObjectBlobs;
use ion_stores::open::{StoreUrls, open_blobs, open_with_blobs};
use ion_stores::without_credentials;
use ion_stores::{Blobs, DataPlane, StoreError};
use serde_json::{Value, json};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use super::print_message;

/// The module's folder if neither a flag nor the environment names one.
const BASE_DIR: &str = "/ion";

/// Flags that hold a secret.
const SECRETS: [&str; 4] = [
    "sharedsecret",
    "azureblobprovider.blobaccountkey",
    "mongodbdocprovider.password",
    "servicebuseventprovider.key",
];

/// Older Ion's handler: copies an event's files into a folder for a module, and commits what it
/// left there.
///
/// For places where nothing can be mounted. Elsewhere a module of older Ion needs no handler: `ion
/// up` runs it as it is.
#[derive(Debug, Parser)]
#[command(
    name = "ion-handler",
    version,
    after_help = "Examples:
  ion-handler start --action=prepare --context.name=sample --context.eventid=3f2b91c0
  HANDLER_BASE_DIR=/ion ./sample
  ion-handler start --action=commit --context.name=sample --context.eventid=3f2b91c0 --valideventtypes=frame,done
  ion-handler --development --action=prepare --context.name=sample       no store needed; see .dev/"
)]
pub(super) struct Arguments {
    /// Older Ion's only subcommand; may be left out
    #[arg(value_parser = ["start"])]
    start: Option<String>,
    /// What to do
    #[arg(short, long, value_enum, ignore_case = true, value_name = "ACTION")]
    action: Option<HandlerAction>,
    /// The folder with in/ and out/ [default: $HANDLER_BASE_DIR, else /ion]
    #[arg(short, long, value_name = "DIR")]
    basedir: Option<PathBuf>,
    /// The event the module works on
    #[arg(long = "context.eventid", env = "CONTEXT_EVENTID", value_name = "ID")]
    event_id: Option<String>,
    /// The correlation of that event; refused if the event is of another correlation
    #[arg(long = "context.correlationid", env = "CONTEXT_CORRELATIONID", value_name = "ID")]
    correlation_id: Option<String>,
    /// The parent of that event; accepted and not used, because the event names its parent
    #[arg(long = "context.parenteventid", env = "CONTEXT_PARENTEVENTID", value_name = "ID")]
    parent_event_id: Option<String>,
    /// The module's name
    #[arg(long = "context.name", env = "CONTEXT_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Event types the module may publish
    #[arg(long, env = "VALIDEVENTTYPES", value_delimiter = ',', value_name = "TYPE,TYPE")]
    valideventtypes: Vec<String>,
    /// Files' addresses in in/eventmeta.json: none, ion, or signed by the store
    #[arg(long, env = "ION_URLS", default_value = "ion", value_parser = FileUrls::parse, value_name = "KIND")]
    urls: FileUrls,
    /// Accepted and not used: `ion up` serves the localhost API beside a job (`api: sidecar`)
    #[arg(long, env = "SHARED_SECRET", hide_env_values = true, value_name = "SECRET")]
    sharedsecret: Option<String>,
    /// Accepted and not used, as --sharedsecret
    #[arg(long, value_name = "PORT")]
    serverport: Option<u16>,
    /// The least level of messages to log: debug, info, warn or error
    #[arg(short, long, env = "LOGLEVEL", default_value = "warn", ignore_case = true, value_enum)]
    loglevel: Level,
    /// The file to log to [default: standard error]
    #[arg(short = 'L', long, env = "LOGFILE", value_name = "FILE")]
    logfile: Option<PathBuf>,
    /// Development mode: needs no store, and writes contexts and events to files below .dev/
    #[arg(long, alias = "development.enabled", env = "DEVELOPMENT", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_name = "BOOL")]
    development: bool,
    /// The folder of development mode
    #[arg(
        long = "development.basedir",
        env = "DEVELOPMENT_BASEDIR",
        default_value = ".dev",
        value_name = "DIR"
    )]
    development_basedir: PathBuf,
    /// Print the settings first, without secrets
    #[arg(short = 'P', long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_name = "BOOL")]
    printconfig: bool,
    #[command(flatten)]
    azure: AzureArguments,
    #[command(flatten)]
    mongo: MongoArguments,
    #[command(flatten)]
    service_bus: ServiceBusArguments,
    /// How long a commit continues while no store makes progress
    #[arg(long, env = "ION_COMMIT_DEADLINE", default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    commit_deadline: Duration,
    /// A limit of a job's events, as for the command `ion`
    #[arg(
        long = "job-limit",
        env = "ION_JOB_LIMITS",
        value_delimiter = ',',
        value_name = "NAME=VALUE"
    )]
    limits: Vec<String>,
    /// The folder of the embedded stores
    #[arg(long, env = "ION_HOME", default_value = ".ion", value_name = "DIR")]
    home: PathBuf,
    /// Where files' bytes are kept: file://, s3://, az:// or gs://
    #[arg(long, env = "ION_BLOBS", hide_env_values = true, value_name = "URL")]
    blobs: Option<String>,
    /// Where events and jobs are kept: sqlite:// or mongodb://
    #[arg(long, env = "ION_DOCUMENTS", hide_env_values = true, value_name = "URL")]
    documents: Option<String>,
    /// Where events are announced to modules: sqlite:// or amqp://
    #[arg(long, env = "ION_BUS", hide_env_values = true, value_name = "URL")]
    bus: Option<String>,
}

/// Older Ion's store of files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Azure Blob, where ION_BLOBS is not set")]
struct AzureArguments {
    /// Whether to use it [default: if any of these is given]
    #[arg(long = "azureblobprovider", alias = "azureblobprovider.enabled", env = "AZUREBLOBPROVIDER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    azure_enabled: Option<bool>,
    /// The storage account
    #[arg(
        id = "azureblobprovider.blobaccountname",
        long = "azureblobprovider.blobaccountname",
        env = "AZUREBLOBPROVIDER_BLOBACCOUNTNAME",
        value_name = "NAME"
    )]
    account: Option<String>,
    /// The key of the account; set it in the environment rather than here
    #[arg(
        id = "azureblobprovider.blobaccountkey",
        long = "azureblobprovider.blobaccountkey",
        env = "AZUREBLOBPROVIDER_BLOBACCOUNTKEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    key: Option<String>,
    /// The container
    #[arg(
        long = "azureblobprovider.containername",
        env = "AZUREBLOBPROVIDER_CONTAINERNAME",
        value_name = "NAME"
    )]
    container: Option<String>,
}

/// Older Ion's store of documents.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Azure Cosmos DB by its MongoDB protocol, where ION_DOCUMENTS is not set"
)]
struct MongoArguments {
    /// Whether to use it [default: if any of these is given]
    #[arg(long = "mongodbdocprovider", alias = "mongodbdocprovider.enabled", env = "MONGODBDOCPROVIDER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    mongo_enabled: Option<bool>,
    /// The account, which is also the name of its host, its user and its database
    #[arg(
        id = "mongodbdocprovider.name",
        long = "mongodbdocprovider.name",
        env = "MONGODBDOCPROVIDER_NAME",
        value_name = "NAME"
    )]
    account: Option<String>,
    /// The password of the account; set it in the environment rather than here
    #[arg(
        id = "mongodbdocprovider.password",
        long = "mongodbdocprovider.password",
        env = "MONGODBDOCPROVIDER_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    password: Option<String>,
    /// Accepted and not used: events are in the collection "events" of that database
    #[arg(
        long = "mongodbdocprovider.collection",
        env = "MONGODBDOCPROVIDER_COLLECTION",
        value_name = "NAME"
    )]
    collection: Option<String>,
    /// The port of the account's server
    #[arg(
        long = "mongodbdocprovider.port",
        env = "MONGODBDOCPROVIDER_PORT",
        default_value_t = 10255,
        value_name = "PORT"
    )]
    port: u16,
}

/// Older Ion's bus, whose protocol Ion does not support any more.
#[derive(Debug, Args)]
#[command(next_help_heading = "Azure Service Bus: ION_BUS takes its place")]
struct ServiceBusArguments {
    /// Whether older Ion used it
    #[arg(long = "servicebuseventprovider", alias = "servicebuseventprovider.enabled", env = "SERVICEBUSEVENTPROVIDER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    bus_enabled: Option<bool>,
    /// The namespace
    #[arg(
        long = "servicebuseventprovider.namespace",
        env = "SERVICEBUSEVENTPROVIDER_NAMESPACE",
        value_name = "NAME"
    )]
    namespace: Option<String>,
    /// The topic
    #[arg(
        long = "servicebuseventprovider.topic",
        env = "SERVICEBUSEVENTPROVIDER_TOPIC",
        value_name = "NAME"
    )]
    topic: Option<String>,
    /// The key
    #[arg(
        id = "servicebuseventprovider.key",
        long = "servicebuseventprovider.key",
        env = "SERVICEBUSEVENTPROVIDER_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    key: Option<String>,
    /// The authorization rule
    #[arg(
        long = "servicebuseventprovider.authorizationrulename",
        env = "SERVICEBUSEVENTPROVIDER_AUTHORIZATIONRULENAME",
        value_name = "NAME"
    )]
    rule: Option<String>,
}

/// The action of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum HandlerAction {
    /// Fill the folder
    Prepare,
    /// Commit what the module left in the folder
    Commit,
}

/// The least level of messages that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The settings of one command.
#[derive(Debug)]
pub(super) struct HandlerSettings {
    pub(super) action: Option<HandlerAction>,
    pub(super) base_dir: PathBuf,
    pub(super) module: String,
    pub(super) event_id: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) emits: Vec<String>,
    pub(super) urls: FileUrls,
    pub(super) limits: Limits,
    pub(super) deadline: Duration,
    /// The folder to which development mode dumps; `None` in production.
    pub(super) development: Option<PathBuf>,
    pub(super) print_config: bool,
    pub(super) stores: HandlerStores,
    printable: Value,
}

/// The reason why the handler cannot start with its arguments.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandlerSettingsError {
    /// The log cannot be written.
    #[error("--logfile {}", .path.display())]
    LogFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A limit cannot be set.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The group of Azure Service Bus is used.
    #[error(
        "--servicebuseventprovider: Azure Service Bus is not supported any more; name a RabbitMQ \
         with ION_BUS=amqp://HOST/VHOST, which replaces this group of flags"
    )]
    ServiceBus,
    /// A group of flags lacks one.
    #[error("--{group} needs --{group}.{flag}")]
    Missing {
        /// The group.
        group: &'static str,
        /// The flag that is missing.
        flag: &'static str,
    },
    /// No Cosmos DB account has such a name.
    #[error(
        "--mongodbdocprovider.name {0:?}: letters, digits and '-' are allowed; to use another \
         server, set ION_DOCUMENTS=mongodb://"
    )]
    CosmosName(String),
}

impl HandlerSettings {
    /// Checks the arguments, and starts the log.
    ///
    /// # Errors
    /// Returns what is wrong and what to do about it. No error contains a secret.
    pub(super) fn resolve(
        arguments: Arguments,
        matches: &ArgMatches,
    ) -> Result<Self, HandlerSettingsError> {
        start_log(&arguments)?;
        for secret in SECRETS.iter().filter(|name| is_from_command_line(matches, name)) {
            let variable =
                secret.to_uppercase().replace('.', "_").replace("SHAREDSECRET", "SHARED_SECRET");
            print_message(&format!(
                "--{secret} in the command line can be read by every user of this machine; set \
                 {variable} instead"
            ));
        }
        let development = arguments.development.then(|| arguments.development_basedir.clone());
        let stores = HandlerStores::choose(&arguments, development.is_some())?;
        let nothing = |path: &PathBuf| path.as_os_str().is_empty();
        let base_dir = match &arguments.basedir {
            // `./` is older Ion's own default, which meant its place in the container.
            Some(path) if !nothing(path) && path.as_os_str() != "./" => path.clone(),
            _ => std::env::var_os("HANDLER_BASE_DIR")
                .map(PathBuf::from)
                .filter(|path| !nothing(path))
                .unwrap_or_else(|| BASE_DIR.into()),
        };
        let limits = LimitOverrides::from_arguments(&arguments.limits)?.apply_to(Limits::default());
        let printable = printable_settings(&arguments, &base_dir, &stores);
        let non_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        let emits = arguments.valideventtypes.iter().map(|name| name.trim().to_owned());
        Ok(Self {
            action: arguments.action,
            base_dir,
            module: arguments.name.unwrap_or_default(),
            event_id: non_empty(arguments.event_id),
            correlation_id: non_empty(arguments.correlation_id),
            emits: emits.filter(|name| !name.is_empty()).collect(),
            urls: arguments.urls,
            limits,
            deadline: arguments.commit_deadline,
            development,
            print_config: arguments.printconfig,
            stores,
            printable,
        })
    }

    /// Returns the settings for people. They show only whether a secret is set.
    pub(super) fn printable(&self) -> &Value {
        &self.printable
    }
}

fn is_from_command_line(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(ValueSource::CommandLine)
}

fn start_log(arguments: &Arguments) -> Result<(), HandlerSettingsError> {
    let level = arguments.loglevel.as_str();
    let others = if arguments.loglevel == Level::Error { level } else { "warn" };
    let spans = ion_system::spans::TARGET;
    // Other libraries log only warnings and errors, and lapin nothing: their messages may hold
    // anything, even a secret.
    let filter = format!("{others},lapin=off,ion={level},handler_shim={level},{spans}=off");
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_target(false)
        .fmt_fields(escaped_fields());
    match &arguments.logfile {
        Some(path) if !path.as_os_str().is_empty() => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file
                .map_err(|source| HandlerSettingsError::LogFile { path: path.clone(), source })?;
            subscriber.with_ansi(false).with_writer(Arc::new(file)).init();
        }
        _ => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            subscriber.with_ansi(terminal).with_writer(std::io::stderr).init();
        }
    }
    Ok(())
}

/// Formats the fields of log messages: each field is in one line, and a long one is cut, because
/// modules choose some of them.
fn escaped_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let field = |out: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        if field.name() != "message" {
            write!(out, "{}=", field.name())?;
        }
        write_field(out, value)
    };
    debug_fn(field).delimited(" ")
}

/// The stores that the command uses.
pub(super) struct HandlerStores {
    urls: StoreUrls,
    /// Used in place of `urls.blobs` if set, because a URL does not hold the account's key.
    azure: Option<Azure>,
}

/// A container of Azure Blob and its key.
#[cfg_attr(
    not(feature = "azure"),
    expect(dead_code, reason = "only the Azure client reads some fields")
)]
struct Azure {
    account: String,
    key: String,
    container: String,
}

impl std::fmt::Debug for HandlerStores {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.to_json())
    }
}

impl HandlerStores {
    fn choose(arguments: &Arguments, development: bool) -> Result<Self, HandlerSettingsError> {
        let embedded = StoreUrls::embedded(&arguments.home);
        // Development mode uses no configured store.
        if development {
            return Ok(Self { urls: embedded, azure: None });
        }
        let azure = match &arguments.blobs {
            Some(_) => None,
            None => read_azure(&arguments.azure)?,
        };
        let documents = match &arguments.documents {
            Some(url) => Some(url.clone()),
            None => cosmos_url(&arguments.mongo)?,
        };
        if arguments.bus.is_none() && uses_service_bus(&arguments.service_bus) {
            return Err(HandlerSettingsError::ServiceBus);
        }
        let urls = StoreUrls {
            blobs: arguments.blobs.clone().unwrap_or(embedded.blobs),
            documents: documents.unwrap_or(embedded.documents),
            bus: arguments.bus.clone().unwrap_or(embedded.bus),
        };
        Ok(Self { urls, azure })
    }

    /// Opens the stores.
    ///
    /// # Errors
    /// Returns the same errors as [`ion_stores::open::open`].
    pub(super) async fn open(&self) -> Result<DataPlane, StoreError> {
        let blobs: Arc<dyn Blobs> = match &self.azure {
            #[cfg(feature = "azure")]
            Some(azure) => {
                Arc::new(ObjectBlobs::azure(&azure.account, &azure.key, &azure.container)?)
            }
            #[cfg(not(feature = "azure"))]
            Some(azure) => open_blobs(&format!("az://{}", azure.container)).await?,
            None => open_blobs(&self.urls.blobs).await?,
        };
        open_with_blobs(blobs, &self.urls).await
    }

    /// Returns where events are, for people: the URL of the documents without credentials.
    pub(super) fn documents_url(&self) -> String {
        without_credentials(&self.urls.documents)
    }

    fn to_json(&self) -> Value {
        let blobs = match &self.azure {
            Some(azure) => format!("az://{}", azure.container),
            None => without_credentials(&self.urls.blobs),
        };
        json!({"blobs": blobs, "documents": self.documents_url(), "bus": without_credentials(&self.urls.bus)})
    }
}

/// Returns a value that a group of flags needs.
///
/// # Errors
/// [`HandlerSettingsError::Missing`], which names the flag.
fn require_flag(
    group: &'static str,
    flag: &'static str,
    value: Option<&String>,
) -> Result<String, HandlerSettingsError> {
    let value = value.filter(|value| !value.is_empty());
    value.cloned().ok_or(HandlerSettingsError::Missing { group, flag })
}

fn read_azure(group: &AzureArguments) -> Result<Option<Azure>, HandlerSettingsError> {
    let given = group.account.is_some() || group.key.is_some() || group.container.is_some();
    if !group.azure_enabled.unwrap_or(given) {
        return Ok(None);
    }
    let needed =
        |flag, value: &Option<String>| require_flag("azureblobprovider", flag, value.as_ref());
    Ok(Some(Azure {
        account: needed("blobaccountname", &group.account)?,
        key: needed("blobaccountkey", &group.key)?,
        container: needed("containername", &group.container)?,
    }))
}

/// Returns the URL of the Cosmos DB account that older Ion connected to; `None` if the group is not
/// used.
fn cosmos_url(group: &MongoArguments) -> Result<Option<String>, HandlerSettingsError> {
    let given = group.account.is_some() || group.password.is_some() || group.collection.is_some();
    if !group.mongo_enabled.unwrap_or(given) {
        return Ok(None);
    }
    let needed =
        |flag, value: &Option<String>| require_flag("mongodbdocprovider", flag, value.as_ref());
    let name = needed("name", &group.account)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !name.chars().all(allowed) {
        return Err(HandlerSettingsError::CosmosName(name));
    }
    let password = escape_for_url(&needed("password", &group.password)?);
    let port = group.port;
    Ok(Some(format!(
        "mongodb://{name}:{password}@{name}.documents.azure.com:{port}/{name}?tls=true&replicaSet=globaldb&retryWrites=false&maxIdleTimeMS=120000"
    )))
}

/// Escapes a password for a URL.
fn escape_for_url(password: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape =
        |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    password.bytes().map(escape).collect()
}

fn uses_service_bus(group: &ServiceBusArguments) -> bool {
    let given = [&group.namespace, &group.topic, &group.key, &group.rule];
    group.bus_enabled.unwrap_or_else(|| given.into_iter().any(Option::is_some))
}

/// Returns what `--printconfig` prints.
fn printable_settings(
    arguments: &Arguments,
    base_dir: &std::path::Path,
    stores: &HandlerStores,
) -> Value {
    let hidden = |secret: &Option<String>| if secret.is_some() { "***" } else { "" };
    let (azure, mongo, bus) = (&arguments.azure, &arguments.mongo, &arguments.service_bus);
    json!({
        "action": arguments.action.map(|action| format!("{action:?}").to_lowercase()),
        "baseDir": base_dir,
        "context": {
            "name": arguments.name,
            "eventId": arguments.event_id,
            "correlationId": arguments.correlation_id,
            "parentEventId": arguments.parent_event_id,
        },
        "validEventTypes": arguments.valideventtypes,
        "urls": arguments.urls,
        "sharedSecret": hidden(&arguments.sharedsecret),
        "serverPort": arguments.serverport,
        "logLevel": arguments.loglevel.as_str(),
        "logFile": arguments.logfile,
        "development": {"enabled": arguments.development, "baseDir": arguments.development_basedir},
        "stores": stores.to_json(),
        "azureBlobProvider": {
            "enabled": azure.azure_enabled,
            "blobAccountName": azure.account,
            "blobAccountKey": hidden(&azure.key),
            "containerName": azure.container,
        },
        "mongoDBDocProvider": {
            "enabled": mongo.mongo_enabled,
            "name": mongo.account,
            "password": hidden(&mongo.password),
            "collection": mongo.collection,
            "port": mongo.port,
        },
        "serviceBusEventProvider": {
            "enabled": bus.bus_enabled,
            "namespace": bus.namespace,
            "topic": bus.topic,
            "key": hidden(&bus.key),
            "authorizationRuleName": bus.rule,
        },
    })
}
