//! Housekeeping: the outbox, leases of dispatchers that died, gathering, and unclaimed events.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ion_jobs::cancel::OldCancellations;
use ion_jobs::gather::{GatherWatch, Readiness};
use ion_jobs::job::Transition;
use ion_jobs::ledger::{LeaseMark, LedgerError};
use ion_model::id::JobId;
use ion_plane::relay::{self, Relay};
use ion_system::failpoint;
use ion_system::patience::StateAges;

use super::gathers::GatherNote;
use super::presence::Presence;
use super::unclaimed::Unclaimed;
use super::{DispatchState, warn_once};

/// How often the housekeeping runs.
pub(super) const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(1);

/// After each round the housekeeping rests for this many times as long as the round took, so that
/// it takes at most a fifth of the time.
const HOUSEKEEPING_SHARE: u32 = 4;

/// What the housekeeping task remembers.
struct HousekeepingState {
    presence: Presence,
    relay: Relay,
    leases: StateAges<LeaseMark>,
    looked: Option<Instant>,
    unclaimed: Unclaimed,
    cancellations: OldCancellations,
    noted: GatherNote,
    gathers: GatherWatch,
}

impl DispatchState {
    pub(super) async fn run_housekeeping(self: Arc<Self>, presence: Presence) {
        let relay = Relay::new(self.ledger.plane().clone(), relay::GRACE);
        let mut house = HousekeepingState {
            presence,
            relay,
            leases: StateAges::default(),
            looked: None,
            unclaimed: Unclaimed::new(self.settings.lease),
            cancellations: OldCancellations::default(),
            noted: GatherNote::new(),
            gathers: GatherWatch::default(),
        };
        let mut unkept = false;
        while !self.stopping.is_cancelled() {
            let begun = Instant::now();
            let kept = self.run_housekeeping_round(&mut house).await;
            warn_once(kept, &mut unkept, "the outbox and leases cannot be looked after");
            // A large correlation takes long to read. Most of the time must be left for jobs.
            self.sleep_unless_stopped(begun.elapsed() * HOUSEKEEPING_SHARE).await;
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.ended.notified() => {}
                () = tokio::time::sleep(HOUSEKEEPING_EVERY) => {}
            }
        }
    }

    async fn run_housekeeping_round(
        &self,
        house: &mut HousekeepingState,
    ) -> Result<(), LedgerError> {
        house.presence.renew(&self.ledger, || self.served.names()).await?;
        // Each look reads all active jobs, so it is not repeated more often than useful.
        if house.looked.is_none_or(|looked| looked.elapsed() >= self.settings.lease / 6) {
            house.looked = Some(Instant::now());
            for job in self.ledger.expired_jobs(&mut house.leases).await? {
                if !self.outlives_dispatcher(&job.module).await? {
                    self.mark_lost(&job).await;
                } else if let Some(served) = self.served.get(&job.module)
                    && !self.running.has(&job.id)
                {
                    Self::queue_for_adoption(&served, job);
                }
            }
        }
        let waiting = self.ledger.waiting_jobs().await?;
        let ids: HashSet<&JobId> = waiting.iter().map(|job| &job.id).collect();
        house.noted.retain(|id, _| ids.contains(id));
        house.gathers.retain(&ids);
        if !waiting.is_empty() {
            let registered = self.ledger.registered_modules().await?;
            for job in waiting {
                let Some(module) = registered.module(&job.module) else { continue };
                match house.gathers.look(&self.ledger, &job, module, &registered).await? {
                    Readiness::Ready => {
                        failpoint::hit("gather.ready");
                        if self.ledger.advance(&job, &Transition::Gathered).await.is_ok() {
                            self.served.wake_module(&job.module);
                        }
                    }
                    Readiness::Unsettled => {}
                    Readiness::Waiting(now) => {
                        self.write_obstacles(&mut house.noted, &job, now).await
                    }
                }
            }
        }
        house.cancellations.continue_one(&self.ledger).await?;
        // This comes last: an unavailable broker must not delay the rest.
        house.relay.run_round().await?;
        house.unclaimed.run_round(&self.ledger).await?;
        self.ledger.plane().documents.maintain().await?;
        Ok(())
    }
}
