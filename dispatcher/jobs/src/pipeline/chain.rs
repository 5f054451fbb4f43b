//! Chains in a pipeline file: a `Chain:` of links with the field names of older Ion, and modules
//! with `stdio: true`.

use std::path::Path;

use ion_model::event::is_event_type;
use ion_model::limits::parse_bytes;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{
    Link, Mistake, Module, PipelineProblem, ProgramError, default_concurrency, parse_time,
    set_run_limits, set_secrets,
};

/// How many runs of one chain a dispatcher has at the same time, for each processor. More than one,
/// because links wait for each other and for other systems.
const RUNS_EACH: usize = 4;

/// The most processes of one link that may be started ahead.
pub(super) const WARM_MAX: usize = 64;

/// The prefix that turns a chain's name into the event type that starts it. The same type with
/// `.done` appended is what the chain publishes.
const CHAIN: &str = "chain.";

/// The top-level fields of a file that belong to its chain, beside the links themselves.
pub(super) struct ChainEntry {
    pub(super) secrets: Vec<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) concurrency: Option<Spanned<usize>>,
    pub(super) links: LinkFields,
}

/// The fields that say how links are run: those of a chain, or of a module that is one link.
pub(super) struct LinkFields {
    pub(super) warm: Option<Spanned<usize>>,
    pub(super) idle: Option<Spanned<String>>,
    pub(super) output: Option<Spanned<String>>,
}

/// A link, with the field names of older Ion.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkEntry {
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "Command")]
    command: Option<Spanned<String>>,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Arguments", default)]
    arguments: Vec<String>,
}

impl ChainEntry {
    /// Returns the first field that is set, with its location. A file without a chain must not set
    /// any.
    pub(super) fn first_set_field(&self) -> Option<(Location, &'static str)> {
        let at = |spanned: Option<Location>, key| spanned.map(|place| (place, key));
        at(self.timeout.as_ref().map(|one| one.referenced), "timeout")
            .or_else(|| at(self.concurrency.as_ref().map(|one| one.referenced), "concurrency"))
            .or_else(|| at(self.secrets.first().map(|one| one.referenced), "secrets"))
            .or_else(|| self.links.first_set_field())
    }
}

impl LinkFields {
    /// Returns the first field that is set, with its location. A module without links must not set
    /// any.
    pub(super) fn first_set_field(&self) -> Option<(Location, &'static str)> {
        let text = |spanned: &Option<Spanned<String>>| spanned.as_ref().map(|one| one.referenced);
        let fields = [
            (self.warm.as_ref().map(|one| one.referenced), "warm"),
            (text(&self.idle), "idle"),
            (text(&self.output), "output"),
        ];
        fields.into_iter().find_map(|(place, key)| Some((place?, key)))
    }

    /// Checks the fields and sets them in the module.
    pub(super) fn apply(self, module: &mut Module) -> Result<(), Mistake> {
        if let Some(warm) = self.warm {
            if warm.value > WARM_MAX {
                let allowed = format!("each is a process; at most {WARM_MAX} are allowed");
                let problem =
                    PipelineProblem::Number { field: "warm", number: warm.value, allowed };
                return Err(problem.at_place(warm.referenced));
            }
            module.link_settings.warm = warm.value;
        }
        if let Some(idle) = self.idle {
            module.link_settings.idle = parse_time("idle", idle)?;
        }
        if let Some(output) = self.output {
            let bytes = parse_bytes(&output.value).map_err(|wrong| {
                PipelineProblem::unreadable("output", wrong).at_place(output.referenced)
            })?;
            module.link_settings.output_bytes = bytes;
        }
        Ok(())
    }
}

/// Returns the one link of a module with `stdio: true`. A link without a command runs the program
/// that its image names.
pub(super) fn single_link(module: &Module) -> Link {
    let mut run = module.run.iter().cloned();
    Link {
        name: module.name.clone(),
        image: module
            .container
            .as_ref()
            .map(|container| container.image.to_string())
            .unwrap_or_default(),
        command: run.next().unwrap_or_default(),
        arguments: run.collect(),
    }
}

/// Returns the module of a chain. The file's `name` is the module's name.
pub(super) fn build_chain(
    name: &str,
    links: Spanned<Vec<Spanned<LinkEntry>>>,
    entry: ChainEntry,
    directory: &Path,
) -> Result<Module, Mistake> {
    let place = links.referenced;
    if !is_event_type(name) {
        return Err(PipelineProblem::ChainName(name.to_owned()).at_place(place));
    }
    if links.value.is_empty() {
        let what = "is empty: it needs links, each with a \"Command\"";
        return Err(PipelineProblem::Field { field: "Chain", what }.at_place(place));
    }
    let mut module = Module::new(name, vec![], directory.to_owned());
    module.on = vec![format!("{CHAIN}{name}")];
    module.emits = vec![format!("{CHAIN}{name}.done")];
    // The caller who starts a run receives its outcome, and can start it again.
    module.retries = 0;
    module.concurrency = RUNS_EACH * default_concurrency();
    for link in links.value {
        let place = link.referenced;
        let LinkEntry { image, command, name, arguments } = link.value;
        let Some(command) = command.filter(|command| !command.value.is_empty()) else {
            let words =
                "the link has no \"Command\": the program that reads stdin and writes stdout";
            return Err(PipelineProblem::Together(words).at_place(place));
        };
        let command = command.value;
        let own = || command.rsplit('/').next().unwrap_or(&command).to_owned();
        let link = Link { name: name.unwrap_or_else(own), image, command, arguments };
        let container = module.link_container(&link);
        container.map_err(|wrong| {
            PipelineProblem::from(ProgramError::from(wrong).of_link(&link.name)).at_place(place)
        })?;
        module.links.push(link);
    }
    set_secrets(&mut module, entry.secrets)?;
    set_run_limits(&mut module, entry.timeout, entry.concurrency)?;
    entry.links.apply(&mut module)?;
    Ok(module)
}
