//! The ledger's part of `ion check`. It checks that each job has its event, that each running job
//! has a holder, and that each module has a job of each event that is for it.

use std::collections::BTreeMap;
use std::time::Duration;

use ion_jobs::ledger::{Ledger, LedgerError};
use ion_model::clock::{self, Millis};
use ion_model::errors::error_chain;
use ion_model::event::Event;
use ion_model::id::JobId;
use ion_model::record::{JobRecord, JobState};
use ion_plane::audit::{CheckRepair, CheckReport};
use ion_plane::relay;
use ion_stores::{Collection, Pages, Query, decode};
use serde_json::json;

use crate::served_modules;

/// How long an outbox is watched before it is a finding. In this time a relay should have emptied
/// it.
const OUTBOX_WATCHED: Duration = relay::GRACE.saturating_add(Duration::from_secs(5));

/// How many suspects are watched at the same time.
const SUSPECTS: usize = 1_000;

/// What a check of the ledger found.
#[derive(Debug, Default)]
pub struct LedgerReport {
    /// The faults.
    pub report: CheckReport,
    /// How many events wait for each module that no living dispatcher serves. This is not a fault,
    /// but these events are not processed.
    pub not_served: BTreeMap<String, usize>,
}

/// Checks each job, and that each event has its jobs, a page at a time.
///
/// A job that should have advanced long ago by its own clock is watched for as long as its holder
/// may take to renew it. So a clock that is minutes off causes no finding.
///
/// # Errors
/// When the ledger cannot be read. A fault is a finding, not an error.
pub async fn check(ledger: &Ledger, repair: CheckRepair) -> Result<LedgerReport, LedgerError> {
    let mut report = CheckReport::default();
    let documents = &ledger.plane().documents;
    let mut suspects = Vec::new();
    for state in JobState::ALL {
        let mut pages =
            Pages::new(Query::equal(Collection::Jobs, vec![("state", json!(state))]), "due");
        while let Some(page) = pages.next(&**documents).await? {
            let readable = |job| {
                let job = decode::<JobRecord>(Collection::Jobs, job);
                job.inspect_err(|error| report.add_finding(error_chain(error))).ok()
            };
            let jobs: Vec<JobRecord> = page.into_iter().filter_map(readable).collect();
            check_events_of(ledger, &jobs, &mut report).await?;
            suspects.extend(jobs.into_iter().filter(|job| job.outbox || job.state.is_active()));
            if suspects.len() >= SUSPECTS {
                recheck_jobs(ledger, std::mem::take(&mut suspects), repair, &mut report).await?;
            }
        }
    }
    recheck_jobs(ledger, suspects, repair, &mut report).await?;
    let mut not_served = check_claims(ledger, repair, &mut report).await?;
    let served = served_modules(ledger).await?;
    not_served.retain(|module, _| !served.contains(module));
    Ok(LedgerReport { report, not_served })
}

/// Checks that the event of each job exists.
async fn check_events_of(
    ledger: &Ledger,
    jobs: &[JobRecord],
    report: &mut CheckReport,
) -> Result<(), LedgerError> {
    let events = jobs.iter().map(|job| job.event_id.to_string()).collect();
    let present = ledger.plane().documents.find_existing_ids(Collection::Events, events).await?;
    for job in jobs.iter().filter(|job| !present.contains(job.event_id.as_str())) {
        // Both may have been removed meanwhile.
        if ledger.get(&job.id).await.is_ok() {
            report.add_finding(format!(
                "job {} of {} works on event {}, which is not there",
                job.id, job.module, job.event_id
            ));
        }
    }
    Ok(())
}

