//! `ion check` and `ion gc`.

use std::time::Duration;

use clap::Args;
use ionfs::audit::{self, Collect, Depth};
use serde_json::json;

use crate::settings::Settings;
use crate::{Outcome, Verdict, output};

/// Check that every document, blob and checksum agree; exit 1 if not
#[derive(Debug, Args)]
#[command(name = "check")]
pub(crate) struct CheckArgs {
    /// Read every byte and compare it with its checksum
    #[arg(long)]
    deep: bool,
}

/// Remove blobs that no document names
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Leave alone what is younger: longer than any job runs
    #[arg(long, default_value = "1day", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn check(settings: &Settings, args: CheckArgs) -> Outcome {
    let plane = settings.plane().await?;
    let depth = if args.deep { Depth::Checksums } else { Depth::Lengths };
    let report = audit::check(&plane, depth).await?;
    if settings.json {
        output::json(
            &json!({"events": report.events, "blobs": report.blobs, "bytesRead": report.bytes_read, "findings": report.findings}),
        );
    } else {
        report.findings.iter().for_each(output::line);
        let read =
            if args.deep { format!(", {} read", output::size(report.bytes_read)) } else { String::new() };
        output::line(format!(
            "{} events, {} blobs{read}: {} findings",
            report.events,
            report.blobs,
            report.findings.len()
        ));
    }
    Ok(if report.findings.is_empty() { Verdict::Well } else { Verdict::Failed })
}

pub(crate) async fn collect(settings: &Settings, args: GcArgs) -> Outcome {
    let plane = settings.plane().await?;
    let how = if args.dry_run { Collect::DryRun } else { Collect::Remove };
    let collected = audit::collect(&plane, args.grace, how).await?;
    if settings.json {
        output::json(
            &json!({"blobs": collected.blobs, "bytes": collected.bytes, "young": collected.young, "unfinished": collected.unfinished}),
        );
    } else {
        let verb = if args.dry_run { "would remove" } else { "removed" };
        output::line(format!(
            "{verb} {} blobs ({}) and {} unfinished uploads; {} blobs are too young",
            collected.blobs,
            output::size(collected.bytes),
            collected.unfinished,
            collected.young
        ));
    }
    Ok(Verdict::Well)
}
