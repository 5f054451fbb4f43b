//! Modules, and the pipeline file that declares them (DESIGN.md section 8).
//!
//! A file that is wrong is refused before anything starts, with its line, the field and what is allowed there.

mod chain;
mod mistake;
mod older;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ionfs::address::FileUrls;
use ionfs::clock::{Millis, SKEW_MAX, millis};
use ionfs::event::Event;
use ionfs::event::is_event_type;
use ionfs::limits::SetLimits;
use ionfs::record::CommitMode;
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};

use self::chain::{ChainEntry, LinkEntry, chain, link_of, link_settings};
use self::mistake::explained;
use self::older::older_words;
use crate::chain::{Link, LinkSettings};

/// How long a job may run unless its module says otherwise: older Ion's default.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Retries unless the module says otherwise. Commits are idempotent, so trying again is safe; three outlast a
/// store's restart.
const RETRIES: u32 = 3;

/// Where the tree stands for a module.
const MOUNT_AT: &str = "/ion";

/// Where older modules look for their tree before they look at [`MOUNT_AT`].
const BASE_DIR: &str = "HANDLER_BASE_DIR";

/// In a module's `emits`: any event type. For `ion run`; no pipeline file may say it.
pub const ANY_TYPE: &str = "*";

/// What is wrong with a pipeline file.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It says something that is not allowed.
    #[error("{path}:{line}:{column}: {reason}")]
    Wrong {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

/// What a gathering module does about a dead job below its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDead {
    /// Waits until it is retried or dropped.
    #[default]
    Wait,
    /// Starts without what it would have made.
    Go,
}

/// What is served beside a job for a module that does not only read and write files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// Nothing.
    #[default]
    None,
    /// The localhost API of older Ion's second generation: `GET /ready`, then `GET /done`.
    Sidecar,
}

/// One module, as registered in the plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Module {
    /// Its name: the id of its document.
    #[serde(rename = "id")]
    pub name: String,
    /// Event types it starts on; empty for a gathering module.
    #[serde(default)]
    pub on: Vec<String>,
    /// The event type it gathers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather: Option<String>,
    /// Below one event of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<String>,
    /// What a dead job below does.
    #[serde(default)]
    pub on_dead: OnDead,
    /// Event types it may publish.
    #[serde(default)]
    pub emits: Vec<String>,
    /// The program and its arguments; empty for a chain.
    pub run: Vec<String>,
    /// The programs through which its input goes from stdin to stdout; empty for a module that reads and writes files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// What those may take.
    #[serde(default)]
    pub link_settings: LinkSettings,
    /// What it adds to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// When its events are committed.
    #[serde(default)]
    pub commit: CommitMode,
    /// What is served beside its jobs.
    #[serde(default)]
    pub api: Api,
    /// Whether its files' addresses stand among its values.
    #[serde(default)]
    pub urls: FileUrls,
    /// How long a job may run.
    #[serde(with = "milliseconds", rename = "timeoutMs")]
    pub timeout: Duration,
    /// How often a failed job is tried again.
    pub retries: u32,
    /// Jobs at a time in one dispatcher.
    pub concurrency: usize,
    /// What its jobs may take, where not as much as others.
    #[serde(default, skip_serializing_if = "SetLimits::is_empty")]
    pub limits: SetLimits,
    /// The working folder: that of the pipeline file.
    pub directory: PathBuf,
    /// Since when its queue is bound to each type; the ledger fills it in.
    #[serde(default)]
    pub since: BTreeMap<String, Millis>,
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

