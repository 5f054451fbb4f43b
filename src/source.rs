//! `ion source`: the sources of a plane, which start modules by a clock.

mod import;
mod trial;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use dispatcher::ledger::Ledger;
use dispatcher::pipeline::{Module, SourceFields, define_source_from_json};
use dispatcher::sources::{ExpectedSource, RunReport, SourceRuns, Sources, WantedSource};
use ionfs::clock::{self, Millis};
use ionfs::record::JobRecord;
use ionfs::runs::{RunEvents, job_id};
use ionfs::source::{Backfill, MissedRuns, SourceRecord, SourceState, StateFiles};
use ionfs::stores::{Collection, Query, StartAt, decode};
use serde_json::{Map, Value, json};

use self::import::SourceImportArgs;
use self::trial::SourceTryArgs;

use crate::event::parse_pair;
use crate::list::ListTime;
use crate::settings::CommandSettings;
use crate::wait::wait_for_correlation;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two looks whether a run has begun.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How many rows a list shows unless the user says otherwise.
const LIMIT: usize = 1000;

/// Start modules by a clock: list, add and change sources, run them now, look at their state
#[derive(Debug, Subcommand)]
pub(crate) enum SourceCommand {
    List(SourceListArgs),
    /// Print a source's document
    Get(SourceName),
    Add(SourceAddArgs),
    Edit(SourceEditArgs),
    /// Remove a source; its runs and what came of them stay
    Delete(SourceName),
    Run(SourceRunArgs),
    /// Begin no more scheduled runs; a run that goes on is not stopped
    Pause(SourceName),
    /// Go on after a pause, or after what it reads was gone
    Resume(SourceName),
    Runs(SourceRunsArgs),
    /// List the files that the last succeeded run left for the next one
    State(SourceName),
    /// Forget the state: the next run begins as the first one did
    Reset(SourceName),
    Rewind(RewindArgs),
    Try(SourceTryArgs),
    Import(SourceImportArgs),
}

/// The name of a source.
#[derive(Debug, Args)]
pub(crate) struct SourceName {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
}

/// List the sources by name, with what they do and when they run next
#[derive(Debug, Args)]
pub(crate) struct SourceListArgs {
    /// Only sources in this state: idle, running, failing, paused or gone
    #[arg(short, long, value_parser = parse_state)]
    state: Option<SourceState>,
    /// How many rows to show at most
    #[arg(long, default_value_t = LIMIT, value_name = "N")]
    limit: usize,
    /// Show the rows after this source
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
}

/// Add a source
///
/// Its module must be registered and have "params" in its pipeline file. A dispatcher that runs
/// begins its runs at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion source add bbc-top --module feed --every 15m --with url=https://feeds.example/news.xml
  ion source add report --module mail --at \"30 6 * * mon-fri\" --zone Europe/London
  ion source add rust --module posts --every 15m --with query=rust --secret token=X_TOKEN")]
pub(crate) struct SourceAddArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The module that it starts
    #[arg(short, long)]
    module: String,
    #[command(flatten)]
    schedule: ScheduleFlags,
}

/// Change a source: what is not given stays as it is
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion source edit bbc-top --every 5m
  ion source edit bbc-top --with url=https://feeds.example/world.xml")]
pub(crate) struct SourceEditArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    schedule: ScheduleFlags,
}

/// When a source runs and what its module receives.
#[derive(Debug, Args)]
struct ScheduleFlags {
    /// Its period, such as 30s, 15m or 1day
    #[arg(long, value_name = "TIME", conflicts_with = "at")]
    every: Option<String>,
    /// The times at which it runs, as a cron expression: minute, hour, day of the month, month, day
    /// of the week
    #[arg(long, value_name = "CRON")]
    at: Option<String>,
    /// The time zone of --at, such as Europe/London [default: UTC]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Begin each run up to so much later, to spread the load
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// What to do about times at which no dispatcher ran: last (one run makes up for them), skip, or
    /// all (a run for each of the last 24 hours) [default: last]
    #[arg(long, value_name = "WHICH", value_parser = parse_missed)]
    missed: Option<MissedRuns>,
    /// How much of what is there the first run publishes: new, all, or a number
    #[arg(long, value_name = "HOW-MUCH")]
    first: Option<String>,
    /// A value of a parameter of the module; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    with: Vec<(String, String)>,
    /// Where a secret parameter of the module is: the name of a secret that the dispatchers have,
    /// and never a value; may be repeated
    #[arg(long = "secret", value_name = "PARAMETER=NAME", value_parser = parse_pair)]
    secret_origins: Vec<(String, String)>,
}

