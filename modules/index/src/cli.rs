//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use ion_index::settings::{RetrySettings, RunSettings, SecretNames, ServerSettings};
use ion_index::{FieldPath, IndexPattern, Shape};

/// What the program is asked to do.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one value of it")]
pub(crate) enum Task {
    Run(RunArgs),
    Check(CheckArgs),
}

impl Task {
    /// Reads a command line. Without a subcommand it asks for a run.
    pub(crate) fn parse_from<I>(line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let command = RunArgs::command().subcommand(CheckArgs::command());
        let matches = command.try_get_matches_from(line)?;
        match matches.subcommand() {
            Some((_, check)) => CheckArgs::from_arg_matches(check).map(Self::Check),
            None => RunArgs::from_arg_matches(&matches).map(Self::Run),
        }
    }
}

/// Say whether a server can be used: whether it answers, its version, the right to write, the
/// templates; exit 1 if a run would fail. Changes nothing
#[derive(Debug, Parser)]
#[command(name = "check")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The index that would be written to, or a pattern
    #[arg(long, value_name = "PATTERN", default_value = "ion-index-check")]
    pub(crate) index: IndexPattern,
    /// An index template to compare with the server's
    #[arg(long = "template", value_name = "FILE")]
    pub(crate) templates: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address, without credentials
    #[arg(long, value_name = "URL", env = "ION_INDEX_URL", hide_env_values = true)]
    url: String,
    /// The folder of the secrets; the options below name files in it
    #[arg(long, value_name = "DIR", env = "ION_SECRETS_DIR", default_value = "/run/secrets")]
    secrets: PathBuf,
    /// The secret with the name of the user
    #[arg(long, value_name = "NAME", requires = "password_from")]
    user_from: Option<String>,
    /// The secret with the user's password
    #[arg(long, value_name = "NAME", requires = "user_from")]
    password_from: Option<String>,
    /// The secret with an API key, as the server's "encoded" or as ID:KEY
    #[arg(long, value_name = "NAME", conflicts_with = "user_from")]
    api_key_from: Option<String>,
    /// A file with the certificates (PEM) that sign the server's; only these count then
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long one request may take; after that it is sent again
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

/// Write the items of an event into Elasticsearch or OpenSearch
///
/// Reads item.json (one item) and items.ndjson (one item a line) below DIR/in/data, and sends them
/// in bulk requests. In the end each item is in the index exactly once, or a line of
/// DIR/out/data/rejected.ndjson, which an event of type "rejected" names. Figures are in
/// DIR/out/insights.json. DIR is a job's tree; any folder with in/data will do.
#[derive(Debug, Parser)]
#[command(
    name = "ion-index",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  ion-index --url http://127.0.0.1:9200 --index 'news-%Y.%m' --dir ./job --source bbc
  ion-index --url https://search.example:9200 --index 'news-%Y.%m' --alias news \\
      --template news.json --user-from search-user --password-from search-password
  ion-index --url https://search.example:9200 --index prices --updates-by changed \\
      --api-key-from search-key --ca /etc/ssl/search.pem
  ion-index check --url https://search.example:9200 --api-key-from search-key

In a pipeline file:
  search:
    on: [article]
    emits: [rejected]
    commit: on-success
    run: [ion-index, --url, http://127.0.0.1:9200, --index, news-%Y.%m]

Exit status: 0 every item is indexed or rejected; 1 the run failed, and running it again goes on;
2 wrong usage; 143 stopped by a signal."
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The tree of the job, or any folder with in/data
    #[arg(long, value_name = "DIR", env = "ION_DIR", default_value = "/ion")]
    dir: PathBuf,
    /// The index, with %Y %m %d %H %j %G %V for the item's own date (UTC); items without a date go
    /// to PATTERN with "undated" in place of the date
    #[arg(long, value_name = "PATTERN")]
    index: IndexPattern,
    /// An alias that every index of the run gets
    #[arg(long, value_name = "NAME", value_parser = alias)]
    alias: Option<String>,
    /// An index template, put before the first item unless the server has it; the file is called
    /// NAME.json
    #[arg(long = "template", value_name = "FILE")]
    templates: Vec<PathBuf>,
    /// The source of the items, a part of their ids [default: the event's value "source", else the
    /// module that published the event]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The field with an item's id, or a JSON pointer such as /properties/id
    #[arg(long, value_name = "FIELD", default_value = "id")]
    id: FieldPath,
    /// A field with an item's date; the first that has one counts. It should never change
    #[arg(long = "date", value_name = "FIELD", default_value = "published")]
    dates: Vec<FieldPath>,
    /// Items change: a field with a whole number or a date that grows with every change. The newest
    /// state stays. Without it the first state stays
    #[arg(long = "updates-by", value_name = "FIELD")]
    versions: Vec<FieldPath>,
    /// The documents: as-it-is, or older-ingest (Publisher, Title, Content and so on)
    #[arg(long, value_name = "SHAPE", default_value = "as-it-is")]
    shape: Shape,
    /// The type of the event about rejected items
    #[arg(long, value_name = "TYPE", default_value = "rejected")]
    rejected_event: String,
    /// Documents in a request, at most
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    batch_items: usize,
    /// Bytes in a request, at most, before compression; a larger document goes alone
    #[arg(long, value_name = "SIZE", default_value = "5MiB", value_parser = size)]
    batch_bytes: usize,
    /// Bytes of an item, at most; a larger one is rejected
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    item_bytes: usize,
    /// Requests at the same time, at most
    #[arg(long, value_name = "N", default_value = "4", value_parser = count)]
    in_flight: usize,
    /// Compress the bodies of requests
    #[arg(long)]
    gzip: bool,
    /// Tries in a row that may fail, before the run does
    #[arg(long, value_name = "N", default_value = "12", value_parser = count)]
    tries: usize,
    /// How long one batch is tried, before the run fails
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    deadline: Duration,
}