impl Module {
    /// A module with nothing but a name and a program; all else as a pipeline file leaves it.
    pub fn new(name: &str, run: Vec<String>, directory: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            on: vec![],
            gather: None,
            per: None,
            on_dead: OnDead::default(),
            emits: vec![],
            run,
            links: vec![],
            link_settings: LinkSettings::default(),
            env: BTreeMap::new(),
            commit: CommitMode::default(),
            api: Api::default(),
            urls: FileUrls::default(),
            timeout: TIMEOUT,
            retries: RETRIES,
            concurrency: default_concurrency(),
            limits: SetLimits::default(),
            directory,
            since: BTreeMap::new(),
        }
    }

    /// Where its tree stands: `/ion`, unless its environment has `HANDLER_BASE_DIR`.
    pub fn base_dir(&self) -> PathBuf {
        self.env.get(BASE_DIR).map_or_else(|| MOUNT_AT.into(), PathBuf::from)
    }

    /// Whether its queue got this event's message: it subscribes to the type, and did so when the event was published.
    /// Within ten minutes of its registration the answer is yes, as clocks differ, but for what no queue got.
    pub fn expects(&self, event: &Event) -> bool {
        let subscribes =
            self.on.contains(&event.event_type) || self.per.as_deref() == Some(&event.event_type);
        let since = self.since.get(&event.event_type).copied().unwrap_or(0);
        subscribes && !event.unrouted && event.created >= since - millis(SKEW_MAX)
    }

    /// The event types whose messages reach it.
    pub fn subscribes(&self) -> Vec<String> {
        self.on.iter().chain(&self.per).cloned().collect()
    }

    /// The program with its path made sure, and its arguments.
    pub fn argv(&self) -> Vec<String> {
        self.placed(self.run.clone())
    }

    /// The same of one of its links.
    pub fn argv_of(&self, link: &Link) -> Vec<String> {
        self.placed([&link.command].into_iter().chain(&link.arguments).cloned().collect())
    }

    fn placed(&self, mut argv: Vec<String>) -> Vec<String> {
        if let Some(program) = argv.first_mut()
            && program.contains('/')
        {
            *program = self.directory.join(&*program).display().to_string();
        }
        argv
    }

    /// The event type of what comes from outside to start it: its first.
    pub fn starts_on(&self) -> Option<&str> {
        self.on.first().map(String::as_str)
    }

    /// Whether its programs are there and may be executed; what to do about it if not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check_programs(&self, path: &str) -> Result<(), String> {
        if self.links.is_empty() {
            return self.check_program(self.argv(), path);
        }
        self.links.iter().try_for_each(|link| {
            let checked = self.check_program(self.argv_of(link), path);
            checked.map_err(|reason| format!("link {:?}: {reason}", link.name))
        })
    }

    fn check_program(&self, argv: Vec<String>, path: &str) -> Result<(), String> {
        let Some(program) = argv.into_iter().next() else { return Err("\"run\" is empty".into()) };
        let executable =
            |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if program.contains('/') {
            let file = Path::new(&program);
            return match file.metadata() {
                Err(_) => Err(format!("program {program} is not there")),
                Ok(_) if !executable(file) => {
                    Err(format!("program {program} is not executable; allow it with `chmod +x {program}`"))
                }
                Ok(_) => Ok(()),
            };
        }
        let found = path.split(':').any(|folder| executable(&Path::new(folder).join(&program)));
        if found {
            Ok(())
        } else {
            Err(format!(
                "program {program:?} is in no folder of PATH; for one beside this file write ./{program}"
            ))
        }
    }
}

fn default_concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// A pipeline: modules that work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Its modules, by name.
    pub modules: Vec<Module>,
    /// Where it keeps what it works on.
    pub plane: PlaneSection,
}

/// The `plane:` section: the stores' URLs. `${NAME}` in them stands for a variable of the daemon's environment, so that
/// no password has to stand in the file.
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

impl PlaneSection {
    /// The section with every `${NAME}` replaced.
    ///
    /// # Errors
    /// The name of a variable that is not there, in words.
    pub fn expanded(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let expand = |url: &Option<String>| url.as_deref().map(|url| expand(url, &variable)).transpose();
        Ok(Self { blobs: expand(&self.blobs)?, documents: expand(&self.documents)?, bus: expand(&self.bus)? })
    }
}