/// Run a source now, also one that is paused
///
/// If a run goes on, the new one begins when it has ended. With --from and --until, each scheduled
/// time in between has a run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion source run bbc-top --wait
  ion source run report --from 2026-11-01 --until 2026-11-08")]
pub(crate) struct SourceRunArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Wait until the run has ended, and all that its events start; the exit code is 1 if a job
    /// failed
    #[arg(long, conflicts_with = "from")]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Run the scheduled times from this one on: 2d (two days ago), 2026-05-01 or
    /// 2026-05-01T08:30:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<ListTime>,
    /// Up to this time [default: now]
    #[arg(long, value_name = "TIME", requires = "from")]
    until: Option<ListTime>,
}

/// List the runs of a source, the latest first
#[derive(Debug, Args)]
pub(crate) struct SourceRunsArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    /// How many runs to show at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Show the runs before this one, given by its correlation
    #[arg(long, value_name = "RUN")]
    before: Option<String>,
}

/// Let the next run begin with what an earlier run left
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion source runs bbc-top
  ion source rewind bbc-top --run 12       what came after run 12 is published once more")]
pub(crate) struct RewindArgs {
    /// The source's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The number of the run
    #[arg(long, value_name = "N")]
    run: u64,
}

fn parse_state(text: &str) -> Result<SourceState, String> {
    let words = SourceState::ALL.map(SourceState::as_str);
    let found = SourceState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| format!("one of {} is expected", words.join(", ")))
}

fn parse_missed(text: &str) -> Result<MissedRuns, String> {
    serde_json::from_value(json!(text)).map_err(|_| "last, skip or all is expected".to_owned())
}

pub(crate) async fn run(settings: &CommandSettings, command: SourceCommand) -> CommandResult {
    if let SourceCommand::Try(args) = command {
        return trial::try_source(settings, args).await;
    }
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let sources = Sources::new(ledger.clone());
    match command {
        SourceCommand::List(args) => return list(settings, &ledger, &args).await,
        SourceCommand::Get(SourceName { name }) => output::print_json(&sources.get(&name).await?),
        SourceCommand::Add(args) => {
            let mut fields = args.schedule.into_patch();
            fields.insert("module".to_owned(), json!(args.module));
            let modules = sources.modules().await?;
            let want = |_: Option<&SourceRecord>| want(&args.name, fields.clone(), &modules);
            let (source, _) = sources.edit(&args.name, &ExpectedSource::Missing, want).await?;
            print_next(&source, "is added");
        }
        SourceCommand::Edit(args) => {
            let patch = args.schedule.into_patch();
            let modules = sources.modules().await?;
            let want = |found: Option<&SourceRecord>| {
                let definition = found.map(|found| &found.definition);
                let patched =
                    definition.map(|definition| SourceFields::patched(definition, &patch));
                want(&args.name, patched.unwrap_or_else(|| patch.clone()), &modules)
            };
            let (source, _) = sources.edit(&args.name, &ExpectedSource::Existing, want).await?;
            print_next(&source, "is changed");
        }
        SourceCommand::Delete(SourceName { name }) => {
            sources.delete(&name, &ExpectedSource::Existing).await?;
            output::print_message(&format!("source {name:?} is removed"));
        }
        SourceCommand::Run(args) => return run_now(settings, &ledger, &sources, args).await,
        SourceCommand::Pause(SourceName { name }) => {
            sources.pause(&name).await?;
            output::print_message(&format!(
                "source {name:?} is paused; `ion source resume {name}` lets it go on"
            ));
        }
        SourceCommand::Resume(SourceName { name }) => {
            print_next(&sources.resume(&name).await?, "goes on");
        }
        SourceCommand::Runs(args) => return list_runs(settings, &ledger, &sources, args).await,
        SourceCommand::State(SourceName { name }) => {
            let source = sources.get(&name).await?;
            print_state(settings, &ledger, &source.state).await?;
        }
        SourceCommand::Reset(SourceName { name }) => {
            sources.put_state(&name, StateFiles::default()).await?;
            output::print_message(&format!("source {name:?} begins anew with its next run"));
        }
        SourceCommand::Rewind(RewindArgs { name, run }) => {
            let source = sources.get(&name).await?;
            sources.put_state(&name, state_left_by(&ledger, &source, run).await?).await?;
            output::print_message(&format!(
                "the next run of source {name:?} begins with what run {run} left"
            ));
        }
        SourceCommand::Import(args) => return import::import(settings, &ledger, args).await,
        SourceCommand::Try(_) => {}
    }
    Ok(CommandVerdict::Well)
}

