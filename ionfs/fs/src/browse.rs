//! The browsing mount: the whole plane as a read-only tree.
//!
//! # How it works
//! Documents are read when a folder is accessed, and only as many as are asked for: the names of a
//! folder that may have millions are read one part after the other, and each of them is found by an
//! index without listing the folder. So a plane of any size is browsed at once, with bounded memory.
//!
//! # Names
//! A name that people find by reading has a time, a type or a module, and the part of an id that
//! tells it from others. A name that others know, such as an id from a log, leads there without
//! being listed. All times are UTC.

mod correlations;
mod documents;
mod event;
mod found;
mod jobs;
mod names;
mod sources;
mod state;
#[cfg(test)]
mod tests;
mod time;
mod types;
mod unclaimed;
mod unreadable;

use std::sync::Arc;

use ion_plane::node::Node as Daemon;

use self::documents::{ListFuture, directory};
use self::jobs::{JobsFolder, ShownState};
use super::Tree;
use super::item::ViewItem;
use super::reads::ReadLog;
use super::view::View;

/// Makes the tree of a whole plane.
pub fn tree(daemon: Arc<Daemon>) -> Arc<Tree> {
    let view = View::new(root(&daemon, []), ReadLog::default());
    Tree::new(daemon, view, None, ReadLog::default())
}

/// Makes the root of the tree, with `more` entries.
pub(crate) fn root(
    daemon: &Arc<Daemon>,
    more: impl IntoIterator<Item = (String, ViewItem)>,
) -> ViewItem {
    let part = |list: fn(Arc<Daemon>) -> ListFuture| directory(daemon.clone(), 0, list);
    let jobs = |state: ShownState| JobsFolder { module: None, state }.item(daemon);
    let entries = [
        ("correlations".to_owned(), correlations::correlations(daemon)),
        ("dead".to_owned(), jobs(ShownState::Dead)),
        ("failed".to_owned(), jobs(ShownState::Failed)),
        ("find".to_owned(), found::find_root(daemon)),
        ("insights".to_owned(), found::insights(daemon)),
        (
            "modules".to_owned(),
            part(|daemon| Box::pin(jobs::list_modules(daemon, jobs::module_item))),
        ),
        ("queued".to_owned(), jobs(ShownState::Queued)),
        ("recent".to_owned(), part(|daemon| Box::pin(correlations::recent(daemon)))),
        ("running".to_owned(), jobs(ShownState::Running)),
        ("sources".to_owned(), sources::sources(daemon)),
        ("types".to_owned(), types::types(daemon)),
        ("unreadable".to_owned(), part(|daemon| Box::pin(unreadable::unreadable(daemon)))),
    ];
    ViewItem::fixed(entries.into_iter().chain(more))
}
