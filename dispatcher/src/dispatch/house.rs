//! Keeping house: the outbox, leases of dispatchers that died, gathering, messages that never came.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ionfs::event::{Event, Publication};
use ionfs::failpoint;
use ionfs::patience::Standing;
use ionfs::relay::{self, Relay};
use ionfs::stores::StoreError;

use super::presence::Presence;
use super::{Shared, warn_once};
use crate::gather::{Readiness, readiness};
use crate::job::Happening;
use crate::ledger::{Lease, LedgerError};

/// How often house is kept: outbox, leases, gathering.
pub(super) const KEEP: Duration = Duration::from_secs(1);

/// House is kept for at most one part in this many and one of the time.
const KEEPING_SHARE: u32 = 4;

/// What the housekeeping task remembers.
struct House {
    presence: Presence,
    relay: Relay,
    leases: Standing<Lease>,
    looked: Option<Instant>,
    /// Events that something waits for and no module has claimed.
    unclaimed: Standing<()>,
    sent_again: HashSet<String>,
}

impl Shared {
    pub(super) async fn keep_house(self: Arc<Self>, presence: Presence) {
        let relay = Relay::new(self.ledger.plane().clone(), relay::GRACE);
        let mut house = House {
            presence,
            relay,
            leases: Standing::default(),
            looked: None,
            unclaimed: Standing::default(),
            sent_again: HashSet::new(),
        };
        let mut unkept = false;
        while !self.stopping.is_cancelled() {
            let begun = Instant::now();
            let kept = self.keep_house_once(&mut house).await;
            warn_once(kept, &mut unkept, "the outbox and leases cannot be looked after");
            // A large correlation takes long to look through: most of the time is the jobs'.
            self.rest(begun.elapsed() * KEEPING_SHARE).await;
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.ended.notified() => {}
                () = tokio::time::sleep(KEEP) => {}
            }
        }
    }

    async fn keep_house_once(&self, house: &mut House) -> Result<(), LedgerError> {
        house.presence.renew(&self.ledger, || self.served.names()).await?;
        // All active jobs are read: not more often than it serves.
        if house.looked.is_none_or(|looked| looked.elapsed() >= self.settings.lease / 6) {
            house.looked = Some(Instant::now());
            for job in self.ledger.expired(&mut house.leases).await? {
                if !self.outlives(&job.module).await? {
                    self.lose(&job).await;
                } else if let Some(served) = self.served.get(&job.module)
                    && !self.runs(&job.id)
                {
                    Self::note_left(&served, job);
                }
            }
        }
        let waiting = self.ledger.waiting().await?;
        let mut unclaimed = Vec::new();
        let modules = if waiting.is_empty() { vec![] } else { self.ledger.modules().await? };
        for job in waiting {
            let Some(module) = modules.iter().find(|module| module.name == job.module) else { continue };
            match readiness(&self.ledger, &job, module, &modules).await? {
                Readiness::Waiting { unclaimed: of_job, .. } => unclaimed.extend(of_job),
                Readiness::Ready(_) => {
                    failpoint::reach("gather.ready");
                    if self.ledger.advance(&job, &Happening::Gathered).await.is_ok() {
                        self.served.ring(&job.module);
                    }
                }
            }
        }
        self.send_again(house, unclaimed).await?;
        // Last: a broker that is away must not hold up the rest.
        house.relay.round().await?;
        Ok(())
    }

    /// Something waits for jobs of these events, nobody has claimed them for a lease, and no message asks for them: the
    /// broker lost it, or the module subscribed after it was sent. It is sent again, once.
    async fn send_again(&self, house: &mut House, unclaimed: Vec<(Event, String)>) -> Result<(), StoreError> {
        let names: Vec<String> =
            unclaimed.iter().map(|(event, module)| format!("{} for {module}", event.id)).collect();
        let stood = house.unclaimed.look(names.iter().map(|name| (name.clone(), ())));
        let still: HashSet<&String> = names.iter().collect();
        house.sent_again.retain(|name| still.contains(name));
        for (((event, module), name), stood) in unclaimed.iter().zip(&names).zip(stood) {
            if stood < self.settings.lease
                || event.publication != Publication::Published
                || house.sent_again.contains(name)
            {
                continue;
            }
            let bus = &self.ledger.plane().bus;
            if bus.peek(module, 1).await?.is_empty() {
                tracing::info!(event = %event.id, module, "a message never reached its module; it is sent again");
                bus.send(module, &event.message()).await?;
                house.sent_again.insert(name.clone());
            }
        }
        Ok(())
    }
}