impl ScheduleFlags {
    /// Returns what the flags say as a merge patch of a source's fields.
    fn into_patch(self) -> Map<String, Value> {
        let Self { every, at, zone, jitter, missed, first, with, secret_origins } = self;
        let texts =
            [("every", every), ("at", at), ("zone", zone), ("jitter", jitter), ("first", first)];
        let given = texts.into_iter().filter_map(|(field, text)| Some((field, json!(text?))));
        let missed = missed.map(|missed| ("missed", json!(missed)));
        let maps = [("with", with), ("secrets", secret_origins)].map(|(field, pairs)| {
            let pairs: Map<String, Value> =
                pairs.into_iter().map(|(key, value)| (key, json!(value))).collect();
            (!pairs.is_empty()).then(|| (field, Value::Object(pairs)))
        });
        let all = given.chain(missed).chain(maps.into_iter().flatten());
        all.map(|(field, value)| (field.to_owned(), value)).collect()
    }
}

/// Returns what a source of these fields is to be.
fn want(
    name: &str,
    fields: Map<String, Value>,
    modules: &[Module],
) -> Result<WantedSource, CommandFailure> {
    let module = |name: &str| modules.iter().find(|module| module.name == name);
    let definition = define_source_from_json(name, fields, module)?;
    Ok(WantedSource { definition, paused: None })
}

fn print_next(source: &SourceRecord, what: &str) {
    let next = match source.next {
        Millis::MAX => "it never runs by itself".to_owned(),
        next => format!("its next run begins at {}", output::format_time(next)),
    };
    output::print_message(&format!("source {:?} {what}; {next}", source.id));
}

async fn list(settings: &CommandSettings, ledger: &Ledger, args: &SourceListArgs) -> CommandResult {
    let documents = &*ledger.plane().documents;
    let mut table = output::Table::new(&[
        "SOURCE",
        "STATE",
        "MODULE",
        "NEXT RUN",
        "LAST RUN",
        "RUNS",
        "DISPATCHER",
    ]);
    let mut start = match &args.after {
        Some(name) => StartAt::After { value: json!(name), id: name.clone() },
        None => StartAt::Beginning,
    };
    let mut left = args.limit;
    loop {
        let query = Query::all(Collection::Sources).start_at(start).limit(PAGE_ROWS);
        let page = documents.find(query).await?;
        let Some(last) = page.last() else { break };
        start = StartAt::after_row(last, None);
        let is_last = page.len() < PAGE_ROWS;
        let mut rows = Vec::new();
        for document in page {
            let source: SourceRecord = decode(Collection::Sources, document)?;
            if args.state.is_some_and(|state| source.state() != state) {
                continue;
            }
            if left == 0 {
                table.print_rows(rows);
                output::print_message(
                    "there are more sources: --limit N or --after NAME shows them",
                );
                return Ok(CommandVerdict::Well);
            }
            left -= 1;
            match settings.json {
                true => output::print_json_line(&source),
                false => rows.push(row(&source)),
            }
        }
        table.print_rows(rows);
        if is_last || output::has_no_reader() {
            break;
        }
    }
    if !settings.json {
        table.print_heading();
    }
    Ok(CommandVerdict::Well)
}

/// How many sources are read at once.
const PAGE_ROWS: usize = 128;

fn row(source: &SourceRecord) -> Vec<String> {
    let next = match source.state() {
        SourceState::Paused | SourceState::Gone => "-".to_owned(),
        _ if source.next == Millis::MAX => "-".to_owned(),
        _ => output::format_time(source.next),
    };
    let last = source.run.as_ref().map_or("-".to_owned(), |run| output::format_age(run.began));
    vec![
        source.id.clone(),
        source.state().as_str().to_owned(),
        source.definition.module.clone(),
        next,
        last,
        source.runs.to_string(),
        source.dispatcher.as_deref().map_or("-", |id| ionfs::id::short_id(id)).to_owned(),
    ]
}

