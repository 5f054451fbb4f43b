//! What all commands that list rows have in common: which part of the list is shown, how it is
//! printed, and how it is watched.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use dispatcher::list::{ListPart, ListQuery, ListWatch};
use ionfs::clock::{self, Millis};
use ionfs::event::is_staged;
use ionfs::stores::Documents;
use ionfs::stores::TimeRange;
use serde_json::Value;

use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// The time between two looks at a list that is watched.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How many rows a list shows unless the user says otherwise.
const LIMIT: usize = 1000;

/// Which part of a list is shown.
#[derive(Debug, PartialEq, Eq, Args)]
pub(crate) struct ListPartArgs {
    /// How many rows to show at most: the latest ones, or with --after the first ones
    #[arg(long, default_value_t = LIMIT, value_name = "N")]
    pub(crate) limit: usize,
    /// Show the rows after this one, given by its id or the beginning of its id
    #[arg(long, value_name = "ID", conflicts_with = "before")]
    pub(crate) after: Option<String>,
    /// Show the rows before this one
    #[arg(long, value_name = "ID")]
    pub(crate) before: Option<String>,
    /// Only rows of this time or later: 10m (ten minutes ago), 2026-05-01 or 2026-05-01T08:30:00Z,
    /// in UTC
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<ListTime>,
    /// Only rows before this time
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<ListTime>,
    /// Go on, and print rows as they come or change, until Ctrl-C
    #[arg(short, long, conflicts_with_all = ["before", "until"])]
    pub(crate) watch: bool,
}

impl Default for ListPartArgs {
    fn default() -> Self {
        Self { limit: LIMIT, after: None, before: None, since: None, until: None, watch: false }
    }
}

impl ListPartArgs {
    /// Returns the wanted time range.
    pub(crate) fn time(&self) -> TimeRange {
        TimeRange {
            since: self.since.map(ListTime::millis),
            until: self.until.map(ListTime::millis),
        }
    }

    /// Returns the id that the wanted part begins after or ends before.
    pub(crate) fn place_id(&self) -> Option<&str> {
        self.after.as_deref().or(self.before.as_deref())
    }
}

/// A time that a user gives: a date, a moment, or how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListTime(Millis);

impl ListTime {
    /// Returns the time in milliseconds since 1970.
    pub(crate) fn millis(self) -> Millis {
        self.0
    }
}

/// The reason why a text is not a time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time is 10m or 2h (ago), 2026-05-01, or 2026-05-01T08:30:00Z")]
pub(crate) struct ListTimeError;

impl FromStr for ListTime {
    type Err = ListTimeError;

    fn from_str(text: &str) -> Result<Self, ListTimeError> {
        if let Ok(ago) = humantime::parse_duration(text) {
            let ago = Millis::try_from(ago.as_millis()).map_err(|_| ListTimeError)?;
            return Ok(Self(clock::now().saturating_sub(ago)));
        }
        let is_date = text.len() == "2026-05-01".len();
        let moment = if is_date { format!("{text}T00:00:00Z") } else { text.to_owned() };
        let time = humantime::parse_rfc3339_weak(&moment).map_err(|_| ListTimeError)?;
        let since_1970 = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| ListTimeError)?;
        Millis::try_from(since_1970.as_millis()).map(Self).map_err(|_| ListTimeError)
    }
}

/// How the rows of one kind are printed.
pub(crate) struct ListFormat<'a> {
    /// The heading of the table.
    pub(crate) heading: &'static [&'static str],
    /// Makes a row of the table of a document.
    pub(crate) row: &'a dyn Fn(Value) -> Result<Vec<String>, CommandFailure>,
}

/// A list of which a part is to be shown.
pub(crate) struct ShownList {
    /// The whole list.
    pub(crate) query: ListQuery,
    /// The document that the part begins after or ends before.
    pub(crate) place: Option<Value>,
    /// The watch, for `--watch`.
    pub(crate) watch: ListWatch,
}

/// Prints a part of a list, page by page, and goes on printing if it is to be watched. If the list
/// has more rows, says how to see them.
pub(crate) async fn print_list(
    settings: &CommandSettings,
    documents: &dyn Documents,
    list: ShownList,
    args: &ListPartArgs,
    format: &ListFormat<'_>,
) -> CommandResult {
    let ShownList { query, place, mut watch } = list;
    if let (Some(document), Some(id)) = (&place, args.place_id())
        && !query.contains(document)
    {
        return Err(CommandFailure(format!(
            "{id} is not in this list: it is in another state by now, or never was; without \
             --before and --after the list shows its last rows"
        )));
    }
    let part = match (place, args.after.is_some()) {
        (None, _) => ListPart::Latest,
        (Some(place), true) => ListPart::After(place),
        (Some(place), false) => ListPart::Before(place),
    };
    let mut table = output::Table::new(format.heading);
    let mut rows = query.rows(documents, part, args.limit).await?;
    let (mut first, mut last) = (None, None);
    while let Some(page) = rows.next(documents).await? {
        let id = |row: Option<&Value>| row.and_then(|row| row["id"].as_str()).map(str::to_owned);
        first = first.or_else(|| id(page.first()));
        last = id(page.last());
        watch.skip(&page);
        print_rows(settings, &mut table, page, format)?;
        if output::has_no_reader() {
            return Ok(CommandVerdict::Well);
        }
    }
    if !settings.json {
        table.print_heading();
    }
    if rows.is_cut() {
        let (option, id) = if args.after.is_some() { ("after", last) } else { ("before", first) };
        let id = id.or_else(|| args.place_id().map(str::to_owned)).unwrap_or_default();
        let (which, option) = match id.is_empty() {
            true => ("the list has more rows", "--limit N".to_owned()),
            false => ("there are more rows", format!("--{option} {id}")),
        };
        output::print_message(&format!("{which}: {option} shows them"));
    }
    while args.watch && !output::has_no_reader() {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let new = watch.next(documents).await?;
        print_rows(settings, &mut table, new, format)?;
    }
    Ok(CommandVerdict::Well)
}

fn print_rows(
    settings: &CommandSettings,
    table: &mut output::Table,
    documents: Vec<Value>,
    format: &ListFormat<'_>,
) -> Result<(), CommandFailure> {
    let visible = documents.into_iter().filter(|document| !is_staged(document));
    if settings.json {
        visible.for_each(|document| output::print_json_line(&document));
        return Ok(());
    }
    table.print_rows(visible.map(format.row).collect::<Result<Vec<_>, _>>()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_a_moment_or_how_long_ago_it_was() {
        let read = |text: &str| text.parse::<ListTime>();
        assert_eq!(read("1970-01-02"), Ok(ListTime(86_400_000)));
        assert_eq!(read("1970-01-01T00:00:01Z"), Ok(ListTime(1_000)));
        assert_eq!(read("1970-01-01 00:00:01"), Ok(ListTime(1_000)));
        let ListTime(ago) = read("10m").unwrap();
        assert!((clock::now() - ago - 600_000).abs() < 60_000, "{ago}");
        for wrong in ["", "yesterday", "2026-13-01", "1969-12-31", "10"] {
            assert!(read(wrong).unwrap_err().to_string().contains("2h (ago)"), "{wrong}");
        }
    }
}
