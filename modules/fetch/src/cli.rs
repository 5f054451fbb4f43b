//! The command line: flags, parameters of the folder, messages and exit status.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use url::Url;

use crate::api::{ApiFile, TemplateError, Values};
use crate::api_run::{self, ApiSettings};
use crate::feed_run::{self, FeedSettings};
use crate::folder::Folder;
use crate::http::{Client, Limits};
use crate::run::{Emit, RunEnd, chain};
use crate::seen::{Choice, First};
use crate::watch_run::{self, After, WatchSettings};

/// How many folders of a batch are worked on at the same time. More only wait for each other's
/// servers; fewer wait for slow ones.
const FOLDERS_AT_ONCE: usize = 32;

/// What the program's help says.
const ABOUT: &str = "\
Reads feeds, APIs and folders, and writes what is new as plain files.

The program works in a folder and needs nothing else:

    DIR/in/meta/NAME     parameters, one small file each; a flag of the same name comes first
    DIR/in/state/        what the last succeeded run left
    DIR/out/data/        results
    DIR/out/events/      one JSON document for each new item, naming its files
    DIR/out/state/       what the next run has to find in in/state

In Ion, DIR is /ion and the state is kept for you. Anywhere else, --keep-state keeps it.
If DIR has folders 0, 1, 2 and so on, each of them is worked on; one that fails has the reason
in out/failed and harms no other.";

/// What the help of `feed` says.
const ABOUT_FEED: &str = "\
Publishes what is new in a feed: RSS, Atom or JSON Feed.

Each new item becomes a file out/data/ID/item.json and an event out/events/ID.json. ID is a hash
of the item's guid, or of its link, or of what it says. The state remembers the items that the
feed shows, so each is published once.

    mkdir -p news/in
    ion-fetch feed --dir news --keep-state --url https://example.org/feed.xml --first 3

The state may name two wishes for whoever starts the next run: not-before, a time until which
the server asks to be left alone, and gone, the reason why there is nothing left to visit.
A run that comes too early makes no request.

Exit status: 0 the run succeeded, also when nothing is new; 1 it failed and can be repeated;
2 a flag or a parameter is wrong.";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ion-fetch",
    version,
    about = "Reads feeds, APIs and folders, and writes what is new as plain files",
    long_about = ABOUT,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Feed(FeedArgs),
    Json(JsonArgs),
    Watch(WatchArgs),
}

impl Command {
    fn place(&self) -> &PlaceArgs {
        match self {
            Self::Feed(args) => &args.place,
            Self::Json(args) => &args.place,
            Self::Watch(args) => &args.place,
        }
    }

    /// Returns how servers are asked, if any are.
    fn net(&self) -> Option<&NetArgs> {
        match self {
            Self::Feed(args) => Some(&args.net),
            Self::Json(args) => Some(&args.net),
            Self::Watch(_) => None,
        }
    }
}

/// What the help of `json` says.
const ABOUT_JSON: &str = "\
Publishes what is new in an API that answers JSON.

A file declares the API: the address to ask, and where in its answers the items are. Each new
item becomes a file out/data/ID/item.json and an event out/events/ID.json.

    # quakes.yaml
    url: \"https://example.org/quakes?min={magnitude}\"
    items: $.features[*]
    id: $.id
    time: $.properties.time
    title: $.properties.title

    mkdir -p quakes/in
    ion-fetch json quakes.yaml --dir quakes --keep-state --set magnitude=4 --first all

{magnitude} is a parameter: --set magnitude=4, or a file in/meta/magnitude. A name that the file
lists under \"secrets\" is read from /run/secrets/NAME instead, and is never shown.
The manual explains every key of the file.";

/// What the help of `watch` says.
const ABOUT_WATCH: &str = "\
Publishes the files that appear in a folder.

Each new file becomes out/data/ID/NAME, by reference where the filesystem can, and an event
out/events/ID.json. A file counts when its name, its size and its times have stood still for a
while. Drafts are left alone: names that begin with a dot or end in ~, .tmp, .part, .swp.

    mkdir -p scans/in
    ion-fetch watch --dir scans --keep-state --path /srv/scanner --first all --after move=/srv/done

With --after, a file is moved or deleted by the run after the one that published it, so a run that
fails loses no file.";

/// Where the program works.
#[derive(Clone, Debug, Args)]
struct PlaceArgs {
    /// The folder to work in
    #[arg(long, value_name = "DIR", default_value = "/ion")]
    dir: PathBuf,
    /// After a success, make the new state the one that the next run finds
    ///
    /// For a folder of your own. In Ion the state is kept for you.
    #[arg(long)]
    keep_state: bool,
}

