//! `unreadable/`: the messages from which no job could be made.

use std::sync::Arc;

use ion_model::id::{EventId, JobId};
use ion_plane::node::Node as Daemon;
use ion_stores::Collection;
use serde_json::json;

use super::documents::{DirectoryItems, add_more};
use super::time::time_name;
use crate::item::{ListResult, ViewItem};

/// The most dead letters that are looked through. Some buses can only be read from the beginning.
const LETTERS_MAX: usize = 1000;

/// Lists the dead letters without a job.
pub(super) async fn unreadable(daemon: Arc<Daemon>) -> ListResult {
    let letters = daemon.plane.bus.list_dead_letters(LETTERS_MAX).await?;
    let is_cut = letters.len() == LETTERS_MAX;
    let mut items = DirectoryItems::new();
    for (n, letter) in letters.into_iter().enumerate() {
        let job = JobId::derive(&EventId::new(letter.event_id.clone()), &letter.module);
        if daemon.plane.documents.get(Collection::Jobs, job.as_str()).await?.is_some() {
            continue;
        }
        let name = format!("{}-{}-{n}.json", time_name(letter.at), letter.module);
        let shown = json!({
            "module": letter.module,
            "reason": letter.reason,
            "body": letter.body,
            "at": letter.at,
        });
        items.push((name, ViewItem::json(&shown, letter.at)));
    }
    if is_cut {
        let shown = format!("those among the first {LETTERS_MAX} dead letters");
        add_more(&mut items, &shown, "`ion dead drop --unreadable` makes room for the others.");
    }
    Ok(items)
}
