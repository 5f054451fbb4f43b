//! `ion event`: create, get, peek.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dispatcher::find::{find_correlation, find_event};
use dispatcher::ledger::Ledger;
use dispatcher::list::{EventFilter, ListWatch};
use dispatcher::pipeline::why_nothing_starts;
use ionfs::commit::{Refusal, create_event};
use ionfs::errors::error_chain;
use ionfs::event::{Event, FileEntry, KeyValue, is_event_type};
use ionfs::first::FirstEvent;
use ionfs::id::{CorrelationId, EventId};
use ionfs::stores::{Collection, DataPlane, ID_BYTES_MAX, decode, encode};
use ionfs::text::cut;

use crate::files::{StoredFiles, copy_files, store_files};
use crate::list::{ListFormat, ListPartArgs, ShownList, print_list};
use crate::settings::{ArgumentError, CommandSettings, parse_wait_limit};
use crate::wait::wait_for_correlation;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The most bytes of an event's values in a row of a list.
const VALUES_BYTES_MAX: usize = 80;

/// Create events, and look at them
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    Create(EventCreateArgs),
    List(EventListArgs),
    Get(GetArgs),
    Files(EventFilesArgs),
    Peek(PeekArgs),
}

/// Create an event: store files, and start every module that subscribes to its type
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion event create new_video --file clip.mp4 --wait
  ion event create order --data customer=7 --data note='call first'
  ion event create scan --file scans/             all files and empty folders below scans/, by their paths there")]
pub(crate) struct EventCreateArgs {
    /// The event type
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// A file or folder to store with it; PATH=NAME gives it another name
    #[arg(short, long = "file", value_name = "PATH[=NAME]")]
    files: Vec<OsString>,
    /// A value that the modules receive
    #[arg(short, long = "data", value_name = "KEY=VALUE", value_parser = parse_pair)]
    data: Vec<(String, String)>,
    /// The event's id, 1 to 255 bytes; the same id with the same content is the same event, in the
    /// correlation in which it was first created [default: a new id]
    #[arg(long, value_parser = parse_id)]
    id: Option<String>,
    /// The correlation that the event belongs to, 1 to 255 bytes [default: a new one]
    #[arg(long, value_parser = parse_id)]
    correlation: Option<String>,
    /// The id of the event's parent
    #[arg(long, value_parser = parse_id)]
    parent: Option<String>,
    /// Wait until all work that the event starts has ended, and say what it waits for; exit 0 only
    /// if all of it succeeded. An unavailable document store is waited for too, for 5 minutes at
    /// most
    #[arg(short, long)]
    wait: bool,
    /// The longest time to wait
    #[arg(long, default_value = "1h", value_parser = parse_wait_limit, requires = "wait")]
    timeout: Duration,
}

/// Print an event's document
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The event's id, or the beginning of one
    id: String,
}

/// List events, the latest last
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion event list --type crop --since 2026-05-01      the crops of this day and after it
  ion event list --watch                             go on, and print events as they are committed
  ion --json event list --after 3f2b91c0             one document a line, from this event on")]
pub(crate) struct EventListArgs {
    /// Only events of this type
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only events of this correlation
    #[arg(short, long)]
    correlation: Option<String>,
    #[command(flatten)]
    part: ListPartArgs,
}

/// List an event's files, or copy them into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion event files 3f2b91c0                 their names and sizes
  ion event files 3f2b91c0 --to crops      copy them, checked against their checksums")]
pub(crate) struct EventFilesArgs {
    /// The event's id, or the beginning of one
    id: String,
    /// The folder to copy them to; it is made, or must be empty
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Print the messages that wait in a module's queue, and leave them there
#[derive(Debug, Args)]
pub(crate) struct PeekArgs {
    /// The module
    module: String,
    /// How many messages to print at most
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Parses `KEY=VALUE`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), ArgumentError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ArgumentError::Pair),
    }
}

