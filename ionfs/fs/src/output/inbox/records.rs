//! What became of the deliveries of an inbox, by type and name: receipts of those that became
//! events, rejections of those that were refused. The newest ones are kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ion_model::id::CorrelationId;
use ion_plane::commit::{Receipt, Rejection};
use serde::Serialize;

/// The most receipts, and the most rejections, that one inbox keeps. Each takes some hundred bytes;
/// the events themselves are in the plane.
const KEPT_MAX: usize = 1000;

/// The receipt of a delivery that became an event.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeliveryReceipt {
    #[serde(flatten)]
    pub(crate) receipt: Receipt,
    /// The correlation that the event begins.
    pub(crate) correlation_id: CorrelationId,
}

/// Records by the type and the name of what they are about. The type is empty for something that
/// was put into the inbox itself.
#[derive(Debug)]
pub(crate) struct NewestRecords<T> {
    records: BTreeMap<String, BTreeMap<String, (u64, T)>>,
    /// The order in which the records were added, each with its number.
    order: VecDeque<(u64, String, String)>,
    next: u64,
}

impl<T> Default for NewestRecords<T> {
    fn default() -> Self {
        Self { records: BTreeMap::new(), order: VecDeque::new(), next: 0 }
    }
}

impl<T: Clone> NewestRecords<T> {
    fn add(&mut self, event_type: &str, name: &str, record: T) {
        let number = self.next;
        self.next += 1;
        let of_type = self.records.entry(event_type.to_owned()).or_default();
        of_type.insert(name.to_owned(), (number, record));
        self.order.push_back((number, event_type.to_owned(), name.to_owned()));
        while self.order.len() > KEPT_MAX {
            let Some((number, event_type, name)) = self.order.pop_front() else { break };
            self.remove_numbered(&event_type, &name, Some(number));
        }
    }

    fn remove(&mut self, event_type: &str, name: &str) {
        self.remove_numbered(event_type, name, None);
    }

    /// Removes a record, if it still has this number. A newer one of the same name stays.
    fn remove_numbered(&mut self, event_type: &str, name: &str, number: Option<u64>) {
        let Some(of_type) = self.records.get_mut(event_type) else { return };
        let is_meant = |(at, _): &(u64, T)| number.is_none_or(|number| number == *at);
        if of_type.get(name).is_some_and(is_meant) {
            of_type.remove(name);
        }
        if of_type.is_empty() {
            self.records.remove(event_type);
        }
    }

    /// Returns the types of which there are records.
    pub(crate) fn types(&self) -> Vec<String> {
        self.records.keys().cloned().collect()
    }

    /// Returns the records of a type, by name.
    pub(crate) fn of_type(&self, event_type: &str) -> BTreeMap<String, T> {
        let of_type = self.records.get(event_type).into_iter().flatten();
        of_type.map(|(name, (_, record))| (name.clone(), record.clone())).collect()
    }
}

/// The receipts and rejections of one inbox.
#[derive(Debug, Default)]
pub(super) struct DeliveryRecords {
    receipts: Mutex<NewestRecords<DeliveryReceipt>>,
    rejections: Mutex<NewestRecords<Rejection>>,
}

impl DeliveryRecords {
    /// Records that a delivery became an event. An earlier rejection of the same name is removed.
    pub(super) fn add_receipt(&self, event_type: &str, receipt: DeliveryReceipt) {
        let name = receipt.receipt.name.clone();
        self.rejections().remove(event_type, &name);
        self.receipts().add(event_type, &name, receipt);
    }

    /// Records that something was refused.
    pub(super) fn add_rejection(&self, event_type: &str, rejection: Rejection) {
        let name = rejection.name.clone();
        self.rejections().add(event_type, &name, rejection);
    }

    /// Returns the receipts.
    pub(super) fn receipts(&self) -> MutexGuard<'_, NewestRecords<DeliveryReceipt>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the rejections.
    pub(super) fn rejections(&self) -> MutexGuard<'_, NewestRecords<Rejection>> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_each_name_is_kept_and_the_oldest_go() {
        let mut records = NewestRecords::default();
        records.add("scan", "a", 1);
        records.add("scan", "a", 2);
        records.add("video", "a", 3);
        assert_eq!(records.of_type("scan").into_iter().collect::<Vec<_>>(), [("a".into(), 2)]);
        for n in 0..KEPT_MAX - 1 {
            records.add("scan", &n.to_string(), 4);
        }
        // The first record of `scan/a` was replaced; the second has gone with the one of `video`.
        assert_eq!(records.types(), ["scan", "video"]);
        records.add("scan", "last", 5);
        assert_eq!(records.types(), ["scan"]);
        assert_eq!(records.of_type("scan").len(), KEPT_MAX);
        records.remove("scan", "last");
        assert!(!records.of_type("scan").contains_key("last"));
    }
}
