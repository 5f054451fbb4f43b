//! Directories of records, such as receipts and rejections.

use std::collections::BTreeMap;
use std::time::Duration;

use ion_model::clock::Millis;
use serde::Serialize;

use super::item::ViewItem;

/// Makes a directory of JSON documents, one for each record. It is always current. A record is
/// named after what it is about, with `.json` at its end unless the name has that.
pub(crate) fn records_item<T: Serialize + 'static>(
    current: impl Fn() -> BTreeMap<String, T> + Send + Sync + 'static,
    at: fn(&T) -> Millis,
) -> ViewItem {
    ViewItem::lazy(Duration::ZERO, move || {
        let current = current();
        let items = current
            .iter()
            .map(|(name, record)| {
                let longer = format!("{name}.json");
                // If there is a record `a.json`, the record of `a` keeps its own name.
                let own =
                    name.ends_with(".json") || longer.len() > 255 || current.contains_key(&longer);
                let name = if own { name.clone() } else { longer };
                (name, ViewItem::json(record, at(record)))
            })
            .collect();
        std::future::ready(Ok(items))
    })
}