/// Checks an id that the user has chosen. Every store, message and log can hold it, and it has
/// nothing that a terminal would obey.
fn parse_id(text: &str) -> Result<String, ArgumentError> {
    let fits = (1..=ID_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    match fits {
        true => Ok(text.to_owned()),
        false => Err(ArgumentError::Id),
    }
}

pub(crate) async fn run(settings: &CommandSettings, command: EventCommand) -> CommandResult {
    match command {
        EventCommand::Create(args) => create(settings, args).await,
        EventCommand::List(args) => list(settings, args).await,
        EventCommand::Get(args) => get(settings, args).await,
        EventCommand::Files(args) => files(settings, args).await,
        EventCommand::Peek(args) => peek(settings, args).await,
    }
}

async fn create(settings: &CommandSettings, args: EventCreateArgs) -> CommandResult {
    if !is_event_type(&args.event_type) {
        return Err(CommandFailure(format!(
            "{:?} cannot be an event type: letters, digits, '.', '_' and '-' are allowed",
            args.event_type
        )));
    }
    let plane = settings.open_plane().await?;
    let ledger = Ledger::new(plane.clone());
    let has_chosen_id = args.id.is_some();
    let id = args.id.map_or_else(EventId::random, EventId::new);
    let given_correlation = args.correlation.map(CorrelationId::new);
    let correlation = given_correlation.clone().unwrap_or_else(CorrelationId::random);
    // The prefix belongs to this call alone: another call with the same id must not overwrite the
    // blobs that the first call's event names.
    let prefix = format!("{correlation}/{id}/{}", EventId::random().short());
    let StoredFiles { files, directories } = store_files(&plane, &prefix, &args.files).await?;
    let first = FirstEvent {
        id,
        correlation_id: correlation,
        name: "ion".into(),
        parent: args.parent.unwrap_or_default(),
        event_type: args.event_type,
        files,
        directories,
        data: args.data.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
    };
    let event = first.into_event(&plane, &prefix).await?;
    let event = match has_chosen_id {
        true => commit_or_find(&ledger, event).await?,
        false => {
            create_event(&plane, event.clone()).await?;
            event
        }
    };
    let correlation = &event.context.correlation_id;
    if let Some(wanted) = given_correlation.as_ref().filter(|wanted| *wanted != correlation) {
        return Err(CommandFailure(format!(
            "event {} is there already, in correlation {correlation} and not in {wanted}; leave \
             --correlation out, or give another --id",
            event.id
        )));
    }
    if settings.json && !args.wait {
        output::print_json(&event);
    } else {
        output::print_line(format!("event {} correlation {correlation}", event.id));
    }
    let starts_something = match ledger.modules().await {
        Ok(modules) => match why_nothing_starts(&event.event_type, &modules) {
            Some(warning) => {
                output::print_message(&warning);
                false
            }
            None => true,
        },
        // The event is committed all the same.
        Err(error) => {
            output::print_message(&format!(
                "the modules that it starts cannot be read: {}",
                error_chain(&error)
            ));
            true
        }
    };
    if !args.wait {
        return Ok(CommandVerdict::Well);
    }
    // An event that starts nothing may belong to a correlation whose other work is waited for.
    if !starts_something && given_correlation.is_none() {
        return Ok(CommandVerdict::Failed);
    }
    wait_for_correlation(settings, &ledger, correlation.as_str(), args.timeout).await
}

/// Commits an event whose id the user has chosen. Returns the stored event, which may be that of an
/// earlier call, in another correlation. Removes the blobs of this call if no event names them.
async fn commit_or_find(ledger: &Ledger, event: Event) -> Result<Event, CommandFailure> {
    let plane = ledger.plane();
    if let Err(refusal) = create_event(plane, event.clone()).await {
        if matches!(refusal, Refusal::Differs(_)) {
            remove_blobs(plane, &blob_keys(&event)).await;
        }
        return Err(refusal.into());
    }
    let stored = ledger.visible_event(&event.id).await?.unwrap_or_else(|| event.clone());
    if blob_keys(&stored) != blob_keys(&event) {
        remove_blobs(plane, &blob_keys(&event)).await;
    }
    Ok(stored)
}

fn blob_keys(event: &Event) -> Vec<String> {
    event.files.iter().chain(&event.file_list).map(|entry| entry.key.clone()).collect()
}

async fn remove_blobs(plane: &DataPlane, keys: &[String]) {
    if let Err(error) = plane.blobs.delete_all(keys).await {
        output::print_message(&format!(
            "blobs of this call stay until `ion gc`: {}",
            error_chain(&error)
        ));
    }
}

async fn get(settings: &CommandSettings, args: GetArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let event = find_event(&ledger, &args.id).await?;
    output::print_json(&event);
    Ok(CommandVerdict::Well)
}

async fn list(settings: &CommandSettings, args: EventListArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let correlation = match &args.correlation {
        Some(id) => Some(find_correlation(&ledger, id).await?),
        None => None,
    };
    let filter = EventFilter { event_type: args.event_type, correlation, time: args.part.time() };
    let place = match args.part.place_id() {
        Some(id) => Some(encode(&find_event(&ledger, id).await?)),
        None => None,
    };
    let list = ShownList { query: filter.list(), place, watch: ListWatch::events(&filter) };
    let format = ListFormat {
        heading: &["EVENT", "TYPE", "CREATED", "BY", "FILES", "DATA", "CORRELATION"],
        row: &|document| Ok(event_row(&decode(Collection::Events, document)?)),
    };
    print_list(settings, &*ledger.plane().documents, list, &args.part, &format).await
}

fn event_row(event: &Event) -> Vec<String> {
    let bytes: u64 = event.files.iter().map(|file| file.size).sum();
    let files = match (&event.file_list, event.files.len()) {
        (Some(_), _) => "many".to_owned(),
        (None, 0) => String::new(),
        (None, count) => format!("{count} ({})", output::format_size(bytes)),
    };
    let values: Vec<String> =
        event.data.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    vec![
        event.id.short().to_owned(),
        event.event_type.clone(),
        output::format_age(event.created),
        event.context.name.clone(),
        files,
        cut(&values.join(" "), VALUES_BYTES_MAX).into_owned(),
        event.context.correlation_id.short().to_owned(),
    ]
}

async fn files(settings: &CommandSettings, args: EventFilesArgs) -> CommandResult {
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let event = find_event(&ledger, &args.id).await?;
    let files = ledger.plane().files_of(&event).await?;
    match args.to {
        Some(folder) => {
            let (count, bytes) = copy_files(ledger.plane(), &files, &event, &folder).await?;
            output::print_message(&format!(
                "{count} files ({}) are in {}",
                output::format_size(bytes),
                folder.display()
            ));
        }
        None if settings.json => files.iter().for_each(output::print_json_line),
        None => {
            let row = |file: &FileEntry| {
                let (size, time) =
                    (output::format_size(file.size), output::format_time(file.mtime));
                vec![size, time, file.name.clone()]
            };
            let mut table = output::Table::new(&["SIZE", "MODIFIED", "NAME"]);
            table.print_rows(files.iter().map(row).collect());
            table.print_heading();
        }
    }
    Ok(CommandVerdict::Well)
}

async fn peek(settings: &CommandSettings, args: PeekArgs) -> CommandResult {
    let plane = settings.open_existing_plane().await?;
    let messages = plane.bus.peek(&args.module, args.limit).await?;
    if settings.json {
        messages.iter().for_each(output::print_json_line);
    } else {
        let row = |m: &ionfs::event::Message| {
            vec![
                m.context.event_id.to_string(),
                m.event_type.clone(),
                m.context.name.clone(),
                m.context.correlation_id.to_string(),
            ]
        };
        let mut table = output::Table::new(&["EVENT", "TYPE", "BY", "CORRELATION"]);
        table.print_rows(messages.iter().map(row).collect());
        table.print_heading();
    }
    Ok(CommandVerdict::Well)
}

#[cfg(test)]
mod tests {
    use dispatcher::pipeline::Module;

    use super::{parse_id, parse_pair, why_nothing_starts};

    #[test]
    fn a_type_that_nobody_takes_is_told_of_with_what_was_meant() {
        let module =
            |on: &str| Module { on: vec![on.into()], ..Module::new(on, vec![], "/".into()) };
        let modules = [module("new_video"), module("frame")];
        assert_eq!(why_nothing_starts("frame", &modules), None);
        assert!(
            why_nothing_starts("new_vidoe", &modules)
                .unwrap()
                .ends_with("did you mean \"new_video\"?")
        );
        assert!(
            why_nothing_starts("report", &modules)
                .unwrap()
                .ends_with("modules start on frame, new_video")
        );
        assert!(why_nothing_starts("report", &[]).unwrap().contains("no module is registered"));
    }

    #[test]
    fn values_may_hold_anything_but_a_key_is_needed() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_pair("a="), Ok(("a".into(), String::new())));
        assert!(parse_pair("=b").is_err() && parse_pair("a").is_err());
    }

    #[test]
    fn an_id_is_neither_empty_nor_long() {
        assert!(parse_id("n").is_ok() && parse_id(&"n".repeat(255)).is_ok());
        for wrong in ["", "a\nb", &"n".repeat(256)] {
            assert!(
                parse_id(wrong).unwrap_err().to_string().contains("1 to 255 bytes"),
                "{wrong:?}"
            );
        }
    }
}
