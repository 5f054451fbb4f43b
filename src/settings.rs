//! Flags and environment, read in this one place.

use std::path::PathBuf;

use clap::Args;
use dispatcher::executor::local::Namespaces;
use ionfs::node::NodeSettings;
use ionfs::stores::DataPlane;
use ionfs::stores::open::{StoreUrls, open};
use tracing_subscriber::EnvFilter;

use crate::Failure;

/// What of the daemon's environment modules see: nothing that could be a credential.
const PASSED_ON: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ"];

/// Where programs are looked for when nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The folder of all state: stores, staging, locks
    #[arg(
        long,
        env = "ION_HOME",
        default_value = ".ion",
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    home: PathBuf,
    /// Where files' bytes are kept [default: file://HOME/blobs]
    #[arg(
        long,
        env = "ION_BLOBS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    blobs: Option<String>,
    /// Where events and jobs are kept [default: sqlite://HOME/ion.db]
    #[arg(
        long,
        env = "ION_DOCUMENTS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    documents: Option<String>,
    /// Who is told of events [default: sqlite://HOME/ion.db]
    #[arg(
        long,
        env = "ION_BUS",
        hide_env_values = true,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    bus: Option<String>,
    /// Print JSON documents instead of tables
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Say more: once for what happens, twice for details
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Global options")]
    verbose: u8,
    /// Let the daemon answer every read itself, also where the kernel could
    #[arg(long, env = "ION_NO_PASSTHROUGH", global = true, help_heading = "Global options")]
    no_passthrough: bool,
    /// Give jobs no namespaces of their own; ION_DIR tells a module where its tree is
    #[arg(long, env = "ION_NO_NAMESPACES", global = true, help_heading = "Global options")]
    no_namespaces: bool,
}

/// The settings of one command.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) home: PathBuf,
    pub(crate) json: bool,
    urls: StoreUrls,
    passthrough: bool,
    /// Whether jobs get namespaces of their own.
    pub(crate) namespaces: Namespaces,
}

impl Settings {
    pub(crate) fn resolve(global: Global) -> Result<Self, Failure> {
        let level = ["warn", "info", "debug"][usize::from(global.verbose.min(2))];
        let filter = EnvFilter::try_from_env("ION_LOG")
            .unwrap_or_else(|_| EnvFilter::new(format!("warn,ion={level},ionfs={level},dispatcher={level}")));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false)
            .init();
        let home = std::path::absolute(&global.home)?;
        let defaults = StoreUrls::embedded(&home);
        let urls = StoreUrls {
            blobs: global.blobs.unwrap_or(defaults.blobs),
            documents: global.documents.unwrap_or(defaults.documents),
            bus: global.bus.unwrap_or(defaults.bus),
        };
        let namespaces = if global.no_namespaces { Namespaces::Never } else { Namespaces::WherePossible };
        Ok(Self { home, json: global.json, urls, passthrough: !global.no_passthrough, namespaces })
    }

    /// Opens the stores.
    pub(crate) async fn plane(&self) -> Result<DataPlane, Failure> {
        Ok(open(&self.urls).await?)
    }

    /// How a daemon of this command behaves.
    pub(crate) fn node(&self) -> NodeSettings {
        NodeSettings { passthrough: self.passthrough, ..NodeSettings::new(&self.home) }
    }

    /// Where the stores are, for people.
    pub(crate) fn urls(&self) -> &StoreUrls {
        &self.urls
    }
}

/// Where programs are looked for.
pub(crate) fn search_path() -> String {
    std::env::var("PATH").unwrap_or_else(|_| PATH.to_owned())
}

/// What every module's environment begins with.
pub(crate) fn module_environment() -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> =
        PASSED_ON.iter().filter_map(|key| Some(((*key).to_owned(), std::env::var(key).ok()?))).collect();
    if !env.iter().any(|(key, _)| key == "PATH") {
        env.push(("PATH".into(), PATH.into()));
    }
    env
}
