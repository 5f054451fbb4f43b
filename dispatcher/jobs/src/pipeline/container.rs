//! The fields of a pipeline file for a module that runs from an image: `image`, `executor`,
//! `network`, `resources` and `user`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};

use super::image::ImageReference;
use super::resources::Resources;
use super::{Mistake, Module, ModuleApi, PipelineProblem};

/// The executor that runs a module's jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecutorKind {
    /// Processes of this machine.
    #[default]
    Local,
    /// Containers on this machine.
    Container,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
}

impl ExecutorKind {
    /// Returns whether a running attempt goes on when its dispatcher ends, so that another
    /// dispatcher can adopt it.
    pub fn outlives_dispatchers(self) -> bool {
        self == Self::Kubernetes
    }
}

/// What a container can reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Nothing but itself.
    #[default]
    None,
    /// Everything that its machine can reach.
    Host,
}

/// The container that a module's jobs run in, and what they may use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// The image.
    pub image: ImageReference,
    /// What it can reach over the network.
    #[serde(default)]
    pub network: Network,
    /// What it may use of its machine.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// The user that it runs as: a name or number in the image, with or without `:group`. None: the
    /// user that the image names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl Container {
    /// Returns a container of this image, with the defaults of all other fields.
    pub fn from_image(image: ImageReference) -> Self {
        Self { image, network: Network::default(), resources: Resources::default(), user: None }
    }
}

/// The fields, as they are in the file.
pub(super) struct ContainerFields {
    pub(super) image: Option<Spanned<String>>,
    pub(super) executor: Option<Spanned<String>>,
    pub(super) network: Option<Spanned<String>>,
    pub(super) resources: Option<Spanned<BTreeMap<String, Spanned<String>>>>,
    pub(super) user: Option<Spanned<String>>,
}

impl ContainerFields {
    /// Checks the fields. Returns the module's executor, and its container if it has an image.
    pub(super) fn resolve(
        self,
        directory: &Path,
    ) -> Result<(ExecutorKind, Option<Container>), Mistake> {
        let kind = match &self.executor {
            None => None,
            Some(executor) => Some(match &*executor.value {
                "local" => ExecutorKind::Local,
                "container" => ExecutorKind::Container,
                "kubernetes" => ExecutorKind::Kubernetes,
                other => {
                    let problem = PipelineProblem::Executor(other.to_owned());
                    return Err(problem.at_place(executor.referenced));
                }
            }),
        };
        let Some(image) = &self.image else {
            if let Some((place, field)) = self.first_image_field() {
                let what = "belongs to \"image\"";
                return Err(PipelineProblem::Field { field, what }.at_place(place));
            }
            return match (kind, &self.executor) {
                (Some(ExecutorKind::Container | ExecutorKind::Kubernetes), Some(executor)) => {
                    let problem = PipelineProblem::NeedsImage(executor.value.clone());
                    Err(problem.at_place(executor.referenced))
                }
                _ => Ok((ExecutorKind::Local, None)),
            };
        };
        if let (Some(ExecutorKind::Local), Some(executor)) = (kind, &self.executor) {
            let words = "an image needs executor: container or kubernetes";
            return Err(PipelineProblem::Together(words).at_place(executor.referenced));
        }
        let place = image.referenced;
        let image = ImageReference::parse(&image.value, directory)
            .map_err(|wrong| PipelineProblem::from(wrong).at_place(place))?;
        let mut container = Container::from_image(image);
        if let Some(network) = self.network {
            container.network = match &*network.value {
                "none" => Network::None,
                "host" => Network::Host,
                other => {
                    let (value, allowed) = (other.to_owned(), "none, host");
                    let problem = PipelineProblem::Value { field: "network", value, allowed };
                    return Err(problem.at_place(network.referenced));
                }
            };
        }
        for (name, value) in self.resources.map(|spanned| spanned.value).unwrap_or_default() {
            let place = value.referenced;
            container
                .resources
                .set(&name, &value.value)
                .map_err(|wrong| PipelineProblem::unreadable("resources", wrong).at_place(place))?;
            if name == "gpu" && kind != Some(ExecutorKind::Kubernetes) {
                let words = "\"resources\": executor: container gives no GPU; allowed: cpu, memory";
                return Err(PipelineProblem::Together(words).at_place(place));
            }
        }
        if let Some(user) = self.user {
            container.user = Some(parse_user(user)?);
        }
        Ok((kind.unwrap_or(ExecutorKind::Container), Some(container)))
    }

    /// Returns the first field that needs an image, with its location. A module without an image
    /// must not set any.
    fn first_image_field(&self) -> Option<(Location, &'static str)> {
        let text = |spanned: &Option<Spanned<String>>| spanned.as_ref().map(|one| one.referenced);
        let fields = [
            (text(&self.network), "network"),
            (self.resources.as_ref().map(|one| one.referenced), "resources"),
            (text(&self.user), "user"),
        ];
        fields.into_iter().find_map(|(place, key)| Some((place?, key)))
    }
}

/// Refuses the other fields of a module that do not work with its image.
pub(super) fn check_image_fields(module: &Module) -> Result<(), PipelineProblem> {
    let Some(container) = &module.container else { return Ok(()) };
    if module.api == ModuleApi::Sidecar && container.network == Network::None {
        return Err(PipelineProblem::Together(
            "\"api: sidecar\" listens on this machine's loopback, which a container reaches \
             with network: host only",
        ));
    }
    Ok(())
}

fn parse_user(user: Spanned<String>) -> Result<String, Mistake> {
    let part = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let (name, group) = user.value.split_once(':').unwrap_or((&user.value, "0"));
    if part(name) && part(group) {
        return Ok(user.value);
    }
    Err(PipelineProblem::User(user.value).at_place(user.referenced))
}
