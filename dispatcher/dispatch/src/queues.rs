//! Reports what others have changed about the modules' queues, and what to do about it.

use std::collections::BTreeSet;

use ion_model::errors::error_chain;
use ion_stores::Bus;

/// The findings that were logged. Each is logged once.
#[derive(Debug, Default)]
pub struct QueueWatch {
    logged: BTreeSet<String>,
}

impl QueueWatch {
    /// Inspects the queues of these modules. It warns of faults that the last look did not find.
    pub async fn report_changes(&mut self, bus: &dyn Bus, modules: &[String]) {
        let report = match bus.inspect(modules).await {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(error = error_chain(&error), "the queues could not be looked at");
                return;
            }
        };
        let complaints: BTreeSet<String> = report.complaints.into_iter().collect();
        for complaint in complaints.difference(&self.logged) {
            tracing::warn!("{complaint}");
        }
        self.logged = complaints;
    }
}