/// Waits for a while, and checks once more the jobs that should have advanced.
async fn recheck_jobs(
    ledger: &Ledger,
    suspects: Vec<JobRecord>,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<(), LedgerError> {
    let overdue = |job: &JobRecord| job.outbox || job.due < clock::now();
    let suspects: Vec<JobRecord> = suspects.into_iter().filter(overdue).collect();
    let Some(longest) = suspects.iter().map(watch_time).max() else { return Ok(()) };
    tokio::time::sleep(longest).await;
    for before in suspects {
        let Ok(now) = ledger.get(&before.id).await else { continue };
        if now.version == before.version {
            report_stuck_job(ledger, &now, repair, report).await?;
        }
    }
    Ok(())
}

/// How long a message may be under way to a module before it is a finding.
const CLAIM_WATCHED: Duration = Duration::from_secs(10);

/// Checks that each module has a job of each event that is for it, or a message in its queue.
/// Returns how many events each module has not claimed.
async fn check_claims(
    ledger: &Ledger,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<BTreeMap<String, usize>, LedgerError> {
    let mut waiting = BTreeMap::new();
    let mut pages = Ledger::unclaimed_events();
    let mut suspects: Vec<(Event, String)> = Vec::new();
    while let Some(page) = pages.next(&*ledger.plane().documents).await? {
        let registered = ledger.registered_modules().await?;
        let events: Vec<Event> =
            page.into_iter().filter_map(|event| decode(Collection::Events, event).ok()).collect();
        let of = |event: &Event| -> Vec<(Event, String)> {
            registered
                .registry
                .modules_for(event)
                .map(|name| (event.clone(), name.to_owned()))
                .collect()
        };
        let found = filter_unclaimed(ledger, events.iter().flat_map(of).collect()).await?;
        found.iter().for_each(|(_, module)| *waiting.entry(module.clone()).or_default() += 1);
        suspects.extend(found);
        if suspects.len() >= SUSPECTS {
            recheck_claims(ledger, std::mem::take(&mut suspects), repair, report).await?;
        }
    }
    recheck_claims(ledger, suspects, repair, report).await?;
    Ok(waiting)
}

/// Returns the pairs of events and modules that have no job.
async fn filter_unclaimed(
    ledger: &Ledger,
    all: Vec<(Event, String)>,
) -> Result<Vec<(Event, String)>, LedgerError> {
    let job = |event: &Event, module: &str| JobId::derive(&event.id, module).to_string();
    let jobs = all.iter().map(|(event, module)| job(event, module)).collect();
    let present = ledger.plane().documents.find_existing_ids(Collection::Jobs, jobs).await?;
    Ok(all.into_iter().filter(|(event, module)| !present.contains(&job(event, module))).collect())
}

/// Waits for a while, and checks once more the events that a module has not claimed.
async fn recheck_claims(
    ledger: &Ledger,
    suspects: Vec<(Event, String)>,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<(), LedgerError> {
    if suspects.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(CLAIM_WATCHED).await;
    let registered = ledger.registered_modules().await?;
    let bus = &ledger.plane().bus;
    for (event, module) in filter_unclaimed(ledger, suspects).await? {
        let Some(definition) = registered.module(&module) else { continue };
        // The message may be the event's: then the event only waits.
        if let Some(1..) = bus.count_messages(&module, 1).await? {
            continue;
        }
        let what = format!(
            "event {} ({}) is for module {module:?}, which has no job of it and no message in its \
             queue",
            event.id, event.event_type
        );
        let sent = match repair {
            CheckRepair::Safe => {
                ledger.send_again(definition, &event).await?;
                Some("it was sent again".to_owned())
            }
            CheckRepair::No => None,
        };
        report.add_finding_with_repair(what, sent);
    }
    Ok(())
}

/// How long a suspect is watched. A holder renews its lease three times in each lease.
fn watch_time(job: &JobRecord) -> Duration {
    let lease = Duration::from_millis(u64::try_from(job.term).unwrap_or(0));
    match job.outbox {
        true => OUTBOX_WATCHED,
        // By every clock the lease is over. A lease of a day, which `ion-handler` takes, is not
        // watched for hours.
        false if clock::has_passed_everywhere(job.due) => Duration::ZERO,
        false => lease / 3 * 2,
    }
}

/// Reports a suspect that has not advanced, and repairs it if that was asked for.
async fn report_stuck_job(
    ledger: &Ledger,
    job: &JobRecord,
    repair: CheckRepair,
    report: &mut CheckReport,
) -> Result<(), LedgerError> {
    if job.outbox {
        let what =
            format!("job {} of {} has ended, and its outbox was not published", job.id, job.module);
        let published = match repair {
            CheckRepair::Safe => {
                relay::empty_outbox(ledger.plane(), &job.id).await?;
                Some("published now".to_owned())
            }
            CheckRepair::No => None,
        };
        report.add_finding_with_repair(what, published);
        return Ok(());
    }
    let what = format!(
        "job {} of {} is held by nobody: its lease ended {} s ago",
        job.id,
        job.module,
        seconds_since(job.due)
    );
    let queued = match repair {
        CheckRepair::Safe => {
            let moved = ledger.mark_lost(job, "its dispatcher is gone").await?;
            Some(format!("it is {} now", moved.state.as_str()))
        }
        CheckRepair::No => None,
    };
    report.add_finding_with_repair(what, queued);
    Ok(())
}

fn seconds_since(moment: Millis) -> Millis {
    (clock::now() - moment) / 1000
}