fn expand(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = url;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) =
            after.split_once('}').ok_or("a \"${\" in the plane section has no \"}\"".to_owned())?;
        let value = variable(name)
            .ok_or_else(|| format!("the plane section names ${{{name}}}, which is not in the environment"))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    #[serde(default)]
    plane: PlaneSection,
    modules: Option<Spanned<BTreeMap<String, Spanned<Entry>>>>,
    #[serde(rename = "Chain")]
    chain: Option<Spanned<Vec<Spanned<LinkEntry>>>>,
    timeout: Option<Spanned<String>>,
    concurrency: Option<Spanned<usize>>,
    warm: Option<Spanned<usize>>,
    output: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    on: Option<Spanned<Vec<Spanned<String>>>>,
    gather: Option<Spanned<String>>,
    per: Option<Spanned<String>>,
    #[serde(rename = "on-dead")]
    on_dead: Option<OnDead>,
    emits: Option<Vec<Spanned<String>>>,
    run: Option<Spanned<Vec<String>>>,
    image: Option<Spanned<String>>,
    env: Option<Spanned<BTreeMap<String, String>>>,
    commit: Option<CommitMode>,
    api: Option<Spanned<String>>,
    urls: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    retries: Option<u32>,
    concurrency: Option<Spanned<usize>>,
    #[serde(default)]
    limits: BTreeMap<String, Spanned<String>>,
    executor: Option<Spanned<String>>,
    #[serde(default)]
    stdio: bool,
    warm: Option<Spanned<usize>>,
    output: Option<Spanned<String>>,
}

/// What is wrong, and where.
type Wrong = (Location, String);

impl Pipeline {
    /// Reads and checks a pipeline file; `path` is where programs without a slash are looked for.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn load(file: &Path, path: &str) -> Result<Self, PipelineError> {
        let name = file.display().to_string();
        let unreadable = |source| PipelineError::Read { path: name.clone(), source };
        let bytes = std::fs::read(file).map_err(unreadable)?;
        let file = std::path::absolute(file).map_err(unreadable)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let pipeline = Self::parse(&bytes, &name, directory)?;
        pipeline.0.check_programs(&pipeline.1, &name, path)?;
        Ok(pipeline.0)
    }

    /// Checks a file's bytes: everything but whether its programs are there. `name` is what mistakes are told with;
    /// programs lie below `directory`.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn from_bytes(bytes: &[u8], name: &str, directory: &Path) -> Result<Self, PipelineError> {
        Self::parse(bytes, name, directory).map(|(pipeline, _)| pipeline)
    }

    fn check_programs(
        &self,
        places: &BTreeMap<String, Location>,
        file: &str,
        path: &str,
    ) -> Result<(), PipelineError> {
        for module in &self.modules {
            module.check_programs(path).map_err(|reason| {
                let place = places.get(&module.name).copied().unwrap_or(Location::UNKNOWN);
                wrong(file, (place, format!("module {:?}: {reason}", module.name)))
            })?;
        }
        Ok(())
    }

    /// Checks everything but the programs; gives where each module's `run` stands too.
    fn parse(
        bytes: &[u8],
        name: &str,
        directory: &Path,
    ) -> Result<(Self, BTreeMap<String, Location>), PipelineError> {
        let text = std::str::from_utf8(bytes).map_err(|error| PipelineError::Wrong {
            path: name.to_owned(),
            line: 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64,
            column: 1,
            reason: "the file is not UTF-8".into(),
        })?;
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location().unwrap_or(Location::UNKNOWN);
            wrong(name, (place, explained(&error.without_snippet().to_string())))
        })?;
        build(file, directory).map_err(|at| wrong(name, at))
    }
}

fn wrong(path: &str, (place, reason): Wrong) -> PipelineError {
    // An empty file has no place; the first line is where something belongs.
    PipelineError::Wrong {
        path: path.to_owned(),
        line: place.line().max(1),
        column: place.column().max(1),
        reason,
    }
}

