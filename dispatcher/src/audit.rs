//! The ledger's part of `ion check`: has every job its event, and does somebody hold what runs?

use std::time::Duration;

use ionfs::audit::{Repair, Report};
use ionfs::clock::{self, Millis};
use ionfs::record::JobRecord;
use ionfs::relay;
use ionfs::stores::{Collection, Query};

use crate::ledger::{Ledger, LedgerError};

/// How long an outbox is watched before it is a finding: relays have had more than their time.
const OUTBOX_WATCHED: Duration = relay::GRACE.saturating_add(Duration::from_secs(5));

/// Looks at every job.
///
/// What should have moved long ago by its own clock is watched for so long as its holder may take for a sign of life: a
/// clock that is minutes off makes no finding.
///
/// # Errors
/// When the ledger cannot be read; what is merely wrong is a finding.
pub async fn check(ledger: &Ledger, repair: Repair) -> Result<Report, LedgerError> {
    let mut report = Report::default();
    let mut suspects = Vec::new();
    let all = ledger.plane().documents.find_as::<JobRecord>(Query::equal(Collection::Jobs, vec![])).await?;
    for job in all {
        if ledger.event(&job.event_id).await?.is_none() && ledger.get(&job.id).await.is_ok() {
            report.found(format!(
                "job {} of {} works on event {}, which is not there",
                job.id, job.module, job.event_id
            ));
        }
        if job.outbox || (job.state.is_active() && job.due < clock::now()) {
            suspects.push(job);
        }
    }
    let Some(longest) = suspects.iter().map(watched).max() else { return Ok(report) };
    tokio::time::sleep(longest).await;
    for before in suspects {
        let Ok(now) = ledger.get(&before.id).await else { continue };
        if now.version == before.version {
            settle(ledger, &now, repair, &mut report).await?;
        }
    }
    Ok(report)
}

/// How long a suspect is watched: a holder renews its lease three times in each.
fn watched(job: &JobRecord) -> Duration {
    let lease = Duration::from_millis(u64::try_from(job.term).unwrap_or(0));
    match job.outbox {
        true => OUTBOX_WATCHED,
        // On no clock does anybody hold it: a lease of a day, as `ion-handler` takes, is not watched for hours.
        false if clock::has_passed_everywhere(job.due) => Duration::ZERO,
        false => lease / 3 * 2,
    }
}

/// A suspect that has not moved.
async fn settle(
    ledger: &Ledger,
    job: &JobRecord,
    repair: Repair,
    report: &mut Report,
) -> Result<(), LedgerError> {
    if job.outbox {
        let what = format!("job {} of {} has ended, and the bus was not told", job.id, job.module);
        let told = match repair {
            Repair::Safe => {
                relay::promote(ledger.plane(), &job.id).await?;
                Some("told".to_owned())
            }
            Repair::No => None,
        };
        report.repaired(what, told);
        return Ok(());
    }
    let what = format!(
        "job {} of {} is held by nobody: its lease ended {} s ago",
        job.id,
        job.module,
        seconds_since(job.due)
    );
    let queued = match repair {
        Repair::Safe => {
            let moved = ledger.lose(job, "its dispatcher is gone").await?;
            Some(format!("it is {} now", moved.state.as_str()))
        }
        Repair::No => None,
    };
    report.repaired(what, queued);
    Ok(())
}

fn seconds_since(moment: Millis) -> Millis {
    (clock::now() - moment) / 1000
}