impl ServerArgs {
    pub(crate) fn into_settings(self, gzip: bool) -> ServerSettings {
        ServerSettings {
            url: self.url,
            ca: self.ca,
            secrets: SecretNames {
                folder: self.secrets,
                user: self.user_from,
                password: self.password_from,
                api_key: self.api_key_from,
            },
            timeout: self.timeout,
            gzip,
        }
    }
}

impl RunArgs {
    pub(crate) fn into_settings(self) -> RunSettings {
        RunSettings {
            folder: self.dir,
            server: self.server.into_settings(self.gzip),
            index: self.index,
            alias: self.alias,
            templates: self.templates,
            source: self.source,
            id: self.id,
            dates: self.dates,
            versions: self.versions,
            shape: self.shape,
            rejected_event: self.rejected_event,
            batch_items: self.batch_items,
            batch_bytes: self.batch_bytes,
            item_bytes: self.item_bytes,
            in_flight: self.in_flight,
            retry: RetrySettings {
                tries: u32::try_from(self.tries).unwrap_or(u32::MAX),
                deadline: self.deadline,
            },
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("use a time such as 500ms, 30s or 5m".to_owned()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=100_000) => Ok(count),
        _ => Err("use a number from 1 to 100000".to_owned()),
    }
}

fn size(text: &str) -> Result<usize, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0), ("", 0)];
    let parsed = units.iter().find_map(|(unit, bits)| {
        let number: usize = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(1 << bits).filter(|bytes| (1..=1 << 30).contains(bytes))
    });
    parsed.ok_or_else(|| "use a size such as 500KiB or 5MiB, up to 1GiB".to_owned())
}

/// The name of an alias obeys the rules of names of indices.
fn alias(text: &str) -> Result<String, String> {
    if text.contains('%') {
        return Err("an alias has a fixed name, without \"%\"".to_owned());
    }
    text.parse::<IndexPattern>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        RunArgs::command().subcommand(CheckArgs::command()).debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("5MiB"), Ok(5 << 20));
        assert_eq!((size("17"), size("17B"), size("1GiB")), (Ok(17), Ok(17), Ok(1 << 30)));
        for wrong in ["", "0", "MiB", "5MB", "-1", "2GiB", "99999999999999999999"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_times_and_aliases_have_bounds() {
        assert_eq!((count("1"), count("100000")), (Ok(1), Ok(100_000)));
        assert!(count("0").is_err() && count("100001").is_err());
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("0s").is_err() && duration("soon").is_err());
        assert_eq!(alias("news"), Ok("news".into()));
        assert!(alias("news-%Y").is_err() && alias("News").is_err());
    }

    #[test]
    fn check_needs_no_index_and_a_run_does() {
        let parsed = |line: &str| Task::parse_from(line.split(' '));
        let check = parsed("ion-index check --url http://a");
        assert!(matches!(check, Ok(Task::Check(_))), "{check:?}");
        for wrong in [
            "ion-index",
            "ion-index check",
            "ion-index --index a",
            "ion-index --url http://a",
            "ion-index --url http://a --index a check",
            "ion-index --url http://a --index a --user-from a",
            "ion-index --url http://a --index a --user-from a --password-from b --api-key-from c",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        let Ok(Task::Run(run)) = parsed("ion-index --url http://a --index a") else {
            panic!("this line asks for a run")
        };
        let settings = run.into_settings();
        assert_eq!((settings.in_flight, settings.versions.len()), (4, 0));
        assert_eq!(settings.dates, ["published".parse().unwrap()]);
    }

    /// The examples of the manual and of the help are command lines.
    #[test]
    fn every_example_is_a_command_line() {
        let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/index.md");
        let mut text = std::fs::read_to_string(manual).unwrap();
        text.push_str(&RunArgs::command().get_after_help().unwrap().to_string());
        let text = text.replace("\\\n", "");
        let mut examples = 0;
        for line in text.lines().map(|line| line.trim_start().trim_start_matches("$ ")) {
            if line.starts_with("ion-index ") {
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                Task::parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
                examples += 1;
            }
        }
        assert!(examples >= 8, "{examples}");
    }
}