async fn run_now(
    settings: &CommandSettings,
    ledger: &Ledger,
    sources: &Sources,
    args: SourceRunArgs,
) -> CommandResult {
    if let Some(from) = args.from {
        let until = args.until.map_or_else(clock::now, ListTime::millis);
        let backfill = Backfill { after: from.millis() - 1, until };
        sources.ask_for_backfill(&args.name, backfill).await?;
        output::print_message(&format!("source {:?} runs its past times", args.name));
        return Ok(CommandVerdict::Well);
    }
    let before = sources.ask_for_run(&args.name).await?.runs;
    if !args.wait {
        output::print_message(&format!("source {:?} runs as soon as a slot is free", args.name));
        return Ok(CommandVerdict::Well);
    }
    let deadline = Instant::now() + args.timeout;
    loop {
        let source = sources.get(&args.name).await?;
        let begun = source.run.filter(|run| run.number > before && !source.asked);
        // The document names the event before it is there.
        if let Some(run) = begun
            && ledger.event(&run.event).await?.is_some()
        {
            let correlation = run.correlation.as_str();
            let left = deadline.saturating_duration_since(Instant::now());
            return wait_for_correlation(settings, ledger, correlation, left).await;
        }
        if Instant::now() > deadline {
            return Err(CommandFailure(format!(
                "the run has not begun after {}; is a dispatcher there? `ion doctor` tells",
                humantime::format_duration(args.timeout)
            )));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Lists the runs of a source.
async fn list_runs(
    settings: &CommandSettings,
    ledger: &Ledger,
    sources: &Sources,
    args: SourceRunsArgs,
) -> CommandResult {
    sources.get(&args.name).await?;
    let mut runs = SourceRuns::latest_first(&args.name, args.before.as_deref())?;
    let mut table = output::Table::new(&["RUN", "SCHEDULED", "STATE", "TOOK", "REASON"]);
    let (mut rows, mut last, mut count) = (Vec::new(), None, 0);
    let mut is_cut = false;
    while let Some(run) = runs.next(ledger.plane()).await? {
        if count == args.limit {
            is_cut = true;
            break;
        }
        count += 1;
        match settings.json {
            true => output::print_json_line(&run),
            false => rows.push(run_row(&run)),
        }
        if rows.len() >= PAGE_ROWS {
            table.print_rows(std::mem::take(&mut rows));
        }
        last = Some(run.run);
    }
    if !settings.json {
        table.print_rows(rows);
        table.print_heading();
    }
    if let (true, Some(last)) = (is_cut, last) {
        output::print_message(&format!("there are more runs: --before {last} shows them"));
    }
    Ok(CommandVerdict::Well)
}

fn run_row(run: &RunReport) -> Vec<String> {
    let job = run.job.as_ref();
    let took = job.and_then(|job| Some(job.ended? - job.created));
    let reason = job.and_then(|job| job.attempts.last()).and_then(|last| last.reason.as_deref());
    vec![
        run.run.to_string(),
        output::format_time(run.scheduled),
        run.state().to_owned(),
        took.map_or("-".to_owned(), output::format_duration),
        output::escape_foreign(reason.unwrap_or_default()),
    ]
}

async fn print_state(
    settings: &CommandSettings,
    ledger: &Ledger,
    state: &StateFiles,
) -> Result<(), CommandFailure> {
    let files = ledger.plane().listed_files(&state.files, state.file_list.as_ref()).await?;
    if settings.json {
        files.iter().for_each(output::print_json_line);
        return Ok(());
    }
    let mut table = output::Table::new(&["FILE", "SIZE", "MODIFIED"]);
    let row = |file: &ionfs::event::FileEntry| {
        vec![
            output::escape_foreign(&file.name),
            output::format_size(file.size),
            output::format_age(file.mtime),
        ]
    };
    table.print_rows(files.iter().map(row).collect());
    table.print_heading();
    Ok(())
}

/// Returns what a run of this number left.
async fn state_left_by(
    ledger: &Ledger,
    source: &SourceRecord,
    number: u64,
) -> Result<StateFiles, CommandFailure> {
    let missing = |why: &str| {
        CommandFailure(format!(
            "run {number} of source {:?} {why}; `ion source runs {}` shows its runs",
            source.id, source.id
        ))
    };
    let found = RunEvents::numbered(&source.id, number).next(ledger.plane()).await?;
    let event = found.ok_or_else(|| missing("is not there"))?;
    let job = job_id(&event).ok_or_else(|| missing("is not there"))?;
    let job: Option<JobRecord> =
        ledger.plane().documents.get_as(Collection::Jobs, job.as_str()).await?;
    let left = job.and_then(|job| job.left).ok_or_else(|| missing("has left no state"))?;
    Ok(left.state)
}
