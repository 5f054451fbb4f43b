//! Chains in a pipeline file: a `Chain:` of links in the older system's words, and modules with
//! `stdio: true`.

use std::path::Path;

use ion_model::event::is_event_type;
use ion_model::limits::bytes;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{Link, Module, Wrong, default_concurrency, duration, terms};

/// Runs of one chain at a time in one dispatcher, for each processor: its links wait for each other
/// and for the world.
const RUNS_EACH: usize = 4;

/// Processes of one link that may be started ahead.
pub(super) const WARM_MAX: usize = 64;

/// Before a chain's name, the event type that starts it; `.done` behind it, what it publishes.
const CHAIN: &str = "chain.";

/// What a file says of its chain beside the links.
pub(super) struct ChainEntry {
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) concurrency: Option<Spanned<usize>>,
    pub(super) links: LinkTerms,
}

/// What a file says of how links are run, of a chain or of a module that is one link.
pub(super) struct LinkTerms {
    pub(super) warm: Option<Spanned<usize>>,
    pub(super) idle: Option<Spanned<String>>,
    pub(super) output: Option<Spanned<String>>,
}

/// A link, in the older system's words.
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
    /// What belongs to a chain, where there is none.
    pub(super) fn stray(&self) -> Option<(Location, &'static str)> {
        let at = |spanned: Option<Location>, key| spanned.map(|place| (place, key));
        at(self.timeout.as_ref().map(|one| one.referenced), "timeout")
            .or_else(|| at(self.concurrency.as_ref().map(|one| one.referenced), "concurrency"))
            .or_else(|| self.links.stray())
    }
}

impl LinkTerms {
    /// What belongs to links, where there are none.
    pub(super) fn stray(&self) -> Option<(Location, &'static str)> {
        let text = |spanned: &Option<Spanned<String>>| spanned.as_ref().map(|one| one.referenced);
        let said = [
            (self.warm.as_ref().map(|one| one.referenced), "warm"),
            (text(&self.idle), "idle"),
            (text(&self.output), "output"),
        ];
        said.into_iter().find_map(|(place, key)| Some((place?, key)))
    }

    /// Sets them.
    pub(super) fn apply(self, module: &mut Module) -> Result<(), Wrong> {
        if let Some(warm) = self.warm {
            if warm.value > WARM_MAX {
                let reason = format!(
                    "\"warm\" is {}: each is a process; at most {WARM_MAX} are allowed",
                    warm.value
                );
                return Err((warm.referenced, reason));
            }
            module.link_settings.warm = warm.value;
        }
        if let Some(idle) = self.idle {
            module.link_settings.idle = duration("idle", idle)?;
        }
        if let Some(output) = self.output {
            let bytes = bytes(&output.value)
                .map_err(|wrong| (output.referenced, format!("\"output\": {wrong}")))?;
            module.link_settings.output_bytes = bytes;
        }
        Ok(())
    }
}

/// A module that is one link. Without a command it is what its image says.
pub(super) fn link_of(module: &Module) -> Link {
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

/// A chain: a module that is called as its file is.
pub(super) fn chain(
    name: &str,
    links: Spanned<Vec<Spanned<LinkEntry>>>,
    entry: ChainEntry,
    directory: &Path,
) -> Result<Module, Wrong> {
    let place = links.referenced;
    if !is_event_type(name) {
        let reason = format!(
            "\"name\" {name:?} is the chain's: letters, digits, '.', '_' and '-' are allowed"
        );
        return Err((place, reason));
    }
    if links.value.is_empty() {
        return Err((place, "\"Chain\" is empty: it needs links, each with a \"Command\"".into()));
    }
    let mut module = Module::new(name, vec![], directory.to_owned());
    module.on = vec![format!("{CHAIN}{name}")];
    module.emits = vec![format!("{CHAIN}{name}.done")];
    // Whoever asks for a run is told how it went, and asks again.
    module.retries = 0;
    module.concurrency = RUNS_EACH * default_concurrency();
    for link in links.value {
        let place = link.referenced;
        let LinkEntry { image, command, name, arguments } = link.value;
        let Some(command) = command.filter(|command| !command.value.is_empty()) else {
            let reason =
                "the link has no \"Command\": the program that reads stdin and writes stdout"
                    .into();
            return Err((place, reason));
        };
        let command = command.value;
        let own = || command.rsplit('/').next().unwrap_or(&command).to_owned();
        let link = Link { name: name.unwrap_or_else(own), image, command, arguments };
        let image = module.container_of(&link);
        image.map_err(|reason| (place, format!("link {:?}: {reason}", link.name)))?;
        module.links.push(link);
    }
    terms(&mut module, entry.timeout, entry.concurrency)?;
    entry.links.apply(&mut module)?;
    Ok(module)
}
