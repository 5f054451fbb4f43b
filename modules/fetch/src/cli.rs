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

use crate::feed_run::{self, FeedSettings};
use crate::folder::Folder;
use crate::http::{Client, Limits};
use crate::run::{Emit, RunEnd, chain};
use crate::seen::{Choice, First};

/// How many folders of a batch are worked on at the same time. More only wait for each other's
/// servers; fewer wait for slow ones.
const FOLDERS_AT_ONCE: usize = 32;

/// What the program's help says.
const ABOUT: &str = "\
Reads feeds, and writes what is new as plain files.

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
#[command(name = "ion-fetch", version, about = "Reads feeds, and writes what is new as plain files", long_about = ABOUT, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Feed(FeedArgs),
}

/// Where the program works, and how it asks servers.
#[derive(Clone, Debug, Args)]
struct Common {
    /// The folder to work in
    #[arg(long, value_name = "DIR", default_value = "/ion")]
    dir: PathBuf,
    /// After a success, make the new state the one that the next run finds
    ///
    /// For a folder of your own. In Ion the state is kept for you.
    #[arg(long)]
    keep_state: bool,
    /// Whom to write to about these visits: an address of mail or of a page
    ///
    /// It is sent with each request, so that whoever runs the server can ask instead of blocking.
    #[arg(long, value_name = "CONTACT", env = "ION_FETCH_CONTACT")]
    contact: Option<String>,
    /// How long a request may take, with its redirects and its body
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
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
}

/// Publishes what is new in a feed: RSS, Atom or JSON Feed
#[derive(Clone, Debug, Args)]
#[command(long_about = ABOUT_FEED)]
struct FeedArgs {
    #[command(flatten)]
    common: Common,
    /// The address of the feed
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How much of what is there the first run publishes: new (nothing), all, or a number [default: new]
    #[arg(long, value_name = "new|all|N")]
    first: Option<String>,
    /// Publish an item again when its title or text has changed [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    updates: Option<String>,
    /// Read the page of each item too, with its readable text and its picture [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    page: Option<String>,
    /// One event "article" for each item, or one event "articles" for a run [default: article]
    #[arg(long, value_name = "article|articles")]
    emit: Option<String>,
    /// How many items one run publishes; the next runs publish the others [default: 500]
    #[arg(long, value_name = "N")]
    most: Option<String>,
    /// Take the answer 403 for "too often", and wait as after 429 [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    forbidden_waits: Option<String>,
    /// Make a request even if the server has asked to be left alone for longer
    #[arg(long)]
    ignore_wait: bool,
}

/// A flag or a parameter of the folder is wrong.
#[derive(Debug, thiserror::Error)]
enum ParameterError {
    #[error("there is no {name}; give --{name} or write it to in/meta/{name}")]
    Missing { name: &'static str },
    #[error("{name} is wrong: {reason}")]
    Wrong { name: &'static str, reason: String },
}

/// Why a folder's run failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error(transparent)]
    Folder(#[from] crate::folder::FolderError),
    #[error(transparent)]
    Run(#[from] feed_run::RunError),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Parameter(_) => ExitCode::from(2),
            Self::Folder(_) | Self::Run(_) => ExitCode::FAILURE,
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
    let Command::Feed(args) = cli.command;
    runtime.block_on(run_all(args))
}

/// Runs over the folder, or over all folders of a batch.
async fn run_all(args: FeedArgs) -> ExitCode {
    let client = match client(&args.common) {
        Ok(client) => Arc::new(client),
        Err(error) => {
            say(&chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let batch = Folder::batch(&args.common.dir);
    if batch.is_empty() {
        return match run_one(&client, &args.common.dir, &args).await {
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
    run_batch(&client, batch, &args).await
}

/// Runs over many folders. What is wrong with one is written there.
async fn run_batch(client: &Arc<Client>, batch: Vec<PathBuf>, args: &FeedArgs) -> ExitCode {
    let slots = Arc::new(Semaphore::new(FOLDERS_AT_ONCE));
    let mut runs = JoinSet::new();
    for root in batch {
        let (client, args, slots) = (Arc::clone(client), args.clone(), Arc::clone(&slots));
        runs.spawn(async move {
            let _slot = slots.acquire().await;
            let result = run_one(&client, &root, &args).await;
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

/// Runs over one folder, and returns what there is to say.
async fn run_one(client: &Client, root: &Path, args: &FeedArgs) -> Result<String, Failure> {
    let folder = Folder::open(root)?;
    let settings = settings(&folder, args)?;
    let end = feed_run::run(client, &folder, &settings, Timestamp::now()).await?;
    if args.common.keep_state {
        folder.keep_state()?;
    }
    Ok(match end {
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
    })
}

fn client(common: &Common) -> Result<Client, crate::http::HttpError> {
    let version = env!("CARGO_PKG_VERSION");
    let user_agent = match &common.contact {
        Some(contact) => format!("ion-fetch/{version} ({contact})"),
        None => format!("ion-fetch/{version}"),
    };
    let limits = Limits {
        timeout: common.timeout,
        redirects: common.max_redirects,
        body_bytes: common.max_bytes,
        allow_private: common.allow_private,
    };
    Client::new(&user_agent, limits)
}

/// Puts the flags and the parameters of the folder together.
fn settings(folder: &Folder, args: &FeedArgs) -> Result<FeedSettings, Failure> {
    let url: Option<Url> = parameter(folder, "url", args.url.as_ref())?;
    let first: Option<First> = parameter(folder, "first", args.first.as_ref())?;
    let emit: Option<Emit> = parameter(folder, "emit", args.emit.as_ref())?;
    let is = |name, flag: &Option<String>| {
        let given: Result<Option<bool>, Failure> = parameter(folder, name, flag.as_ref());
        given.map(Option::unwrap_or_default)
    };
    Ok(FeedSettings {
        url: url.ok_or(ParameterError::Missing { name: "url" })?,
        choice: Choice {
            first: first.unwrap_or(First::New),
            updates: is("updates", &args.updates)?,
            most: parameter(folder, "most", args.most.as_ref())?.unwrap_or(500),
        },
        page: is("page", &args.page)?,
        emit: emit.unwrap_or(Emit::Each),
        forbidden_waits: is("forbidden-waits", &args.forbidden_waits)?,
        ignore_wait: args.ignore_wait,
    })
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
