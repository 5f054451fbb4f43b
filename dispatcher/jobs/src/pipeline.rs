//! Modules, and the pipeline file that declares them (DESIGN.md section 8).
//!
//! A wrong file is refused before anything starts. The error names the line, the field and what is
//! allowed there.

mod bounds;
mod chain;
mod container;
mod cycles;
mod error;
mod files;
mod image;
mod kubernetes;
mod link;
mod misspelled;
mod module;
mod older;
mod params;
mod resources;
mod secrets;
mod source_fields;
mod source_problem;
mod sources;
mod syntax;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use ion_model::event::is_event_type;
use ion_model::record::CommitMode;
use ion_model::source::SourceDefinition;
use ion_model::term::{Term, TermError, Terms};
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};

pub use self::bounds::{
    AT_A_TIME_MAX, BoundError, TIME_MAX, TimeBounds, parse_at_a_time, parse_time_within,
};
use self::chain::{ChainEntry, LinkEntry, LinkFields, build_chain, single_link};
pub use self::container::{Container, ExecutorKind, Network};
use self::container::{ContainerFields, check_image_fields};
pub use self::cycles::find_cycles;
use self::error::Mistake;
pub use self::error::{PipelineError, PipelineProblem};
use self::files::check_file_pattern;
pub(crate) use self::files::find_files;
pub use self::files::{FilePatternError, MODULE_FILES_MAX};
pub use self::image::{ImageReference, ImageReferenceError};
pub use self::kubernetes::{KubernetesFields, Toleration};
pub use self::link::{Link, LinkSettings, OUTPUT_MAX};
pub use self::misspelled::{find_misspelled_types, why_nothing_starts};
use self::module::default_concurrency;
pub use self::module::{ANY_TYPE, BATCH_MAX, Module, ModuleApi, OnDead, ProgramError};
use self::older::set_older_fields;
pub use self::params::{
    Parameter, ParameterError, ParameterKind, Parameters, ValueText, check_values,
};
pub use self::resources::Resources;
pub use self::secrets::MODULE_SECRETS_MAX;
use self::secrets::set_secrets;
pub use self::source_fields::SourceFields;
pub use self::source_problem::{SourceProblem, SourceProblems};
use self::sources::{ParamsEntry, build_params, build_sources, check_started_by_sources};
pub use self::sources::{define_source, define_source_from_json, define_tried_source};

/// The most retries that a module may set: with a minute between two attempts, they take most of a
/// day.
const RETRIES_MAX: u32 = 1000;

/// The beginning of the types of events that Ion itself creates.
const OWN_TYPES: &str = "ion.";

/// A pipeline: modules that work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Its modules, sorted by name.
    pub modules: Vec<Module>,
    /// Its sources, by name.
    pub sources: BTreeMap<String, SourceDefinition>,
    /// The stores that it uses.
    pub plane: PlaneSection,
}

/// The `plane:` section: the stores' URLs. `${NAME}` in them stands for a variable of the daemon's
/// environment, so that the file need not contain a password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaneSection {
    /// `file://`, `s3://`, `az://` or `gs://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<String>,
    /// `sqlite://`, `mongodb://` or `mongodb+srv://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<String>,
    /// `sqlite://`, `amqp://` or `amqps://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

/// Why the plane section cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum PlaneSectionError {
    /// A `${` is not closed.
    #[error("a \"${{\" in the plane section has no \"}}\"")]
    Unclosed,
    /// The variable is not set.
    #[error("the plane section names ${{{0}}}, which is not in the environment")]
    Unset(String),
}