/// How the program asks servers.
#[derive(Clone, Debug, Args)]
struct NetArgs {
    /// Whom to write to about these visits: an address of mail or of a page
    ///
    /// It is sent with each request, so that whoever runs the server can ask instead of blocking.
    #[arg(long, value_name = "CONTACT", env = "ION_FETCH_CONTACT")]
    contact: Option<String>,
    /// How long a request may take, with its redirects and its body
    #[arg(
        long,
        value_name = "TIME",
        default_value = "1m",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
    /// How many bytes an answer may have, packed and unpacked
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024 * 1024)]
    max_bytes: usize,
    /// How many redirects a request may take
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_redirects: usize,
    /// Allow addresses of this machine and of private networks
    ///
    /// Whoever gives an address can then reach what this machine can reach, so it is a flag only
    /// and never a parameter of the folder.
    #[arg(long)]
    allow_private: bool,
    /// Take the answer 403 for "too often", and wait as after 429 [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    forbidden_waits: Option<String>,
    /// Make a request even if the server has asked to be left alone for longer
    #[arg(long)]
    ignore_wait: bool,
}

/// Publishes what is new in a feed: RSS, Atom or JSON Feed
#[derive(Clone, Debug, Args)]
#[command(long_about = ABOUT_FEED)]
struct FeedArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    net: NetArgs,
    /// The address of the feed
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Read the page of each item too, with its readable text and its picture [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    page: Option<String>,
    /// One event "article" for each item, or one event "articles" for a run [default: article]
    #[arg(long, value_name = "article|articles")]
    emit: Option<String>,
    #[command(flatten)]
    choice: ChoiceArgs,
}

/// Publishes what is new in an API that answers JSON
#[derive(Clone, Debug, Args)]
#[command(long_about = ABOUT_JSON)]
struct JsonArgs {
    /// The file that declares the API
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    net: NetArgs,
    /// The value of a name in the file
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// The folder that has the secrets, one file each
    #[arg(long, value_name = "DIR", env = "ION_SECRETS_DIR", default_value = "/run/secrets")]
    secrets: PathBuf,
    /// One event "item" for each item, or one event "items" for a run [default: item]
    #[arg(long, value_name = "item|items")]
    emit: Option<String>,
    #[command(flatten)]
    choice: ChoiceArgs,
}

/// Publishes the files that appear in a folder
#[derive(Clone, Debug, Args)]
#[command(long_about = ABOUT_WATCH)]
struct WatchArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The folder that files appear in
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Take the folder from in/meta/path, if it lies below this one
    #[arg(long, value_name = "DIR", conflicts_with = "path")]
    below: Option<PathBuf>,
    /// Watch the folders in the folder too
    #[arg(long)]
    recursive: bool,
    /// How long a file must have stood still
    #[arg(
        long,
        value_name = "TIME",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    settle: Duration,
    /// What becomes of a file after it was published: keep, delete or move=DIR
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    after: After,
    /// One event "file" for each file, or one event "files" for a run [default: file]
    #[arg(long, value_name = "file|files")]
    emit: Option<String>,
    #[command(flatten)]
    choice: ChoiceArgs,
}

