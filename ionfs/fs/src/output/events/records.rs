//! What became of the files that one attempt gave for decision, by file name: receipts of event
//! files that were committed, rejections of those (and of `insights.json`) that were refused.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ion_plane::commit::{Receipt, Rejection};

/// The receipts and rejections so far. A name may have both: what is committed stays committed when
/// other content is refused under its name.
#[derive(Debug, Default)]
pub(super) struct EventRecords {
    receipts: Mutex<BTreeMap<String, Receipt>>,
    rejections: Mutex<BTreeMap<String, Rejection>>,
}

impl EventRecords {
    /// Records a commit, and removes an earlier rejection of the same name.
    pub(super) fn add_receipt(&self, receipt: Receipt) {
        self.remove_rejection(&receipt.name);
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        receipts.insert(receipt.name.clone(), receipt);
    }

    /// Records a rejection in place of an earlier one of the same name. A receipt of that name
    /// stays.
    pub(super) fn add_rejection(&self, name: &str, rejection: Rejection) {
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        rejections.insert(name.to_owned(), rejection);
    }

    /// Removes the rejection of a name, if there is one: insights were kept at last, for which
    /// there is no receipt.
    pub(super) fn remove_rejection(&self, name: &str) {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Returns a copy of the receipts, by file name.
    pub(super) fn receipts(&self) -> BTreeMap<String, Receipt> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a copy of the rejections that still count, by file name.
    pub(super) fn rejections(&self) -> BTreeMap<String, Rejection> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