impl PlaneSection {
    /// Returns the section with every `${NAME}` replaced by what `variable` returns for the name.
    ///
    /// # Errors
    /// [`PlaneSectionError::Unset`] when a variable is not set, [`PlaneSectionError::Unclosed`]
    /// when a `${` has no `}`.
    pub fn expand_variables(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, PlaneSectionError> {
        let expand =
            |url: &Option<String>| url.as_deref().map(|url| expand(url, &variable)).transpose();
        Ok(Self {
            blobs: expand(&self.blobs)?,
            documents: expand(&self.documents)?,
            bus: expand(&self.bus)?,
        })
    }
}

fn expand(
    url: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, PlaneSectionError> {
    let mut expanded = String::new();
    let mut rest = url;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or(PlaneSectionError::Unclosed)?;
        let value = variable(name).ok_or_else(|| PlaneSectionError::Unset(name.to_owned()))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineFile {
    name: Option<String>,
    #[serde(default)]
    plane: PlaneSection,
    modules: Option<Spanned<BTreeMap<String, Spanned<ModuleEntry>>>>,
    #[serde(default)]
    sources: BTreeMap<String, Spanned<SourceFields>>,
    #[serde(rename = "Chain")]
    chain: Option<Spanned<Vec<Spanned<LinkEntry>>>>,
    #[serde(default)]
    secrets: Vec<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    concurrency: Option<Spanned<usize>>,
    warm: Option<Spanned<usize>>,
    idle: Option<Spanned<String>>,
    output: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleEntry {
    on: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(rename = "where", default)]
    terms: Vec<Spanned<String>>,
    gather: Option<Spanned<String>>,
    per: Option<Spanned<String>>,
    #[serde(rename = "on-dead")]
    on_dead: Option<OnDead>,
    emits: Option<Vec<Spanned<String>>>,
    params: Option<Spanned<ParamsEntry>>,
    #[serde(default)]
    secrets: Vec<Spanned<String>>,
    run: Option<Spanned<Vec<String>>>,
    image: Option<Spanned<String>>,
    env: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    files: Vec<Spanned<String>>,
    commit: Option<CommitMode>,
    api: Option<Spanned<String>>,
    urls: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    retries: Option<Spanned<u32>>,
    batch: Option<Spanned<usize>>,
    concurrency: Option<Spanned<usize>>,
    #[serde(default)]
    limits: BTreeMap<String, Spanned<String>>,
    executor: Option<Spanned<String>>,
    network: Option<Spanned<String>>,
    resources: Option<Spanned<BTreeMap<String, Spanned<String>>>>,
    user: Option<Spanned<String>>,
    kubernetes: Option<Spanned<KubernetesFields>>,
    privileged: Option<Spanned<bool>>,
    #[serde(default)]
    stdio: bool,
    warm: Option<Spanned<usize>>,
    idle: Option<Spanned<String>>,
    output: Option<Spanned<String>>,
}

impl Pipeline {
    /// Reads and checks a pipeline file. `path` is the `PATH` in which programs without a slash are
    /// looked up.
    ///
    /// # Errors
    /// The first mistake, with its line and column.
    pub fn load(file: &Path, path: &str) -> Result<Self, PipelineError> {
        let name = file.display().to_string();
        let unreadable = |source| PipelineError::Read { path: name.clone(), source };
        let bytes = std::fs::read(file).map_err(unreadable)?;
        let file = std::path::absolute(file).map_err(unreadable)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let parsed = Self::parse(utf8_text(&bytes, &name)?, directory);
        let (mut pipeline, places) = parsed.map_err(|mistake| mistake.in_file(&name))?;
        pipeline.check_programs(&places, &name, path)?;
        for source in pipeline.sources.values_mut() {
            source.pipeline = Some(file.display().to_string());
        }
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        pipeline.modules.iter_mut().for_each(|module| module.pipeline.clone_from(&name));
        Ok(pipeline)
    }

    /// Reads and checks the bytes of a pipeline file: everything but whether its programs exist.
    /// Errors name the file `name`; relative paths are below `directory`.
    ///
    /// # Errors
    /// The first mistake, with its line and column.
    pub fn from_bytes(bytes: &[u8], name: &str, directory: &Path) -> Result<Self, PipelineError> {
        match Self::parse(utf8_text(bytes, name)?, directory) {
            Ok((pipeline, _)) => Ok(pipeline),
            Err(mistake) => Err(mistake.in_file(name)),
        }
    }

    fn check_programs(
        &self,
        places: &BTreeMap<String, Location>,
        file: &str,
        path: &str,
    ) -> Result<(), PipelineError> {
        for module in &self.modules {
            module.check_programs(path).map_err(|error| {
                let place = places.get(&module.name).copied().unwrap_or(Location::UNKNOWN);
                PipelineProblem::from(error).of_module(&module.name).at_place(place).in_file(file)
            })?;
        }
        Ok(())
    }

    /// Reads and checks everything but the programs. Also returns the location of each module's
    /// `run`.
    fn parse(text: &str, directory: &Path) -> Result<(Self, BTreeMap<String, Location>), Mistake> {
        build(syntax::parse_file(text)?, directory)
    }
}

/// Returns the text of the file `path`.
fn utf8_text<'a>(bytes: &'a [u8], path: &str) -> Result<&'a str, PipelineError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes[..error.valid_up_to()].iter();
        PipelineError::Wrong {
            path: path.to_owned(),
            line: 1 + before.filter(|byte| **byte == b'\n').count() as u64,
            column: 1,
            problem: PipelineProblem::NotUtf8.into(),
        }
    })
}

