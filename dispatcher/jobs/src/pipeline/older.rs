//! The fields of a pipeline file for modules written for older Ion: where they look for their tree,
//! and the API that serves them.

use std::collections::BTreeMap;

use ion_model::record::CommitMode;
use ion_plane::address::FileUrls;
use serde_saphyr::Spanned;

use super::module::BASE_DIR;
use super::{Mistake, Module, ModuleApi, PipelineProblem};

/// Folders of the machine that a module's tree must not hide: no program would run.
const SYSTEM_FOLDERS: [&str; 14] = [
    "bin", "dev", "etc", "home", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp",
    "usr", "var",
];

/// Checks `env`, `api`, `commit` and `urls`, and sets them in the module.
pub(super) fn set_older_fields(
    module: &mut Module,
    env: Option<Spanned<BTreeMap<String, String>>>,
    api: Option<Spanned<String>>,
    commit: Option<CommitMode>,
    urls: Option<Spanned<String>>,
) -> Result<(), Mistake> {
    if let Some(env) = env {
        module.env = env.value;
        check_base_dir(&module.env).map_err(|problem| problem.at_place(env.referenced))?;
    }
    if let Some(api) = api {
        module.api = match &*api.value {
            "none" => ModuleApi::None,
            "sidecar" => ModuleApi::Sidecar,
            other => {
                let (value, allowed) = (other.to_owned(), "none, sidecar");
                let problem = PipelineProblem::Value { field: "api", value, allowed };
                return Err(problem.at_place(api.referenced));
            }
        };
    }
    // Modules for the sidecar were written for these defaults: nothing is visible before the module
    // reports that it is done, and files have addresses.
    let (usual, usually) = match module.api {
        ModuleApi::None => (CommitMode::default(), FileUrls::default()),
        ModuleApi::Sidecar => (CommitMode::OnSuccess, FileUrls::Ion),
    };
    module.commit = commit.unwrap_or(usual);
    module.urls = match urls {
        Some(named) => FileUrls::parse(&named.value).map_err(|wrong| {
            PipelineProblem::unreadable("urls", wrong).at_place(named.referenced)
        })?,
        None => usually,
    };
    Ok(())
}

/// Checks that a tree can be at the path that the environment names.
fn check_base_dir(env: &BTreeMap<String, String>) -> Result<(), PipelineProblem> {
    let Some(path) = env.get(BASE_DIR) else { return Ok(()) };
    let name =
        path.strip_prefix('/').filter(|name| !name.is_empty() && !name.contains(['/', '\0']));
    match name {
        Some("." | "..") | None => Err(PipelineProblem::NotBelowRoot(path.clone())),
        Some(name) if SYSTEM_FOLDERS.contains(&name) => {
            Err(PipelineProblem::HidesSystem(path.clone()))
        }
        Some(_) => Ok(()),
    }
}