/// Which items are published.
#[derive(Clone, Debug, Args)]
struct ChoiceArgs {
    /// How much of what is there the first run publishes: new (nothing), all, or a number
    ///
    /// [default: new]
    #[arg(long, value_name = "new|all|N")]
    first: Option<String>,
    /// Publish an item again when it has changed [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    updates: Option<String>,
    /// How many items one run publishes; the next runs publish the others [default: 500]
    #[arg(long, value_name = "N")]
    most: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A flag or a parameter of the folder is wrong.
#[derive(Debug, thiserror::Error)]
enum ParameterError {
    #[error("there is no {name}; give --{name} or write it to in/meta/{name}")]
    Missing { name: &'static str },
    #[error("there is no folder to watch; give --path, or --below and in/meta/path")]
    NoPath,
    #[error("{name} is wrong: {reason}")]
    Wrong { name: &'static str, reason: String },
    #[error("cannot read the file {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the file {} does not declare an API", path.display())]
    Api {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Value(#[from] TemplateError),
}

/// Why a folder's run failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error(transparent)]
    Folder(#[from] crate::folder::FolderError),
    #[error(transparent)]
    Feed(#[from] feed_run::RunError),
    #[error(transparent)]
    Api(#[from] api_run::ApiError),
    #[error(transparent)]
    Watch(#[from] watch_run::WatchError),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Parameter(_) => ExitCode::from(2),
            Self::Folder(_) | Self::Feed(_) | Self::Api(_) | Self::Watch(_) => ExitCode::FAILURE,
        }
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                say(&format!("cannot start: {error}"));
                return ExitCode::FAILURE;
            }
        };
    runtime.block_on(run_all(cli.command))
}

/// Runs over the folder, or over all folders of a batch.
async fn run_all(command: Command) -> ExitCode {
    let client = match command.net().map(client).transpose() {
        Ok(client) => client,
        Err(error) => {
            say(&chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let dir = command.place().dir.clone();
    let work = Arc::new(Work { command, client });
    let batch = Folder::batch(&dir);
    if batch.is_empty() {
        return match work.run(&dir).await {
            Ok(end) => {
                say(&end);
                ExitCode::SUCCESS
            }
            Err(failure) => {
                say(&chain(&failure));
                failure.exit_code()
            }
        };
    }
    run_batch(&work, batch).await
}

/// Runs over many folders. What is wrong with one is written there.
async fn run_batch(work: &Arc<Work>, batch: Vec<PathBuf>) -> ExitCode {
    let slots = Arc::new(Semaphore::new(FOLDERS_AT_ONCE));
    let mut runs = JoinSet::new();
    for root in batch {
        let (work, slots) = (Arc::clone(work), Arc::clone(&slots));
        runs.spawn(async move {
            let _slot = slots.acquire().await;
            let result = work.run(&root).await;
            (root, result)
        });
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(done) = runs.join_next().await {
        let Ok((root, result)) = done else {
            code = ExitCode::FAILURE;
            continue;
        };
        let name = root.display();
        match result {
            Ok(end) => say(&format!("{name}: {end}")),
            Err(failure) => {
                let reason = chain(&failure);
                say(&format!("{name}: {reason}"));
                if let Err(error) = Folder::write_failure(&root, &reason) {
                    say(&chain(&error));
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    code
}

/// What is done in each folder.
struct Work {
    command: Command,
    /// What asks servers, for the subcommands that do.
    client: Option<Client>,
}

impl Work {
    /// Runs over one folder, and returns what there is to say.
    async fn run(&self, root: &Path) -> Result<String, Failure> {
        let folder = Folder::open(root)?;
        let now = Timestamp::now();
        let end = match (&self.command, &self.client) {
            (Command::Feed(args), Some(client)) => {
                feed_run::run(client, &folder, &feed_settings(&folder, args)?, now).await?
            }
            (Command::Json(args), Some(client)) => {
                api_run::run(client, &folder, &api_settings(&folder, args)?, now).await?
            }
            (Command::Watch(args), _) => {
                watch_run::run(&folder, &watch_settings(&folder, args)?).await?
            }
            (Command::Feed(_) | Command::Json(_), None) => {
                unreachable!("a subcommand that asks servers has a client")
            }
        };
        if self.command.place().keep_state {
            folder.keep_state()?;
        }
        Ok(words(end))
    }
}

/// Returns how a run ended, in words.
fn words(end: RunEnd) -> String {
    match end {
        RunEnd::Waiting(until) => format!("no request before {until}, as the server asked"),
        RunEnd::NotModified => "nothing has changed".to_owned(),
        RunEnd::Published(0) => "nothing is new".to_owned(),
        RunEnd::Published(1) => "published 1 item".to_owned(),
        RunEnd::Published(count) => format!("published {count} items"),
        RunEnd::Refused { status, until: Some(until) } => {
            format!("the server answered {status}; the next request may come at {until}")
        }
        RunEnd::Refused { status, until: None } => format!("the server answered {status}"),
        RunEnd::Gone(reason) => format!("the feed is gone: {reason}"),
    }
}

fn client(net: &NetArgs) -> Result<Client, crate::http::HttpError> {
    let version = env!("CARGO_PKG_VERSION");
    let user_agent = match &net.contact {
        Some(contact) => format!("ion-fetch/{version} ({contact})"),
        None => format!("ion-fetch/{version}"),
    };
    let limits = Limits {
        timeout: net.timeout,
        redirects: net.max_redirects,
        body_bytes: net.max_bytes,
        allow_private: net.allow_private,
    };
    Client::new(&user_agent, limits)
}

/// Puts the flags and the parameters of the folder together.
fn feed_settings(folder: &Folder, args: &FeedArgs) -> Result<FeedSettings, Failure> {
    let url: Option<Url> = parameter(folder, "url", args.url.as_ref())?;
    let choice = choice(folder, &args.choice)?;
    Ok(FeedSettings {
        url: url.ok_or(ParameterError::Missing { name: "url" })?,
        choice,
        page: is(folder, "page", args.page.as_ref())?,
        emit: parameter(folder, "emit", args.emit.as_ref())?.unwrap_or(Emit::Each),
        forbidden_waits: is(folder, "forbidden-waits", args.net.forbidden_waits.as_ref())?,
        ignore_wait: args.net.ignore_wait,
    })
}

fn api_settings(folder: &Folder, args: &JsonArgs) -> Result<ApiSettings, Failure> {
    let path = || args.file.clone();
    let text = std::fs::read_to_string(&args.file)
        .map_err(|source| ParameterError::File { path: path(), source })?;
    let file = ApiFile::read(&text)
        .map_err(|source| ParameterError::Api { path: path(), source: Box::new(source) })?;
    Ok(ApiSettings {
        values: values(folder, args, &file)?,
        file,
        choice: choice(folder, &args.choice)?,
        emit: parameter(folder, "emit", args.emit.as_ref())?.unwrap_or(Emit::Each),
        forbidden_waits: is(folder, "forbidden-waits", args.net.forbidden_waits.as_ref())?,
        ignore_wait: args.net.ignore_wait,
    })
}

fn watch_settings(folder: &Folder, args: &WatchArgs) -> Result<WatchSettings, Failure> {
    let path = match (&args.path, &args.below) {
        (Some(path), _) => path.clone(),
        (None, Some(below)) => {
            let given = folder.parameter("path")?;
            let given = given.ok_or(ParameterError::Missing { name: "path" })?;
            watch_run::path_below(Path::new(&given), below)
                .map_err(|reason| ParameterError::Wrong { name: "path", reason })?
        }
        (None, None) => return Err(ParameterError::NoPath.into()),
    };
    Ok(WatchSettings {
        path,
        recursive: args.recursive,
        settle: args.settle,
        after: args.after.clone(),
        choice: choice(folder, &args.choice)?,
        emit: parameter(folder, "emit", args.emit.as_ref())?.unwrap_or(Emit::Each),
    })
}

fn choice(folder: &Folder, args: &ChoiceArgs) -> Result<Choice, Failure> {
    Ok(Choice {
        first: parameter(folder, "first", args.first.as_ref())?.unwrap_or(First::New),
        updates: is(folder, "updates", args.updates.as_ref())?,
        most: parameter(folder, "most", args.most.as_ref())?.unwrap_or(500),
    })
}

/// Returns the value of each name in the file: a secret from its file, anything else from a flag,
/// the folder or the file's defaults. An item's id is known only later.
fn values(folder: &Folder, args: &JsonArgs, file: &ApiFile) -> Result<Values, Failure> {
    let mut values = Values::new();
    for name in file.names() {
        let is_secret = file.secrets.iter().any(|secret| secret == name);
        let value = if is_secret {
            let path = args.secrets.join(name);
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ParameterError::File { path, source })?;
            Some(text.trim().to_owned())
        } else if let Some((_, value)) = args.set.iter().find(|(known, _)| known == name) {
            Some(value.clone())
        } else {
            folder.parameter(name)?.or_else(|| file.default_of(name))
        };
        let value = value.ok_or_else(|| TemplateError::Missing(name.to_owned()));
        values.insert(name.to_owned(), value.map_err(ParameterError::from)?);
    }
    Ok(values)
}

/// Returns whether a parameter is `true`.
fn is(folder: &Folder, name: &'static str, flag: Option<&String>) -> Result<bool, Failure> {
    Ok(parameter(folder, name, flag)?.unwrap_or_default())
}

/// Returns a parameter: the flag, or else the file of its name.
fn parameter<T: FromStr>(
    folder: &Folder,
    name: &'static str,
    flag: Option<&String>,
) -> Result<Option<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    let text = match flag {
        Some(text) => Some(text.clone()),
        None => folder.parameter(name)?,
    };
    let read = |text: String| {
        let wrong = |error: T::Err| format!("{text:?} cannot be read: {error}");
        text.parse().map_err(|error| ParameterError::Wrong { name, reason: wrong(error) })
    };
    Ok(text.map(read).transpose()?)
}

/// Tells the person who started the program.
#[expect(clippy::print_stderr, reason = "this is where the program speaks")]
fn say(text: &str) {
    eprintln!("ion-fetch: {text}");
}