fn build(
    file: PipelineFile,
    directory: &Path,
) -> Result<(Pipeline, BTreeMap<String, Location>), Mistake> {
    let name = file.name.unwrap_or_else(|| "pipeline".into());
    let PipelineFile { secrets, timeout, concurrency, warm, idle, output, .. } = file;
    let links = LinkFields { warm, idle, output };
    let of_chain = ChainEntry { secrets, timeout, concurrency, links };
    if let Some(links) = file.chain {
        if let Some(modules) = file.modules {
            let words = "\"Chain\" and \"modules\" exclude each other in one file";
            return Err(PipelineProblem::Together(words).at_place(modules.referenced));
        }
        let place = links.referenced;
        let module = build_chain(&name, links, of_chain, directory)?;
        let places = BTreeMap::from([(module.name.clone(), place)]);
        let (modules, sources) = (vec![module], BTreeMap::new());
        return Ok((Pipeline { name, modules, sources, plane: file.plane }, places));
    }
    if let Some((place, field)) = of_chain.first_set_field() {
        let what = "belongs beside \"Chain\", or in a module";
        return Err(PipelineProblem::Field { field, what }.at_place(place));
    }
    let Some(entries) = file.modules else {
        return Err(PipelineProblem::NoModules.at_place(Location::UNKNOWN));
    };
    if entries.value.is_empty() {
        let what = "is empty";
        return Err(PipelineProblem::Field { field: "modules", what }.at_place(entries.referenced));
    }
    let mut places = BTreeMap::new();
    let mut gathers = BTreeMap::new();
    let mut modules = Vec::new();
    for (name, entry) in entries.value {
        let place = entry.referenced;
        let in_module = |wrong: Mistake| wrong.problem.of_module(&name).at_place(wrong.place);
        if !is_event_type(&name) {
            return Err(PipelineProblem::ModuleName(name).at_place(place));
        }
        places.insert(name.clone(), entry.value.run.as_ref().map_or(place, |run| run.referenced));
        gathers.extend(entry.value.gather.as_ref().map(|gather| (name.clone(), gather.referenced)));
        modules.push(build_module(&name, entry.value, place, directory).map_err(in_module)?);
    }
    check_gathers(&modules, &gathers)?;
    let sources = build_sources(file.sources, &modules)?;
    Ok((Pipeline { name, modules, sources, plane: file.plane }, places))
}

