//! `ion mount`: the whole plane as a tree to browse.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use ionfs::fs::browse;
use ionfs::mount::{UnmountOutcome, Visitors, mount_at, unmount_stale};
use ionfs::node::Node;

use crate::metrics::MetricsArgs;
use crate::service::wait_for_stop_signal;
use crate::settings::CommandSettings;
use crate::{CommandFailure, CommandResult, CommandVerdict, output};

/// Mount the whole plane as a read-only tree, until Ctrl-C
///
/// correlations/<day>/<time>-<type>-<id>/<n>-<type>-<id>/ holds an event's files, values and
/// insights, and its jobs with their state, logs and attempts; correlations/<id>/<id> leads there,
/// too. modules/<name>/<state>/, types/<type>/<day>/, insights/<module>/<key>/<value>/,
/// find/insights/<module>/<term>/, recent/, running/, queued/, failed/ and dead/ link into it.
/// Bytes are fetched only when they are read, and names only as far as they are asked for. All
/// times are UTC. docs/debugging.md shows how failures are found.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  ion mount /tmp/plane &
  ls /tmp/plane/recent/
  cat /tmp/plane/dead/*/state
  tail -f /tmp/plane/running/*-detect-*/log
  grep -r Traceback /tmp/plane/modules/detect/dead/*/log")]
pub(crate) struct MountArgs {
    /// The folder to mount at; it is made if it does not exist
    folder: PathBuf,
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
    let tree = browse::tree(node);
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
    tokio::select! {
        ended = mounted.wait_for_end() => ended?,
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
        }
    }
    endpoint.close().await;
    Ok(CommandVerdict::Well)
}
