//! A browsing mount with an inbox: what is put into `inbox/<type>/` becomes an event.
//!
//! Beside `inbox/` the mount has `published/<type>/<name>.json`, the receipts of what became events,
//! and `rejected/<type>/<name>.json`, which say why something did not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ion_model::clock::Millis;
use ion_plane::commit::Rejection;
use ion_plane::node::Node as Daemon;
use ion_system::scratch::ScratchFolder;
use serde::Serialize;

use super::Tree;
use super::browse;
use super::item::ViewItem;
pub use super::output::MountUsers;
use super::output::{DeliveryReceipt, NewestRecords, Output};
use super::reads::ReadLog;
use super::records::records_item;
use super::view::View;

/// The tree of a plane with an inbox, and the folder in which the inbox is staged.
#[derive(Debug)]
pub struct WritablePlane {
    tree: Arc<Tree>,
    inbox: Arc<Output>,
    folder: ScratchFolder,
}

impl WritablePlane {
    /// Makes the tree, with an empty inbox. Removes what killed processes have left of theirs. Must
    /// be called inside a Tokio runtime.
    ///
    /// # Errors
    /// When the folder in which the inbox is staged cannot be made.
    pub fn open(daemon: &Arc<Daemon>) -> io::Result<Self> {
        let folder = ScratchFolder::make_in(&daemon.settings.home.join("inbox"))?;
        let reads = ReadLog::default();
        let limits = daemon.settings.limits;
        let inbox = Output::of_inbox(daemon.clone(), limits, &folder.path(), reads.clone())?;
        let receipts = records_by_type(
            inbox.clone(),
            |inbox| inbox.with_delivery_receipts(NewestRecords::types),
            |inbox, of| inbox.with_delivery_receipts(|receipts| receipts.of_type(of)),
            |receipt: &DeliveryReceipt| receipt.receipt.at,
        );
        let rejections = records_by_type(
            inbox.clone(),
            |inbox| inbox.with_delivery_rejections(NewestRecords::types),
            |inbox, of| inbox.with_delivery_rejections(|rejections| rejections.of_type(of)),
            |rejection: &Rejection| rejection.at,
        );
        let more = [("published".to_owned(), receipts), ("rejected".to_owned(), rejections)];
        let view = View::new(browse::root(daemon, more), reads.clone());
        let tree = Tree::new(daemon.clone(), view, Some(inbox.clone()), reads);
        Ok(Self { tree, inbox, folder })
    }

    /// Returns the filesystem to mount.
    pub fn tree(&self) -> Arc<Tree> {
        self.tree.clone()
    }

    /// Ends the inbox after its mount is gone. What was closed before is published, and nothing
    /// else. Returns the paths of what is left in the inbox, which is removed.
    pub async fn finish(self, users: MountUsers) -> Vec<String> {
        let left = self.inbox.finish_inbox(users).await;
        self.tree.wait_for_answers().await;
        let folder = self.folder;
        if let Err(error) = ion_system::run_blocking(move || folder.remove()).await {
            tracing::warn!(%error, "the folder of the inbox could not be removed");
        }
        left
    }
}

/// Makes a directory of the current records, with a directory for each type. A record of no type
/// stands beside these.
fn records_by_type<T: Serialize + Send + Sync + 'static>(
    inbox: Arc<Output>,
    types: fn(&Output) -> Vec<String>,
    of_type: fn(&Output, &str) -> BTreeMap<String, T>,
    at: fn(&T) -> Millis,
) -> ViewItem {
    ViewItem::lazy(Duration::ZERO, move || {
        let mut items = Vec::new();
        for event_type in types(&inbox) {
            if event_type.is_empty() {
                let records = of_type(&inbox, "");
                items.extend(records.iter().map(|(name, record)| {
                    (format!("{name}.json"), ViewItem::json(record, at(record)))
                }));
                continue;
            }
            let (inbox, name) = (inbox.clone(), event_type.clone());
            items.push((event_type, records_item(move || of_type(&inbox, &name), at)));
        }
        std::future::ready(Ok(items))
    })
}