fn build_module(
    name: &str,
    entry: ModuleEntry,
    place: Location,
    directory: &Path,
) -> Result<Module, Mistake> {
    let ModuleEntry { image, executor, network, resources, user, kubernetes, .. } = entry;
    let (executor, container) =
        ContainerFields { image, executor, network, resources, user }.resolve(directory)?;
    let run = match (entry.run, &container) {
        (Some(run), _) if run.value.first().is_none_or(String::is_empty) => {
            let what = "is empty: the program and its arguments are needed";
            return Err(PipelineProblem::Field { field: "run", what }.at_place(run.referenced));
        }
        (Some(run), _) => run.value,
        (None, Some(_)) => vec![],
        (None, None) => {
            let what = "is missing: the program and its arguments, as in run: [./sample.sh] (or \
                        an \"image\" that names it)";
            return Err(PipelineProblem::Field { field: "run", what }.at_place(place));
        }
    };
    let kubernetes = match (kubernetes, executor) {
        (Some(fields), ExecutorKind::Kubernetes) => fields.value,
        (Some(fields), _) => {
            let what = "belongs to \"executor: kubernetes\"";
            return Err(
                PipelineProblem::Field { field: "kubernetes", what }.at_place(fields.referenced)
            );
        }
        (None, _) => KubernetesFields::default(),
    };
    let privileged = parse_privileged(entry.privileged, container.is_some(), entry.stdio)?;
    let mut module = Module {
        executor,
        container,
        kubernetes,
        privileged,
        ..Module::new(name, run, directory.to_owned())
    };
    module.params = entry.params.map(build_params).transpose()?;
    set_secrets(&mut module, entry.secrets)?;
    set_start_events(&mut module, entry.on, entry.gather, entry.per, place)?;
    module.terms = parse_where(&entry.terms)?;
    let emits = entry.emits.unwrap_or_default();
    if let Some(own) = emits.iter().find(|emitted| emitted.value.starts_with(OWN_TYPES)) {
        let words = "event types that begin with \"ion.\" are Ion's own; no module publishes them";
        return Err(PipelineProblem::Together(words).at_place(own.referenced));
    }
    module.emits = parse_event_types(emits)?;
    set_older_fields(&mut module, entry.env, entry.api, entry.commit, entry.urls)?;
    check_image_fields(&module).map_err(|problem| problem.at_place(place))?;
    module.files = parse_files(entry.files, module.container.as_ref())?;
    let of_links = LinkFields { warm: entry.warm, idle: entry.idle, output: entry.output };
    if entry.stdio {
        module.links = vec![single_link(&module)];
        if module.emits.len() != 1 || module.gather.is_some() {
            let words = "with \"stdio: true\" the module's stdout becomes one event: \"on\" and \
                         exactly one type in \"emits\" are needed";
            return Err(PipelineProblem::Together(words).at_place(place));
        }
        of_links.apply(&mut module)?;
    } else if let Some((place, field)) = of_links.first_set_field() {
        let what = "belongs to \"stdio: true\"";
        return Err(PipelineProblem::Field { field, what }.at_place(place));
    }
    if module.params.is_some() {
        check_started_by_sources(&module).map_err(|problem| problem.at_place(place))?;
    }
    module.on_dead = entry.on_dead.unwrap_or_default();
    if let Some(retries) = entry.retries {
        module.retries = retries.value;
        if retries.value > RETRIES_MAX {
            let allowed = format!("0 to {RETRIES_MAX} are allowed");
            let number = retries.value as usize;
            let problem = PipelineProblem::Number { field: "retries", number, allowed };
            return Err(problem.at_place(retries.referenced));
        }
    }
    module.batch = entry.batch.map(|batch| parse_batch(&module, batch)).transpose()?;
    set_run_limits(&mut module, entry.timeout, entry.concurrency)?;
    for (name, value) in entry.limits {
        let set = module.limits.set(&name, &value.value);
        set.map_err(|wrong| PipelineProblem::from(wrong).at_place(value.referenced))?;
    }
    Ok(module)
}

