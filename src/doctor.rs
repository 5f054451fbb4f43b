//! `ion doctor`: what this machine can do, and how to make the rest work.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use dispatcher::container;
use dispatcher::sandbox::{self, ForkServer, SandboxMode};
use ionfs::errors::error_chain;
use serde_json::json;

use crate::output::{self, Colour};
use crate::settings::{CommandSettings, search_path};
use crate::{CommandFailure, CommandResult, CommandVerdict};

/// Say what this machine can do, and how to make the rest work; exit 1 if Ion cannot run here
#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {}

struct DoctorFinding {
    what: &'static str,
    good: bool,
    needed: bool,
    text: String,
}

pub(crate) async fn run(settings: &CommandSettings, _args: DoctorArgs) -> CommandResult {
    let mut findings = vec![inspect_device()];
    let program = std::env::current_exe()?;
    let root = ionfs::sys::is_root();
    let mode = if root { SandboxMode::Root } else { SandboxMode::User };
    findings.push(match sandbox::probe(&ForkServer::new(&program), mode).await {
        Ok(()) => good_finding("namespaces", "each job has its own, with the tree at /ion"),
        Err(error) => DoctorFinding {
            what: "namespaces",
            good: false,
            needed: false,
            text: format!(
                "{}; jobs find their tree at $ION_DIR instead{}",
                error_chain(&error),
                if root { "" } else { " (this needs the program fusermount3, of package fuse3)" }
            ),
        },
    });
    findings.push(inspect_passthrough(root));
    findings.extend(inspect_containers());
    findings.push(inspect_secrets(settings));
    findings.extend(inspect_stores(settings).await);
    let is_well = findings.iter().all(|finding| finding.good || !finding.needed);
    if settings.json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| json!({"what": f.what, "good": f.good, "needed": f.needed, "text": f.text}))
            .collect();
        output::print_json(&list);
    } else {
        for finding in findings {
            let (mark, colour) = match (finding.good, finding.needed) {
                (true, _) => ("good", Colour::Green),
                (false, false) => ("so-so", Colour::Yellow),
                (false, true) => ("bad", Colour::Red),
            };
            let mut lines = finding.text.lines();
            let first = lines.next().unwrap_or_default();
            output::print_line(format!(
                "{:<12} {:<5}  {first}",
                finding.what,
                output::coloured(mark, colour)
            ));
            lines.for_each(|text| output::print_line(format!("{:20}{text}", "")));
        }
    }
    Ok(if is_well { CommandVerdict::Well } else { CommandVerdict::Failed })
}

async fn inspect_stores(settings: &CommandSettings) -> Vec<DoctorFinding> {
    let bad_finding = |what, text| DoctorFinding { what, good: false, needed: true, text };
    // Stores of a home that does not exist are not made just to look at them: a temporary folder on
    // the same disk shows the same.
    let home = settings.home.clone();
    let temporary_home = settings
        .urls()
        .missing_database()
        .filter(|database| database.starts_with(&home))
        .map(|_| {
            let folder = home.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
            tempfile::Builder::new().prefix(".ion-doctor-").tempdir_in(folder)
        });
    let urls = match &temporary_home {
        None => settings.urls().clone(),
        Some(Ok(folder)) => settings.urls().with_moved_home(&home, folder.path()),
        Some(Err(error)) => {
            return vec![bad_finding(
                "home",
                format!("{} cannot be made: {error}", home.display()),
            )];
        }
    };
    let found = ionfs::probe::probe(&urls).await.into_iter().map(|probed| {
        match (probed.outcome, &temporary_home) {
            (Ok(can), None) => good_finding(probed.store, &format!("{}: {can}", probed.url)),
            (Ok(can), Some(_)) => good_finding(
                probed.store,
                &format!("{can} (below {}, which is not there yet)", home.display()),
            ),
            (Err(reason), _) => bad_finding(probed.store, format!("{}: {reason}", probed.url)),
        }
    });
    found.collect()
}

fn good_finding(what: &'static str, text: &str) -> DoctorFinding {
    DoctorFinding { what, good: true, needed: true, text: text.to_owned() }
}

/// Checks that this machine can give jobs their files.
///
/// # Errors
/// When it cannot. The error says why, and what to do about it.
pub(crate) fn check_device() -> Result<(), CommandFailure> {
    let device = inspect_device();
    match device.good {
        true => Ok(()),
        false => Err(CommandFailure(format!("jobs cannot have their files here: {}", device.text))),
    }
}

fn inspect_device() -> DoctorFinding {
    let path = Path::new("/dev/fuse");
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    let bad_finding =
        |text: String| DoctorFinding { what: "fuse", good: false, needed: true, text };
    match (opened, path.metadata()) {
        (Ok(_), _) => good_finding("fuse", "/dev/fuse can be opened"),
        (Err(_), Err(_)) => bad_finding(
            "/dev/fuse is not there; load it with `modprobe fuse`, or give the container --device \
             /dev/fuse"
                .into(),
        ),
        (Err(error), Ok(metadata)) => bad_finding(format!(
            "/dev/fuse cannot be opened: {error} (mode {:o}); allow it with `chmod 666 /dev/fuse`, \
             as distributions do",
            metadata.permissions().mode() & 0o777
        )),
    }
}

/// Checks the programs that modules with an image need.
fn inspect_containers() -> [DoctorFinding; 2] {
    let so_so_finding = |what, text| DoctorFinding { what, good: false, needed: false, text };
    let path = search_path();
    let runtime = match container::find_runtime(&path)
        .and_then(|program| container::runtime_version(&program))
    {
        Ok(version) => {
            good_finding("containers", &format!("{version} runs modules that have an image"))
        }
        Err(error) => so_so_finding("containers", error_chain(&error)),
    };
    let registry = match container::find_fetcher(&path) {
        Ok(program) => {
            good_finding("images", &format!("{} fetches them from registries", program.display()))
        }
        Err(error) => so_so_finding("images", error_chain(&error)),
    };
    [runtime, registry]
}

/// Says where the values of modules' secrets are looked for.
fn inspect_secrets(settings: &CommandSettings) -> DoctorFinding {
    let folders = match settings.secret_folders() {
        Ok(folders) => folders.searched(),
        Err(error) => {
            let text = error_chain(&error);
            return DoctorFinding { what: "secrets", good: false, needed: true, text };
        }
    };
    let words = |folder: &PathBuf| match folder.is_dir() {
        true => folder.display().to_string(),
        false => format!("{} (not there)", folder.display()),
    };
    let all: Vec<_> = folders.iter().map(words).collect();
    good_finding(
        "secrets",
        &format!("modules' secrets are looked for in {}", all.join(" and then ")),
    )
}

/// Checks for passthrough: since Linux 6.9 the kernel accepts backing files from a daemon with
/// CAP_SYS_ADMIN. If a mount finds that it does not, the mount works without passthrough.
fn inspect_passthrough(root: bool) -> DoctorFinding {
    let so_so_finding =
        |text: String| DoctorFinding { what: "passthrough", good: false, needed: false, text };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let slower = "the daemon answers reads itself, which is slower and changes nothing else";
    match (root, version >= (6, 9)) {
        (true, true) => {
            good_finding("passthrough", &format!("Linux {release} reads whole files by itself"))
        }
        (true, false) => so_so_finding(format!("needs Linux 6.9, this is {release}; {slower}")),
        (false, _) => so_so_finding(format!("needs root; {slower}")),
    }
}