fn build(file: File, directory: &Path) -> Result<(Pipeline, BTreeMap<String, Location>), Wrong> {
    let name = file.name.unwrap_or_else(|| "pipeline".into());
    let File { timeout, concurrency, warm, output, .. } = file;
    let of_chain = ChainEntry { timeout, concurrency, warm, output };
    if let Some(links) = file.chain {
        if let Some(modules) = file.modules {
            return Err((
                modules.referenced,
                "\"Chain\" and \"modules\" exclude each other in one file".into(),
            ));
        }
        let place = links.referenced;
        let module = chain(&name, links, of_chain, directory)?;
        let places = BTreeMap::from([(module.name.clone(), place)]);
        return Ok((Pipeline { name, modules: vec![module], plane: file.plane }, places));
    }
    if let Some((place, key)) = of_chain.stray() {
        return Err((place, format!("{key:?} stands beside \"Chain\", or in a module")));
    }
    let Some(entries) = file.modules else {
        return Err((Location::UNKNOWN, "there is no \"modules\": a map from names to modules".into()));
    };
    if entries.value.is_empty() {
        return Err((entries.referenced, "\"modules\" is empty".into()));
    }
    let mut places = BTreeMap::new();
    let mut gathers = BTreeMap::new();
    let mut modules = Vec::new();
    for (name, entry) in entries.value {
        let place = entry.referenced;
        let in_module = |(place, reason): Wrong| (place, format!("module {name:?}: {reason}"));
        if !is_event_type(&name) {
            return Err((
                place,
                format!("{name:?} cannot be a module's name: letters, digits, '.', '_' and '-' are allowed"),
            ));
        }
        places.insert(name.clone(), entry.value.run.as_ref().map_or(place, |run| run.referenced));
        gathers.extend(entry.value.gather.as_ref().map(|gather| (name.clone(), gather.referenced)));
        modules.push(module(&name, entry.value, place, directory).map_err(in_module)?);
    }
    check_gathers(&modules, &gathers)?;
    Ok((Pipeline { name, modules, plane: file.plane }, places))
}

fn module(name: &str, entry: Entry, place: Location, directory: &Path) -> Result<Module, Wrong> {
    if let Some(image) = entry.image {
        return Err((image.referenced, "this build runs no images; say what to run with \"run\"".into()));
    }
    if let Some(executor) = entry.executor.filter(|executor| executor.value != "local") {
        return Err((
            executor.referenced,
            format!("this build has no executor {:?}; allowed: local", executor.value),
        ));
    }
    let run = entry.run.ok_or((
        place,
        "\"run\" is missing: the program and its arguments, as in run: [./sample.sh]".to_owned(),
    ))?;
    if run.value.first().is_none_or(String::is_empty) {
        return Err((run.referenced, "\"run\" is empty: the program and its arguments are needed".into()));
    }
    let mut module = Module::new(name, run.value, directory.to_owned());
    match (entry.on, entry.gather, entry.per) {
        (Some(on), None, None) => {
            if on.value.is_empty() {
                return Err((on.referenced, "\"on\" is empty: no event would ever start it".into()));
            }
            module.on = event_types(on.value)?;
        }
        (None, Some(gather), Some(per)) => {
            module.gather = event_types(vec![gather])?.pop();
            module.per = event_types(vec![per])?.pop();
        }
        (None, Some(gather), None) => {
            return Err((
                gather.referenced,
                "\"gather\" needs \"per\": the event type below which it gathers".into(),
            ));
        }
        (None, None, Some(per)) => return Err((per.referenced, "\"per\" belongs to \"gather\"".into())),
        (None, None, None) => {
            return Err((
                place,
                "\"on\" is missing: the event types it starts on (or \"gather\" and \"per\")".into(),
            ));
        }
        (Some(on), _, _) => return Err((on.referenced, "\"on\" and \"gather\" exclude each other".into())),
    }
    module.emits = event_types(entry.emits.unwrap_or_default())?;
    older_words(&mut module, entry.env, entry.api, entry.commit, entry.urls)?;
    if entry.stdio {
        module.links = link_of(&module).into_iter().collect();
        if module.emits.len() != 1 || module.gather.is_some() {
            return Err((
                place,
                "with \"stdio: true\" what it writes to stdout is one event: \"on\" and one type in \"emits\" are needed".into(),
            ));
        }
        link_settings(&mut module, entry.warm, entry.output)?;
    } else if let Some(place) = entry.warm.map(|warm| warm.referenced).or(entry.output.map(|o| o.referenced))
    {
        return Err((place, "\"warm\" and \"output\" belong to \"stdio: true\"".into()));
    }
    module.on_dead = entry.on_dead.unwrap_or_default();
    module.retries = entry.retries.unwrap_or(RETRIES);
    terms(&mut module, entry.timeout, entry.concurrency)?;
    for (name, value) in entry.limits {
        module.limits.set(&name, &value.value).map_err(|wrong| (value.referenced, wrong))?;
    }
    Ok(module)
}