/// Sets which events start a module: its `on`, or its `gather` and `per`.
fn set_start_events(
    module: &mut Module,
    on: Option<Spanned<Vec<Spanned<String>>>>,
    gather: Option<Spanned<String>>,
    per: Option<Spanned<String>>,
    place: Location,
) -> Result<(), Mistake> {
    match (on, gather, per) {
        (Some(on), None, None) => {
            if on.value.is_empty() {
                let what = "is empty: no event would ever start it";
                return Err(PipelineProblem::Field { field: "on", what }.at_place(on.referenced));
            }
            module.on = parse_event_types(on.value)?;
        }
        (None, Some(gather), Some(per)) => {
            module.gather = parse_event_types(vec![gather])?.pop();
            module.per = parse_event_types(vec![per])?.pop();
        }
        (None, Some(gather), None) => {
            let what = "needs \"per\": the event type below which it gathers";
            return Err(
                PipelineProblem::Field { field: "gather", what }.at_place(gather.referenced)
            );
        }
        (None, None, Some(per)) => {
            let what = "belongs to \"gather\"";
            return Err(PipelineProblem::Field { field: "per", what }.at_place(per.referenced));
        }
        (None, None, None) if module.params.is_some() => {}
        (None, None, None) => {
            let what = "is missing: the event types it starts on (or \"gather\" and \"per\", or \
                        \"params\" if sources start it)";
            return Err(PipelineProblem::Field { field: "on", what }.at_place(place));
        }
        (Some(on), _, _) => {
            let words = "\"on\" and \"gather\" exclude each other";
            return Err(PipelineProblem::Together(words).at_place(on.referenced));
        }
    }
    Ok(())
}

/// Reads the patterns of a module's `files`.
fn parse_files(
    patterns: Vec<Spanned<String>>,
    container: Option<&Container>,
) -> Result<Vec<String>, Mistake> {
    for pattern in &patterns {
        let place = pattern.referenced;
        if container.is_some() {
            let what = "belongs to a program of this machine: an image has its files in it";
            return Err(PipelineProblem::Field { field: "files", what }.at_place(place));
        }
        let unreadable = |source: FilePatternError| {
            PipelineProblem::Unreadable { field: "files", source: source.into() }.at_place(place)
        };
        check_file_pattern(&pattern.value).map_err(unreadable)?;
    }
    Ok(patterns.into_iter().map(|pattern| pattern.value).collect())
}

/// Reads the terms of a module's `where`.
fn parse_where(texts: &[Spanned<String>]) -> Result<Terms, Mistake> {
    let unreadable = |source: TermError, place| {
        PipelineProblem::Unreadable { field: "where", source: source.into() }.at_place(place)
    };
    for text in texts {
        text.value.parse::<Term>().map_err(|wrong| unreadable(wrong, text.referenced))?;
    }
    let all: Vec<&str> = texts.iter().map(|text| text.value.as_str()).collect();
    let place = texts.first().map_or(Location::UNKNOWN, |text| text.referenced);
    Terms::parse(&all).map_err(|wrong| unreadable(wrong, place))
}

/// Returns whether the module keeps the daemon's rights. Only a program of this machine that works
/// with files can have them.
fn parse_privileged(
    field: Option<Spanned<bool>>,
    container: bool,
    stdio: bool,
) -> Result<bool, Mistake> {
    let Some(field) = field.filter(|field| field.value) else { return Ok(false) };
    let words = match (container, stdio) {
        (true, _) => {
            "a module with an \"image\" has no rights on the machine; leave \"privileged\" out"
        }
        (_, true) => {
            "with \"stdio: true\" a module only reads and writes bytes, and needs no rights; leave \
             \"privileged\" out"
        }
        (false, false) => return Ok(true),
    };
    Err(PipelineProblem::Together(words).at_place(field.referenced))
}

