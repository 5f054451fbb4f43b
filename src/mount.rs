//! `ion mount`: the whole plane as a tree to browse, and with an inbox for new files.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use ionfs::fs::browse;
use ionfs::fs::inbox::{MountUsers, WritablePlane};
use ionfs::mount::{UnmountOutcome, Visitors, mount_at, unmount_stale};
use ionfs::node::Node;

use crate::metrics::MetricsArgs;
use crate::service::wait_for_stop_signal;
use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// How many of the entries that an inbox loses are named.
const LEFT_NAMED_MAX: usize = 10;

/// Mount the whole plane as a tree to browse, until Ctrl-C
///
/// correlations/<day>/<time>-<type>-<id>/<n>-<type>-<id>/ holds an event's files, values and
/// insights, and its jobs with their state, logs and attempts; correlations/<id>/<id> leads there,
/// too. modules/<name>/<state>/, types/<type>/<day>/, insights/<module>/<key>/<value>/,
/// find/insights/<module>/<term>/, recent/, running/, queued/, failed/ and dead/ link into it.
/// Bytes are fetched only when they are read, and names only as far as they are asked for. All
/// times are UTC. docs/debugging.md shows how failures are found.
///
/// With --writable there is an inbox, too: what is copied into inbox/<type>/ becomes an event of
/// this type when it is closed. docs/inbox.md has the rules.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion mount /tmp/plane &
  ls /tmp/plane/recent/
  cat /tmp/plane/dead/*/state
  tail -f /tmp/plane/running/*-detect-*/log
  grep -r Traceback /tmp/plane/modules/detect/dead/*/log
  ion mount --writable /tmp/plane &
  cp clip.mp4 /tmp/plane/inbox/new_video/")]
pub(crate) struct MountArgs {
    /// The folder to mount at; it is made if it does not exist
    folder: PathBuf,
    /// Add inbox/<type>/: what is copied there becomes an event, and leaves
    #[arg(long)]
    writable: bool,
    /// Let all users of this machine read the tree, and not only its owner. An ordinary user needs
    /// the line user_allow_other in /etc/fuse.conf
    #[arg(long)]
    allow_other: bool,
    #[command(flatten)]
    metrics: MetricsArgs,
}

pub(crate) async fn run(settings: &CommandSettings, args: MountArgs) -> CommandResult {
    let endpoint = args.metrics.open().await?;
    let node = Node::new(settings.open_existing_plane().await?, settings.node_settings())?;
    endpoint.vitals.describe(|registry| node.describe(registry));
    if unmount_stale(&args.folder).is_ok() {
        output::print_message(&format!(
            "{} was left mounted by a run that was killed; it is unmounted",
            args.folder.display()
        ));
    }
    std::fs::create_dir_all(&args.folder).map_err(|error| {
        CommandFailure(format!("{} cannot be made: {error}", args.folder.display()))
    })?;
    let inbox = match args.writable {
        true => Some(WritablePlane::open(&node).map_err(|error| {
            let home = settings.home.display();
            CommandFailure(format!("the inbox cannot be staged below {home}: {error}"))
        })?),
        false => None,
    };
    let tree = inbox.as_ref().map_or_else(|| browse::tree(node), WritablePlane::tree);
    let visitors = if args.allow_other { Visitors::Everybody } else { Visitors::Owner };
    let mounted = mount_at(&args.folder, tree, visitors).await;
    let mut mounted = mounted.map_err(|error| {
        CommandFailure(format!(
            "{} cannot be mounted: {error}; `ion doctor` says what this machine can do",
            args.folder.display()
        ))
    })?;
    output::print_message(&format!("mounted at {}; Ctrl-C unmounts", args.folder.display()));
    endpoint.vitals.mark_ready();
    let users = tokio::select! {
        ended = mounted.wait_for_end() => {
            ended?;
            MountUsers::Gone
        }
        () = wait_for_stop_signal() => {
            endpoint.vitals.mark_not_ready();
            let folder = args.folder.display();
            let unmounted = mounted.unmount().await.map_err(|error| {
                CommandFailure(format!(
                    "{folder} cannot be unmounted: {error}; `fusermount3 -u -z {folder}` does it \
                     once nobody uses it"
                ))
            })?;
            if unmounted == UnmountOutcome::InUse {
                output::print_message(&format!(
                    "{folder} is unmounted while programs use it: a shell that stands in it has to \
                     `cd` elsewhere"
                ));
            }
            match unmounted {
                UnmountOutcome::Whole => MountUsers::Gone,
                UnmountOutcome::InUse => MountUsers::Left,
            }
        }
    };
    if let Some(inbox) = inbox {
        report_left(&inbox.finish(users).await);
    }
    endpoint.close().await;
    Ok(CommandVerdict::Well)
}

/// Says which files of the inbox were not published, and are lost with it.
fn report_left(left: &[String]) {
    if left.is_empty() {
        return;
    }
    let named = left.iter().take(LEFT_NAMED_MAX);
    let mut named: Vec<String> = named.map(|path| output::escape_foreign(path)).collect();
    if left.len() > LEFT_NAMED_MAX {
        named.push("...".to_owned());
    }
    output::print_message(&format!(
        "{} in the inbox had not become events, and went with it: {}",
        if left.len() == 1 { "1 entry".to_owned() } else { format!("{} entries", left.len()) },
        named.join(", ")
    ));
}
