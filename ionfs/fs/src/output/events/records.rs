//! What became of the event files of one attempt: receipts and rejections, by file name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ion_plane::commit::{Receipt, Rejection};

/// The receipts and the rejections of one attempt.
#[derive(Debug, Default)]
pub(super) struct EventRecords {
    receipts: Mutex<BTreeMap<String, Receipt>>,
    rejections: Mutex<BTreeMap<String, Rejection>>,
}

impl EventRecords {
    /// Records a commit. An earlier rejection of the same file no longer counts.
    pub(super) fn add_receipt(&self, receipt: Receipt) {
        self.withdraw_rejection(&receipt.name);
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        receipts.insert(receipt.name.clone(), receipt);
    }

    /// Records a rejection.
    pub(super) fn add_rejection(&self, name: &str, rejection: Rejection) {
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        rejections.insert(name.to_owned(), rejection);
    }

    /// Removes the rejection of a file, if there is one.
    pub(super) fn withdraw_rejection(&self, name: &str) {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn receipts(&self) -> BTreeMap<String, Receipt> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn rejections(&self) -> BTreeMap<String, Rejection> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
