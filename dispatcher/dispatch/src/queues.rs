//! Says what somebody changed about the modules' queues, and what to do about it.

use std::collections::BTreeSet;

use ion_model::errors::chain;
use ion_stores::Bus;

/// The findings that were logged: each is logged once.
#[derive(Debug, Default)]
pub struct QueueWatch {
    said: BTreeSet<String>,
}

impl QueueWatch {
    /// Looks at the queues of these modules, and warns of what is not as it must be and was not a
    /// look before.
    pub async fn look(&mut self, bus: &dyn Bus, modules: &[String]) {
        let report = match bus.inspect(modules).await {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(error = chain(&error), "the queues could not be looked at");
                return;
            }
        };
        let complaints: BTreeSet<String> = report.complaints.into_iter().collect();
        for complaint in complaints.difference(&self.said) {
            tracing::warn!("{complaint}");
        }
        self.said = complaints;
    }
}
