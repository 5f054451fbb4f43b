//! `ion find`: insights and events by their values.

use clap::{Args, Subcommand};
use dispatcher::find::{find_event, find_job};
use dispatcher::ledger::Ledger;
use ionfs::event::{Event, KeyValue};
use ionfs::record::InsightRecord;
use ionfs::search::{
    FoundDocument, Search, SearchHit, SearchHits, SearchKind, SearchPace, parse_search_terms,
    term_keys,
};
use ionfs::stores::{Collection, TimeRange, encode};
use serde_json::Value;

use crate::list::ListTime;
use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The rows of a table are printed this many at a time, so that its columns fit most of them.
const TABLE_ROWS: usize = 128;

/// The most columns that a table or CSV has besides those of the terms.
const COLUMNS_MAX: usize = 100;

/// Find insights and events by their values
#[derive(Debug, Subcommand)]
pub(crate) enum FindCommand {
    /// Find insights that a module keeps, the newest first
    #[command(after_help = "Examples:
  ion find insights classify kind=car colour=red           insights of red cars
  ion find insights classify kind=car @new_video           the videos in which a car was detected
  ion find insights classify 'score>=0.9' --since 1d --csv > scores.csv
  ion find insights classify 'kind=car|bus' --count        how many there are

A term is KEY=V (V may be V|W, or have * and ?), KEY!=V, KEY>=N, >, <=, <, KEY (it is there) or
!KEY. All terms must hold. docs/terms.md says more.")]
    Insights {
        /// The module
        module: String,
        #[command(flatten)]
        args: FindArgs,
    },
    /// Find events of a type, the newest first
    #[command(after_help = "Examples:
  ion find events crop 'score>=0.9'            crops with a high score
  ion find events scan 'files=*.png' @batch    the batches that have a scan with a PNG file")]
    Events {
        /// The event type
        #[arg(value_name = "TYPE")]
        event_type: String,
        #[command(flatten)]
        args: FindArgs,
    },
}

/// What all searches have in common.
#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    /// The terms that must hold; @TYPE finds the nearest event of that type at or above each hit,
    /// and shows it once, or once more after --after
    #[arg(value_name = "TERM")]
    terms: Vec<String>,
    /// How many hits to show at most
    #[arg(long, default_value_t = 1000, value_name = "N")]
    limit: usize,
    /// Go on after this hit: the id of an event, or for insights of the job that kept it
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Only hits of this time or later: 10m (ten minutes ago), 2026-05-01 or 2026-05-01T08:30:00Z,
    /// in UTC
    #[arg(long, value_name = "TIME")]
    since: Option<ListTime>,
    /// Only hits before this time
    #[arg(long, value_name = "TIME")]
    until: Option<ListTime>,
    /// Print how many hits there are, and nothing else
    #[arg(long, conflicts_with_all = ["csv", "limit", "after"])]
    count: bool,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

pub(crate) async fn run(settings: &CommandSettings, command: FindCommand) -> CommandResult {
    let (kind, args) = match command {
        FindCommand::Insights { module, args } => (SearchKind::Insights(module), args),
        FindCommand::Events { event_type, args } => (SearchKind::Events(event_type), args),
    };
    let (terms, above) = parse_search_terms(&args.terms)?;
    let ledger = Ledger::new(settings.open_existing_plane().await?);
    let after = match &args.after {
        Some(id) => Some(find_hit(&ledger, &kind, id).await?),
        None => None,
    };
    let time = TimeRange {
        since: args.since.map(ListTime::millis),
        until: args.until.map(ListTime::millis),
    };
    let keys = term_keys(&terms);
    let search = Search { kind, terms, above, time, after, pace: SearchPace::Fastest };
    let mut hits = DistinctHits {
        has_above: search.above.is_some(),
        hits: search.begin(ledger.plane()).await?,
        shown: std::collections::HashSet::new(),
    };
    if args.count {
        let mut count: u64 = 0;
        while hits.next().await?.is_some() {
            count += 1;
        }
        output::print_line(count.to_string());
        return Ok(CommandVerdict::Well);
    }
    print_hits(settings, &args, keys, &mut hits).await
}

/// Returns the document of the hit that the user named.
async fn find_hit(ledger: &Ledger, kind: &SearchKind, id: &str) -> Result<Value, CommandFailure> {
    if matches!(kind, SearchKind::Events(_)) {
        return Ok(encode(&find_event(ledger, id).await?));
    }
    let job = find_job(ledger, id).await?;
    let insight = InsightRecord::id(&job.id);
    let found = ledger.plane().documents.get(Collection::Events, &insight).await?;
    found.ok_or_else(|| CommandFailure(format!("job {} keeps no insights", job.id)))
}

/// Hits, of which those with the same event above them are one.
struct DistinctHits {
    has_above: bool,
    hits: SearchHits,
    /// The events above that were returned.
    shown: std::collections::HashSet<String>,
}

impl DistinctHits {
    async fn next(&mut self) -> Result<Option<SearchHit>, CommandFailure> {
        while let Some(hit) = self.hits.next().await? {
            let above = hit.above.as_ref().map(|event| event.id.to_string());
            if !self.has_above || above.is_some_and(|id| self.shown.insert(id)) {
                return Ok(Some(hit));
            }
        }
        Ok(None)
    }
}