fn terms(
    module: &mut Module,
    timeout: Option<Spanned<String>>,
    concurrency: Option<Spanned<usize>>,
) -> Result<(), Wrong> {
    if let Some(timeout) = timeout {
        module.timeout = humantime::parse_duration(&timeout.value).map_err(|error| {
            (
                timeout.referenced,
                format!("\"timeout\" {:?}: {error}; write it as 30s, 10m or 2h", timeout.value),
            )
        })?;
    }
    if let Some(concurrency) = concurrency {
        if concurrency.value == 0 {
            return Err((
                concurrency.referenced,
                "\"concurrency\" is 0: no job would ever start; 1 or more is allowed".into(),
            ));
        }
        module.concurrency = concurrency.value;
    }
    Ok(())
}

fn event_types(types: Vec<Spanned<String>>) -> Result<Vec<String>, Wrong> {
    let checked = |event_type: Spanned<String>| {
        if is_event_type(&event_type.value) {
            Ok(event_type.value)
        } else {
            Err((
                event_type.referenced,
                format!(
                    "{:?} cannot be an event type: letters, digits, '.', '_' and '-' are allowed, at most 200",
                    event_type.value
                ),
            ))
        }
    };
    types.into_iter().map(checked).collect()
}

/// The event types that can come of `from`, through whatever modules there are.
pub(crate) fn reachable(modules: &[Module], from: &[String]) -> BTreeSet<String> {
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

/// Refuses gathering what nobody publishes, and gathers that wait for each other.
fn check_gathers(modules: &[Module], places: &BTreeMap<String, Location>) -> Result<(), Wrong> {
    for module in modules {
        let Some(gather) = &module.gather else { continue };
        let place = places.get(&module.name).copied().unwrap_or(Location::UNKNOWN);
        if !modules.iter().any(|other| other.emits.contains(gather)) {
            return Err((
                place,
                format!("module {:?}: it gathers {gather:?}, which no module emits", module.name),
            ));
        }
        if reachable(modules, &module.emits).contains(gather) {
            return Err((
                place,
                format!("module {:?}: what it emits leads to {gather:?}, which it waits for", module.name),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ionfs::limits::Limits;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Result<Pipeline, String> {
        Pipeline::parse(text.as_bytes(), "p.yaml", Path::new("/somewhere"))
            .map(|(p, _)| p)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_event_of_before_a_subscription_is_not_expected() {
        let mut module = Module::new("m", vec![], PathBuf::new());
        module.on = vec!["a".into(), "b".into()];
        module.since = BTreeMap::from([("a".into(), 0), ("b".into(), 1_000_000)]);
        let event = |event_type: &str, created: Millis| {
            let context = json!({"name": "n", "eventId": "e", "correlationId": "c"});
            let event = json!({"id": "e", "context": context, "type": event_type, "created": created, "publication": "published"});
            serde_json::from_value::<Event>(event).unwrap()
        };
        assert!(module.expects(&event("a", 5)));
        assert!(!module.expects(&event("b", 5)), "its queue was not bound to the type by then");
        assert!(
            module.expects(&event("b", 1_000_000 - millis(SKEW_MAX))),
            "by another clock it may have been"
        );
        assert!(!module.expects(&event("c", 5_000_000)));
        assert!(!module.expects(&Event { unrouted: true, ..event("a", 5) }), "no queue got it");
    }

    #[test]
    fn a_whole_file_is_read() {
        let pipeline = parse(
            "name: video\nmodules:\n  sample:\n    on: [new_video]\n    emits: [frame]\n    run: [./sample.sh]\n    env: {FPS: \"1\"}\n    commit: on-success\n    timeout: 2m\n    retries: 0\n    concurrency: 4\n    executor: local\n  sheet:\n    gather: frame\n    per: new_video\n    on-dead: go\n    run: [python3, sheet.py]\n",
        )
        .unwrap();
        let [sample, sheet] = &pipeline.modules[..] else { panic!("two modules") };
        assert_eq!((sample.timeout, sample.retries, sample.concurrency), (Duration::from_secs(120), 0, 4));
        assert_eq!(sample.commit, CommitMode::OnSuccess);
        assert_eq!(sample.argv(), ["/somewhere/./sample.sh"]);
        assert_eq!(sheet.subscribes(), ["new_video"]);
        assert_eq!(sheet.argv(), ["python3", "sheet.py"]);
        assert_eq!(sheet.on_dead, OnDead::Go);
    }

    #[test]
    fn a_module_of_the_sidecar_api_is_seen_when_it_is_done_and_finds_addresses() {
        let module = |fields: &str| {
            let text = format!("modules:\n  a: {{on: [x], run: [cat]{fields}}}\n");
            let module = parse(&text).unwrap().modules.remove(0);
            (module.commit, module.urls, module.base_dir())
        };
        let ion = PathBuf::from("/ion");
        assert_eq!(module(""), (CommitMode::OnClose, FileUrls::None, ion.clone()));
        assert_eq!(module(", api: sidecar"), (CommitMode::OnSuccess, FileUrls::Ion, ion.clone()));
        assert_eq!(
            module(", api: sidecar, commit: on-close, urls: signed"),
            (CommitMode::OnClose, FileUrls::Signed, ion)
        );
        assert_eq!(module(", env: {HANDLER_BASE_DIR: /older}").2, Path::new("/older"));
    }

    #[test]
    fn a_chain_is_a_module_of_links() {
        let text = "name: lines\nwarm: 3\noutput: 1MiB\ntimeout: 5s\nChain:\n  - {Command: /bin/cat}\n  - {Name: n, Image: i, Command: xargs, Arguments: [-n, 1]}\n";
        let pipeline = parse(text).unwrap();
        let module = &pipeline.modules[0];
        assert_eq!(
            (&*module.name, &*module.on[0], &*module.emits[0]),
            ("lines", "chain.lines", "chain.lines.done")
        );
        assert_eq!(module.link_settings, LinkSettings { warm: 3, output_bytes: 1 << 20 });
        assert_eq!((module.timeout, module.retries), (Duration::from_secs(5), 0));
        let names: Vec<&str> = module.links.iter().map(|link| &*link.name).collect();
        assert_eq!(names, ["cat", "n"]);
        assert_eq!(
            (&*module.links[1].image, module.argv_of(&module.links[1])),
            ("i", vec!["xargs".into(), "-n".into(), "1".into()])
        );
    }

    #[test]
    fn each_mistake_is_named_with_its_line_and_the_way_out() {
        let module = |fields: &str| format!("modules:\n  a:\n    on: [x]\n    run: [cat]\n    {fields}\n");
        let cases = [
            (module("retrys: 3"), "p.yaml:5:", "did you mean \"retries\"? allowed: on, gather"),
            (module("timeout: soon"), "p.yaml:5:", "write it as 30s"),
            (module("concurrency: 0"), "p.yaml:5:", "1 or more"),
            (module("limits: {staged-bytes: 10GB}"), "p.yaml:5:", "\"staged-bytes\" cannot be \"10GB\": bytes as in 500, 16MiB"),
            (module("limits: {open-files: 0}"), "p.yaml:5:", "from 1 on"),
            (module("limits: {event-values: 3KiB}"), "p.yaml:5:", "a number as in 1000"),
            (module("limits:\n      path-bytes: 901"), "p.yaml:6:", "at most 900"),
            (module("limits: {staged: 1}"), "p.yaml:5:", "allowed: event-bytes, event-values"),
            (module("limits: {staged-bytes: 99999999TiB}"), "p.yaml:5:", "cannot be"),
            (module("executor: moon"), "p.yaml:5:", "allowed: local"),
            (module("api: rest"), "p.yaml:5:", "allowed: none, sidecar"),
            (module("urls: public"), "p.yaml:5:", "allowed: none, ion, signed"),
            (module("env: {HANDLER_BASE_DIR: /var/ion}"), "p.yaml:5:", "directly below /"),
            (module("env: {HANDLER_BASE_DIR: /usr}"), "p.yaml:5:", "hide the machine's own folder"),
            (module("gather: y"), "p.yaml:3:", "exclude each other"),
            (module("retries: many"), "p.yaml:5:", ""),
            (module("run: [ls]"), "p.yaml:5:", ""),
            (module("emits: [a b]"), "p.yaml:5:", "cannot be an event type"),
            ("modules:\n  a:\n    on: [x]\n".into(), "p.yaml:", "\"run\" is missing"),
            ("modules:\n  a:\n    run: [cat]\n".into(), "p.yaml:", "\"on\" is missing"),
            ("modules:\n  a:\n    gather: y\n    per: x\n    run: [cat]\n".into(), "p.yaml:3:", "no module emits"),
            (
                "modules:\n  a:\n    gather: y\n    per: x\n    emits: [z]\n    run: [cat]\n  b: {on: [z], emits: [y], run: [cat]}\n".into(),
                "p.yaml:3:",
                "which it waits for",
            ),
            ("modules: {}".into(), "p.yaml:1:", "empty"),
            (module("stdio: true"), "p.yaml:", "one type in \"emits\""),
            (module("warm: 3"), "p.yaml:5:", "belong to \"stdio: true\""),
            ("Chain:\n  - Image: x\n".into(), "p.yaml:2:", "no \"Command\""),
            ("Chain: []".into(), "p.yaml:1:", "\"Chain\" is empty"),
            ("Chain:\n  - Command: cat\n    Argument: x\n".into(), "p.yaml:3:", "did you mean \"Arguments\"?"),
            ("warm: 99\nChain: [{Command: cat}]".into(), "p.yaml:1:", "at most 64"),
            ("output: much\nChain: [{Command: cat}]".into(), "p.yaml:1:", "bytes as in"),
            ("name: a b\nChain: [{Command: cat}]".into(), "p.yaml:2:", "is the chain's"),
            ("timeout: 1s\nmodules: {a: {on: [x], run: [cat]}}".into(), "p.yaml:1:", "stands beside \"Chain\""),
            ("Chain: [{Command: cat}]\nmodules: {a: {on: [x], run: [cat]}}".into(), "p.yaml:2:", "exclude each other"),
            (String::new(), "p.yaml:1:", ""),
        ];
        for (text, place, words) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(words), "{text}\n=> {error}");
        }
    }

    #[test]
    fn a_program_that_cannot_run_is_found_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pipeline.yaml");
        std::fs::write(&file, "modules:\n  a:\n    on: [x]\n    run: [./tool.sh]\n").unwrap();
        let error = |path: &str| Pipeline::load(&file, path).unwrap_err().to_string();
        assert!(error("/bin").contains(":4:") && error("/bin").contains("is not there"), "{}", error("/bin"));
        std::fs::write(folder.path().join("tool.sh"), "#!/bin/sh\n").unwrap();
        assert!(error("/bin").contains("chmod +x"), "{}", error("/bin"));
        std::fs::write(&file, "modules:\n  a:\n    on: [x]\n    run: [tool.sh]\n").unwrap();
        assert!(error("/bin").contains("write ./tool.sh"), "{}", error("/bin"));
    }

    #[test]
    fn limits_are_read_in_their_units_and_others_stay_the_daemons() {
        let pipeline = parse("modules:\n  a: {on: [x], run: [cat], limits: {staged-bytes: 2 GiB, open-files: 10, event-bytes: 100}}\n").unwrap();
        let limits = pipeline.modules[0].limits.over(Limits::default());
        let expected =
            Limits { staged_bytes: 2 << 30, open_files: 10, event_bytes: 100, ..Limits::default() };
        assert_eq!(limits, expected);
    }

    proptest! {
        #[test]
        fn reading_survives_anything(text in "[a-z:\\[\\]{}\\- \n\"'&*#|>]{0,200}") {
            let _ = parse(&text);
        }
    }
}