/// Returns how many events one process of the module takes. Only a program of this machine, or of an
/// image on it, that works with files can take several.
fn parse_batch(module: &Module, batch: Spanned<usize>) -> Result<usize, Mistake> {
    let excluded = if module.gather.is_some() {
        Some(
            "\"batch\" and \"gather\" exclude each other: a gathering job takes many events already",
        )
    } else if !module.links.is_empty() {
        Some("\"batch\" and \"stdio: true\" exclude each other: leave one of them out")
    } else if module.api != ModuleApi::None {
        Some("\"batch\" and \"api: sidecar\" exclude each other: leave one of them out")
    } else if module.has_secret_parameter() {
        Some(
            "\"batch\" and a parameter of \"type: secret\" exclude each other: one process has one folder of secrets",
        )
    } else if module.executor == ExecutorKind::Kubernetes {
        Some("\"batch\" needs \"executor: local\" or \"executor: container\": a pod has one job")
    } else {
        None
    };
    if let Some(words) = excluded {
        return Err(PipelineProblem::Together(words).at_place(batch.referenced));
    }
    if !(1..=BATCH_MAX).contains(&batch.value) {
        let allowed = format!("1 to {BATCH_MAX} events in a batch are allowed");
        let problem = PipelineProblem::Number { field: "batch", number: batch.value, allowed };
        return Err(problem.at_place(batch.referenced));
    }
    Ok(batch.value)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn set_run_limits(
    module: &mut Module,
    timeout: Option<Spanned<String>>,
    concurrency: Option<Spanned<usize>>,
) -> Result<(), Mistake> {
    if let Some(timeout) = timeout {
        module.timeout = parse_time("timeout", timeout)?;
    }
    if let Some(concurrency) = concurrency {
        if !(1..=AT_A_TIME_MAX).contains(&concurrency.value) {
            let allowed = format!("1 to {AT_A_TIME_MAX} jobs at a time are allowed");
            let number = concurrency.value;
            let problem = PipelineProblem::Number { field: "concurrency", number, allowed };
            return Err(problem.at_place(concurrency.referenced));
        }
        module.concurrency = concurrency.value;
    }
    Ok(())
}

fn parse_time(field: &'static str, text: Spanned<String>) -> Result<Duration, Mistake> {
    // A shorter time is over before a process has started.
    let time = parse_time_within(&text.value, Duration::from_millis(100), TIME_MAX);
    time.map_err(|source| PipelineProblem::Time { field, source }.at_place(text.referenced))
}

fn parse_event_types(types: Vec<Spanned<String>>) -> Result<Vec<String>, Mistake> {
    let checked = |event_type: Spanned<String>| {
        if is_event_type(&event_type.value) {
            Ok(event_type.value)
        } else {
            Err(PipelineProblem::EventType(event_type.value).at_place(event_type.referenced))
        }
    };
    types.into_iter().map(checked).collect()
}

/// Returns `from` and all event types that the modules can make of events of these types.
pub(crate) fn reachable_types(modules: &[Module], from: &[String]) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = from.iter().cloned().collect();
    loop {
        let before = found.len();
        for module in modules {
            if module.on.iter().chain(&module.gather).any(|event_type| found.contains(event_type)) {
                found.extend(module.emits.iter().cloned());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Refuses a module that gathers a type which no module emits, and a module that waits for a type
/// to which its own events lead.
fn check_gathers(modules: &[Module], places: &BTreeMap<String, Location>) -> Result<(), Mistake> {
    for module in modules {
        let Some(gather) = &module.gather else { continue };
        let place = places.get(&module.name).copied().unwrap_or(Location::UNKNOWN);
        let problem = if !modules.iter().any(|other| other.emits.contains(gather)) {
            PipelineProblem::GathersNothing(gather.clone())
        } else if reachable_types(modules, &module.emits).contains(gather) {
            PipelineProblem::GathersItself(gather.clone())
        } else {
            continue;
        };
        return Err(problem.of_module(&module.name).at_place(place));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
