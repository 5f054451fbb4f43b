//! `ion check` and `ion gc`.

use std::time::Duration;

use clap::Args;
use dispatcher::image as images;
use dispatcher::ledger::Ledger;
use dispatcher::retention::{DroppedCorrelations, RetentionPosition, drop_old_correlations};
use ionfs::audit::{CheckDepth, CheckPosition, CheckRepair};
use ionfs::clock::Millis;
use ionfs::collect::{GcMode, collect as collect_unnamed};
use ionfs::resume::{EarlierPosition, PositionNote, WalkStart};
use ionfs::stores::DataPlane;
use ionfs::ticket::Ticket;
use serde_json::json;

use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// Check that every document, blob, checksum and job agree; exit 1 if not
///
/// Some things are watched for a while before they count as a finding, because a dispatcher may be
/// about to put them right: unpublished events, unpublished outboxes of ended jobs, leases that
/// nobody renews.
///
/// A check that was interrupted goes on where it was, if it is started again with the same options
/// within a day. Jobs are checked anew.
#[derive(Debug, Args)]
#[command(name = "check")]
pub(crate) struct CheckArgs {
    /// Read every byte and compare it with its checksum
    #[arg(long)]
    deep: bool,
    /// Repair what is safe to repair: publish events and the outboxes of ended jobs, queue jobs
    /// that no dispatcher holds
    #[arg(long)]
    repair: bool,
    /// Begin anew, even if a check with the same options was interrupted less than a day ago
    #[arg(long)]
    restart: bool,
}

/// Remove blobs that no document names, tickets of pods that have ended, and old correlations
///
/// It never removes a blob that a running job may still commit, nor an image that a job runs from.
///
/// If it was interrupted while it dropped correlations, and is started again with the same options
/// within a day, it goes on with those it had not looked at. Blobs are examined anew.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ion gc --dry-run             show what would be removed
  ion gc --older-than 30days   drop whole correlations that ended more than 30 days ago: files, events, jobs and logs;
                               and this machine's unpacked images that no job has used for so long")]
pub(crate) struct GcArgs {
    /// Keep blobs and tickets that are younger than this; choose more than one `ion event create`
    /// takes to store its files
    #[arg(long, default_value = "1day", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Drop correlations in which every job has ended and nothing has happened for AGE, and images
    /// of this machine that no job has used for AGE
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Look at all correlations, even if an `ion gc` with the same options was interrupted less than
    /// a day ago
    #[arg(long)]
    restart: bool,
}

pub(crate) async fn check(settings: &CommandSettings, args: CheckArgs) -> CommandResult {
    let plane = settings.open_existing_plane().await?;
    let depth = if args.deep { CheckDepth::Checksums } else { CheckDepth::Lengths };
    let repair = if args.repair { CheckRepair::Safe } else { CheckRepair::No };
    let ledger = Ledger::new(plane.clone());
    let options = format!("{depth:?} {repair:?}");
    let opened = PositionNote::open(&plane, "check", options, walk_start(args.restart)).await?;
    let (mut note, earlier): (_, Option<EarlierPosition<CheckPosition>>) = opened;
    if let Some(EarlierPosition { at, position }) = &earlier {
        print_going_on(*at, &format!("after {} events", position.events()));
    }
    let from = earlier.map(|earlier| earlier.position);
    let (report, jobs) = tokio::join!(
        ionfs::audit::check(&plane, depth, repair, &mut note, from),
        dispatcher::audit::check(&ledger, repair)
    );
    let (mut report, jobs) = (report?, jobs?);
    note.remove().await?;
    report.findings.extend(jobs.report.findings);
    if settings.json {
        let findings: Vec<_> = report
            .findings
            .iter()
            .map(|finding| json!({"what": finding.what, "repaired": finding.repaired}))
            .collect();
        output::print_json(
            &json!({"events": report.events, "blobs": report.blobs, "bytesRead": report.bytes_read, "findings": findings, "notServed": jobs.not_served}),
        );
    } else {
        for finding in &report.findings {
            let repaired = finding.repaired.as_ref().map(|done| format!(" [repaired: {done}]"));
            output::print_line(format!("{}{}", finding.what, repaired.unwrap_or_default()));
        }
        let read = if args.deep {
            format!(", {} read", output::format_size(report.bytes_read))
        } else {
            String::new()
        };
        output::print_line(format!(
            "{} events, {} blobs{read}: {} findings",
            report.events,
            report.blobs,
            report.findings.len()
        ));
    }
    for (module, events) in &jobs.not_served {
        let waits =
            if *events == 1 { "1 event waits".to_owned() } else { format!("{events} events wait") };
        output::print_message(&format!(
            "{waits} for module {module:?}, which no dispatcher serves: start one with `ion up`, or give it up with `ion module \
             delete {module}`"
        ));
    }
    Ok(if report.is_well() { CommandVerdict::Well } else { CommandVerdict::Failed })
}