async fn print_hits(
    settings: &CommandSettings,
    args: &FindArgs,
    mut keys: Vec<String>,
    hits: &mut DistinctHits,
) -> CommandResult {
    let mut page = Vec::new();
    let mut printer: Option<RowPrinter> = None;
    let mut last = None;
    for _ in 0..args.limit {
        let Some(hit) = hits.next().await? else { break };
        last = Some(hit_id(&hit));
        if output::has_no_reader() {
            return Ok(CommandVerdict::Well);
        }
        if settings.json {
            output::print_json_line(&hit.document());
            continue;
        }
        page.push(hit);
        if page.len() == TABLE_ROWS {
            print_page(args, &mut keys, &mut printer, std::mem::take(&mut page));
        }
    }
    if !settings.json {
        print_page(args, &mut keys, &mut printer, page);
        if let Some(printer) = printer {
            printer.finish();
        }
    }
    let Some(last) = last else { return Ok(CommandVerdict::Well) };
    if hits.next().await?.is_some() {
        output::print_message(&format!("there are more hits: --after {last} shows them"));
    }
    Ok(CommandVerdict::Well)
}

/// Returns the id by which a search goes on after this hit.
fn hit_id(hit: &SearchHit) -> String {
    match &hit.document {
        FoundDocument::Insight(insight) => insight.job_id.to_string(),
        FoundDocument::Event(event) => event.id.to_string(),
    }
}

fn hit_values(hit: &SearchHit) -> &[KeyValue] {
    match &hit.document {
        FoundDocument::Insight(insight) => &insight.data,
        FoundDocument::Event(event) => &event.data,
    }
}

/// Prints a page. The first page decides which columns there are.
fn print_page(
    args: &FindArgs,
    keys: &mut Vec<String>,
    printer: &mut Option<RowPrinter>,
    page: Vec<SearchHit>,
) {
    let printer = printer.get_or_insert_with(|| {
        let values = page.iter().flat_map(hit_values);
        for KeyValue { key, .. } in values {
            if keys.len() < COLUMNS_MAX && !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        RowPrinter::new(args.csv, keys.clone(), page.iter().any(|hit| hit.above.is_some()))
    });
    printer.print(&page);
}

/// Prints hits as a table or as CSV.
struct RowPrinter {
    keys: Vec<String>,
    has_above: bool,
    /// Whether a hit had a value that has no column.
    is_cut: bool,
    /// The table; none for CSV.
    table: Option<output::Table>,
}

impl RowPrinter {
    fn new(is_csv: bool, keys: Vec<String>, has_above: bool) -> Self {
        let mut heading: Vec<String> = match is_csv {
            true => ["created", "correlation", "event", "job"].map(str::to_owned).into(),
            false => ["CREATED", "EVENT", "JOB"].map(str::to_owned).into(),
        };
        if has_above {
            let names = if is_csv { ["above type", "above event"] } else { ["ABOVE", "ID"] };
            heading.extend(names.map(str::to_owned));
        }
        heading.extend(keys.iter().cloned());
        let table = match is_csv {
            true => {
                output::print_csv(&heading);
                None
            }
            false => Some(output::Table::with_heading(heading)),
        };
        Self { keys, has_above, is_cut: false, table }
    }

    fn print(&mut self, page: &[SearchHit]) {
        let rows: Vec<Vec<String>> = page.iter().map(|hit| self.row(hit)).collect();
        match &mut self.table {
            Some(table) => table.print_rows(rows),
            None => rows.iter().for_each(|row| output::print_csv(row)),
        }
    }

    fn row(&mut self, hit: &SearchHit) -> Vec<String> {
        let (created, context, job) = match &hit.document {
            FoundDocument::Insight(insight) => {
                (insight.created, &insight.context, Some(&insight.job_id))
            }
            FoundDocument::Event(event) => (event.created, &event.context, event.job_id.as_ref()),
        };
        let mut row = match self.table {
            Some(_) => vec![
                output::format_age(created),
                context.event_id.short().to_owned(),
                job.map(|job| job.short().to_owned()).unwrap_or_default(),
            ],
            None => vec![
                output::format_time(created),
                context.correlation_id.to_string(),
                context.event_id.to_string(),
                job.map(ToString::to_string).unwrap_or_default(),
            ],
        };
        if self.has_above {
            let id = |event: &Event| match self.table {
                Some(_) => event.id.short().to_owned(),
                None => event.id.to_string(),
            };
            let above = hit.above.as_ref();
            row.push(above.map(|event| event.event_type.clone()).unwrap_or_default());
            row.push(above.map(id).unwrap_or_default());
        }
        let values = hit_values(hit);
        self.is_cut |= values.iter().any(|pair| !self.keys.contains(&pair.key));
        row.extend(self.keys.iter().map(|key| {
            let of_key = values.iter().filter(|pair| pair.key == *key);
            let of_key: Vec<&str> = of_key.map(|pair| pair.value.as_str()).collect();
            of_key.join(" ")
        }));
        row
    }

    fn finish(self) {
        if let Some(mut table) = self.table {
            table.print_heading();
        }
        if self.is_cut {
            output::print_message(
                "some hits have values of further keys, which have no column; --json prints all",
            );
        }
    }
}