fn walk_start(restart: bool) -> WalkStart {
    if restart { WalkStart::Anew } else { WalkStart::WhereInterrupted }
}

/// Says that a command goes on where an earlier one was interrupted at this time.
fn print_going_on(at: Millis, place: &str) {
    let at = output::format_time(at);
    output::print_message(&format!(
        "going on {place}, where the run of {at} was interrupted; --restart begins anew"
    ));
}

/// Drops old correlations, after those that an interrupted run has looked at.
async fn drop_correlations(
    plane: &DataPlane,
    age: Duration,
    mode: GcMode,
    start: WalkStart,
) -> Result<DroppedCorrelations, CommandFailure> {
    // A look at what would be dropped does not take the place of an interrupted run.
    let command = match mode {
        GcMode::Remove => "gc",
        GcMode::DryRun => "gc-dry-run",
    };
    let opened = PositionNote::open(plane, command, format!("{age:?}"), start).await?;
    let (mut note, earlier): (_, Option<EarlierPosition<RetentionPosition>>) = opened;
    if let Some(EarlierPosition { at, position }) = &earlier {
        let last = output::escape_foreign(position.last());
        print_going_on(*at, &format!("after correlation {last}"));
    }
    let from = earlier.map(|earlier| earlier.position);
    let ledger = Ledger::new(plane.clone());
    let dropped = drop_old_correlations(&ledger, age, mode, &mut note, from).await?;
    note.remove().await?;
    Ok(dropped)
}

pub(crate) async fn collect(settings: &CommandSettings, args: GcArgs) -> CommandResult {
    let plane = settings.open_existing_plane().await?;
    let mode = if args.dry_run { GcMode::DryRun } else { GcMode::Remove };
    let retired = match args.older_than {
        Some(age) => drop_correlations(&plane, age, mode, walk_start(args.restart)).await?,
        None => DroppedCorrelations::default(),
    };
    let collected = collect_unnamed(&plane, args.grace, mode).await?;
    let tickets = Ticket::collect(&plane, args.grace, mode).await?;
    let images = images::collect(&settings.home, args.older_than, args.grace, mode).await?;
    if settings.json {
        output::print_json(&json!({
            "correlations": retired.correlations, "documents": retired.documents,
            "blobs": retired.blobs.blobs + collected.blobs, "bytes": retired.blobs.bytes + collected.bytes,
            "young": collected.young, "unfinished": collected.unfinished, "tickets": tickets,
            "images": images.images, "imageBytes": images.bytes,
        }));
        return Ok(CommandVerdict::Well);
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    if args.older_than.is_some() {
        output::print_line(format!(
            "{verb} {} correlations: {} documents, {} blobs ({})",
            retired.correlations,
            retired.documents,
            retired.blobs.blobs,
            output::format_size(retired.blobs.bytes)
        ));
    }
    output::print_line(format!(
        "{verb} {} blobs that nothing names ({}) and {} unfinished uploads; {} are too young, or \
         belong to a running job",
        collected.blobs,
        output::format_size(collected.bytes),
        collected.unfinished,
        collected.young
    ));
    if tickets > 0 {
        output::print_line(format!("{verb} {tickets} tickets of pods that have ended"));
    }
    if images != images::Collected::default() {
        let size = output::format_size(images.bytes);
        output::print_line(format!(
            "{verb} {} unpacked images that nobody has used ({size})",
            images.images
        ));
    }
    Ok(CommandVerdict::Well)
}
