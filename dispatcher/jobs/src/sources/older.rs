//! Jobs of the older ingest service, and the sources that are made from them.
//!
//! The older service kept all its jobs in one JSON array:
//! `{"id", "name", "type", "parmas", "time"}`, with the parameters as a JSON text under the key
//! `parmas` (so misspelt). `id` and `time` said where and when a job ran last. A job's name was not
//! unique. So a source keeps the name, the type and a fingerprint of its job: a job that is imported
//! twice is found again, also when people have changed its source meanwhile.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ion_model::checksum::hex;
use ion_model::clock::{self, Millis};
use ion_model::source::{
    OlderJobName, SOURCE_NAME_MAX, SourceDefinition, SourceRecord, is_source_name,
};
use ion_stores::{Collection, FieldRange, Pages, Query, decode};
use serde::Serialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    DefinedBy, ExpectedSource, RACES_MAX, SourceError, Sources, check_owner, steps, times_of,
};
use crate::pipeline::{Module, SourceFields, SourceProblems, ValueText, define_source};

/// The period of a source that is made from a job, unless the caller names another. The older
/// service visited every feed each five seconds, which few servers put up with.
pub const PERIOD: &str = "5m";

/// The types of jobs that the older service had, with their parameters in its order.
const KNOWN_TYPES: [(&str, &[&str]); 2] = [
    ("ARTICLE", &["url"]),
    ("TWITTER", &["search", "consumerKey", "consumerSecret", "token", "tokenSecret"]),
];

/// The parameters of jobs that hold credentials. A source keeps none unless its module declares the
/// parameter.
const CREDENTIALS: [&str; 4] = ["consumerKey", "consumerSecret", "token", "tokenSecret"];

/// The key of the parameters of a job.
const PARAMETERS: &str = "parmas";

/// Hexadecimal digits of a fingerprint at the end of a source's name.
const SUFFIX_DIGITS: usize = 8;

/// The value that is no parameter of a module.
const FIRST: &str = "first";

/// Why no source can be made from a job. No text of it has the value of a credential.
#[derive(Debug, thiserror::Error)]
pub enum OlderJobError {
    /// The entry of the list is not a job.
    #[error("it is no job: an object with the texts \"name\" and \"type\" is needed")]
    NoJob,
    /// The parameters cannot be read.
    #[error("its \"parmas\" is no JSON object of parameters: {0}")]
    Parameters(String),
    /// The value of a parameter is a list or an object.
    #[error("its parameter {0:?} is neither a text, a number, true nor false")]
    Parameter(String),
    /// No module is given for the job's type.
    #[error("no module is given for its type {0:?}; name one, as in {0}=MODULE")]
    NoModule(String),
    /// The parameters do not fit the module.
    #[error(transparent)]
    Problems(#[from] SourceProblems),
    /// The source cannot be stored.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A list of types and modules cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} must be TYPE=MODULE, as in ARTICLE=feed")]
pub struct NoOlderType(String);

/// A type of jobs, and the module that its sources start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderType {
    kind: String,
    module: String,
}

impl FromStr for OlderType {
    type Err = NoOlderType;

    fn from_str(text: &str) -> Result<Self, NoOlderType> {
        match text.split_once('=') {
            Some((kind, module)) if !kind.is_empty() && !module.is_empty() => {
                Ok(Self { kind: kind.to_owned(), module: module.to_owned() })
            }
            _ => Err(NoOlderType(text.to_owned())),
        }
    }
}

/// Which modules the types of jobs stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OlderTypes(BTreeMap<String, String>);

impl FromIterator<OlderType> for OlderTypes {
    fn from_iter<T: IntoIterator<Item = OlderType>>(types: T) -> Self {
        Self(types.into_iter().map(|one| (one.kind, one.module)).collect())
    }
}

/// The parameters of a type of jobs, as the older service listed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OlderTypeParameters {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The names of its parameters.
    pub params: Vec<String>,
}

impl OlderTypes {
    /// Returns whether no type is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the parameters of each type whose module is among `modules`: those that the older
    /// service had, then those that the module requires, then all others.
    pub fn parameters(&self, modules: &[Module]) -> Vec<OlderTypeParameters> {
        let of_type = |(kind, module): (&String, &String)| {
            let module = modules.iter().find(|one| one.name == *module)?;
            let declared = module.params.as_ref()?;
            let known = KNOWN_TYPES.iter().find(|(name, _)| name == kind);
            let known = known.map_or(&[][..], |(_, parameters)| parameters);
            let place = |name: &str| {
                let known = known.iter().position(|one| *one == name).unwrap_or(known.len());
                (known, !declared[name].required)
            };
            let mut params: Vec<String> = declared.keys().cloned().collect();
            params.sort_by_key(|name| place(name));
            Some(OlderTypeParameters { kind: kind.clone(), params })
        };
        self.0.iter().filter_map(of_type).collect()
    }

    /// Returns a source as the older service listed its jobs.
    pub fn describe(&self, source: &SourceRecord) -> Value {
        let SourceRecord { id, definition, older, .. } = source;
        let by_module = || {
            let found = self.0.iter().find(|(_, module)| **module == definition.module);
            found.map_or(&definition.module, |(kind, _)| kind)
        };
        let values: BTreeMap<&String, &String> = values_of(definition).collect();
        json!({
            "id": source.dispatcher.as_deref().unwrap_or_default(),
            "name": older.as_ref().map_or(id, |older| &older.name),
            "type": older.as_ref().map_or_else(by_module, |older| &older.kind),
            PARAMETERS: json!(values).to_string(),
            "time": source.run.as_ref().map_or_else(String::new, |run| older_time(run.began)),
        })
    }
}

/// Returns a time as the older service wrote it.
fn older_time(at: Millis) -> String {
    let at = jiff::Timestamp::from_millisecond(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A job of the older service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderJob {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    values: BTreeMap<String, String>,
}

impl OlderJob {
    /// Reads a job. The parameters may be a JSON text, as the service had it, or an object. An empty
    /// value counts as left out: the service's form sent a value for each parameter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(entry: &Value) -> Result<Self, OlderJobError> {
        let text = |key: &str| {
            let text = entry[key].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or(OlderJobError::NoJob)
        };
        let (name, kind) = (text("name")?, text("type")?);
        let parameters: Map<String, Value> = match &entry[PARAMETERS] {
            Value::Null => Map::new(),
            Value::String(text) if text.trim().is_empty() => Map::new(),
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| OlderJobError::Parameters(error.to_string()))?,
            Value::Object(parameters) => parameters.clone(),
            _ => {
                return Err(OlderJobError::Parameters("it is neither a text nor an object".into()));
            }
        };
        let mut values = BTreeMap::new();
        for (name, value) in parameters.into_iter().filter(|(_, value)| !value.is_null()) {
            let ValueText(value) = serde_json::from_value(value)
                .map_err(|_| OlderJobError::Parameter(name.clone()))?;
            if !value.is_empty() {
                values.insert(name, value);
            }
        }
        Ok(Self { name, kind, values })
    }

    /// Returns a hash of what tells the job from others. Credentials are not in it: nobody should
    /// be able to try out which one fits a document.
    fn fingerprint(&self) -> String {
        let is_open = |(name, _): &(&String, &String)| !CREDENTIALS.contains(&name.as_str());
        let values: BTreeMap<_, _> = self.values.iter().filter(is_open).collect();
        let job = json!([self.name, self.kind, values]).to_string();
        hex(&Sha256::digest(job)[..16])
    }

    /// Returns the values for a module, and the names of the credentials that are left out.
    fn values_for(&self, module: Option<&Module>) -> (BTreeMap<String, ValueText>, Vec<String>) {
        let declared = module.and_then(|module| module.params.as_ref());
        let is_left_out = |name: &str| {
            CREDENTIALS.contains(&name) && declared.is_none_or(|known| !known.contains_key(name))
        };
        let mut values = BTreeMap::new();
        let mut left_out = Vec::new();
        for (name, value) in &self.values {
            match is_left_out(name) {
                true => left_out.push(name.clone()),
                false => drop(values.insert(name.clone(), ValueText(value.clone()))),
            }
        }
        (values, left_out)
    }
}

/// Reads a list of jobs, an entry at a time, and hands each to `take` until that returns false.
///
/// # Errors
/// When the list is no JSON array. The entries before the mistake were handed out.
pub fn read_list(
    list: impl std::io::Read,
    take: impl FnMut(Value) -> bool,
) -> Result<(), serde_json::Error> {
    struct Entries<'a, T> {
        take: T,
        stopped: &'a Cell<bool>,
    }
    impl<'de, T: FnMut(Value) -> bool> Visitor<'de> for Entries<'_, T> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON array of jobs")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(entry) = list.next_element()? {
                if !(self.take)(entry) {
                    self.stopped.set(true);
                    break;
                }
            }
            Ok(())
        }
    }
    let stopped = Cell::new(false);
    let mut reader = serde_json::Deserializer::from_reader(list);
    let read = reader.deserialize_seq(Entries { take, stopped: &stopped });
    // The reader takes what was left unread for a mistake.
    if stopped.get() { Ok(()) } else { read.and_then(|()| reader.end()) }
}

/// Returns the name of the first source of a job's name. Letters that no source may have in its
/// name are replaced, and a few digits keep such names apart.
fn first_name(job: &str) -> String {
    if is_source_name(job) {
        return job.to_owned();
    }
    let mut name = String::new();
    for c in job.chars() {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let digits = hex(&Sha256::digest(job)[..SUFFIX_DIGITS / 2]);
    let room = SOURCE_NAME_MAX - 2 * (SUFFIX_DIGITS + 1);
    let name = name[..name.len().min(room)].trim_matches(|c| "-._".contains(c)).to_owned();
    if name.is_empty() { format!("job-{digits}") } else { format!("{name}-{digits}") }
}

/// Returns what the names of the further sources of a job's name begin with.
fn further_prefix(first: &str) -> String {
    // Names have ASCII letters only.
    format!("{}-", &first[..first.len().min(SOURCE_NAME_MAX - SUFFIX_DIGITS - 1)])
}

/// Returns the values of the parameters of a source's module.
fn values_of(definition: &SourceDefinition) -> impl Iterator<Item = (&String, &String)> {
    definition.with.iter().filter(|(name, _)| *name != FIRST)
}

/// Whether a source is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OlderImport {
    /// It is.
    Store,
    /// It is not; the outcome says what would have been done.
    Try,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OlderOutcome {
    /// The name of its source.
    pub source: String,
    /// Whether the source is new; otherwise it was there, and was not changed.
    pub added: bool,
    /// The job's credentials that the source does not have.
    pub left_out: Vec<String>,
}

impl Sources {
    /// Makes a source from a job, unless there is one. `fields` says when the source runs; `modules`
    /// are those that sources may start.
    ///
    /// # Errors
    /// Why no source can be made.
    pub async fn add_older(
        &self,
        job: &OlderJob,
        types: &OlderTypes,
        modules: &[Module],
        fields: &SourceFields,
        import: OlderImport,
    ) -> Result<OlderOutcome, OlderJobError> {
        let module = types.0.get(&job.kind);
        let module = module.ok_or_else(|| OlderJobError::NoModule(job.kind.clone()))?;
        let known = modules.iter().find(|one| one.name == *module);
        let (with, left_out) = job.values_for(known);
        let fields = SourceFields { module: module.clone(), with, ..fields.clone() };
        let fingerprint = job.fingerprint();
        let first = first_name(&job.name);
        let further = format!("{}{}", further_prefix(&first), &fingerprint[..SUFFIX_DIGITS]);
        let is_of_job = |source: &SourceRecord| {
            source.older.as_ref().is_some_and(|older| older.fingerprint == fingerprint)
        };
        let outcome = |source: String, added| OlderOutcome { source, added, left_out };
        for _ in 0..RACES_MAX {
            let found = self.find(&first).await?;
            if found.as_ref().is_some_and(is_of_job) {
                return Ok(outcome(first, false));
            }
            if self.find(&further).await?.as_ref().is_some_and(is_of_job) {
                return Ok(outcome(further, false));
            }
            let name = if found.is_none() { &first } else { &further };
            let definition = define_source(name, fields.clone(), known)?;
            // Somebody has declared the same source, such as in a pipeline file.
            let is_same = |found: &SourceRecord| {
                let (one, other) = (&found.definition, &definition);
                let has_same_values = values_of(one).eq(values_of(other));
                found.older.is_none() && one.module == other.module && has_same_values
            };
            if found.as_ref().is_some_and(is_same) {
                return Ok(outcome(first, false));
            }
            if import == OlderImport::Try {
                return Ok(outcome(name.clone(), true));
            }
            let times = times_of(name, &definition)?;
            let older = OlderJobName {
                name: job.name.clone(),
                kind: job.kind.clone(),
                fingerprint: fingerprint.clone(),
            };
            let added = steps::new_source(name, definition, &times, clock::now());
            let added = SourceRecord { older: Some(older), ..added };
            if self.insert(&added).await.map_err(SourceError::from)? {
                return Ok(outcome(added.id, true));
            }
        }
        Err(SourceError::Contended(first).into())
    }

    /// Removes all sources of a job's name, as the older service did. Returns how many.
    ///
    /// # Errors
    /// When a pipeline file declares one of them: then none is removed.
    pub async fn remove_older(&self, job: &str) -> Result<usize, SourceError> {
        let first = first_name(job);
        let is_of_name = |source: &SourceRecord| match &source.older {
            Some(older) => older.name == job,
            None => source.id == job,
        };
        let mut removed = 0;
        if let Some(found) = self.find(&first).await?.filter(is_of_name) {
            check_owner(&found, DefinedBy::Person)?;
            removed += usize::from(self.remove_unless_gone(&first).await?);
        }
        let range = FieldRange::prefix("id", &further_prefix(&first));
        let mut pages = Pages::by_id(Query::all(Collection::Sources).within(range));
        while let Some(page) = pages.next(&*self.plane().documents).await? {
            for document in page {
                let source: SourceRecord = decode(Collection::Sources, document)?;
                if source.older.is_some() && is_of_name(&source) {
                    removed += usize::from(self.remove_unless_gone(&source.id).await?);
                }
            }
        }
        Ok(removed)
    }

    async fn remove_unless_gone(&self, name: &str) -> Result<bool, SourceError> {
        match self.delete(name, &ExpectedSource::Existing).await {
            Ok(()) => Ok(true),
            Err(SourceError::NoSuchSource(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ion_stores::DataPlane;

    use super::*;
    use crate::ledger::Ledger;
    use crate::pipeline::Parameters;

    fn module(name: &str, parameters: &[(&str, bool)]) -> Module {
        let mut module = Module::new(name, vec!["true".into()], PathBuf::from("/"));
        let declare = |(name, required): &(&str, bool)| {
            let declared = crate::pipeline::Parameter { required: *required, ..Default::default() };
            ((*name).to_owned(), declared)
        };
        module.params = Some(parameters.iter().map(declare).collect::<Parameters>());
        module
    }

    fn modules() -> Vec<Module> {
        vec![
            module("feed", &[("after", false), ("url", true)]),
            module("tweets", &[("search", true)]),
        ]
    }

    fn types() -> OlderTypes {
        ["ARTICLE=feed", "TWITTER=tweets"]
            .iter()
            .map(|one| one.parse::<OlderType>().unwrap())
            .collect()
    }

    fn job(name: &str, kind: &str, parameters: Value) -> OlderJob {
        let parameters = parameters.to_string();
        let job =
            json!({"id": "host", "name": name, "type": kind, "parmas": parameters, "time": "x"});
        OlderJob::from_json(&job).unwrap()
    }

    async fn add(sources: &Sources, job: &OlderJob) -> OlderOutcome {
        let fields = SourceFields { every: Some(PERIOD.into()), ..SourceFields::default() };
        let (types, modules) = (types(), modules());
        sources.add_older(job, &types, &modules, &fields, OlderImport::Store).await.unwrap()
    }

    fn sources() -> Sources {
        Sources::new(Ledger::new(DataPlane::in_memory().unwrap()))
    }

    #[tokio::test]
    async fn jobs_of_one_name_are_sources_of_their_own_and_go_together() {
        let sources = sources();
        let one = job("BBC News", "ARTICLE", json!({"url": "https://a.example/1", "after": ""}));
        let other = job("BBC News", "ARTICLE", json!({"url": "https://a.example/2"}));
        let near = job("BBC", "ARTICLE", json!({"url": "https://a.example/3"}));
        let added =
            [add(&sources, &one).await, add(&sources, &other).await, add(&sources, &near).await];
        assert!(added.iter().all(|outcome| outcome.added), "{added:?}");
        assert!(added[0].source.starts_with("BBC-News-"), "{added:?}");
        assert!(added[1].source.starts_with(&format!("{}-", added[0].source)), "{added:?}");
        // What a person changes of a source does not make its job a new one.
        let edited = sources.edit("BBC", &ExpectedSource::Existing, |found| {
            let mut definition = found.unwrap().definition.clone();
            definition.with.insert("url".into(), "https://b.example".into());
            Ok::<_, SourceError>(super::super::WantedSource { definition, paused: None })
        });
        edited.await.unwrap();
        for (job, before) in [&one, &other, &near].into_iter().zip(&added) {
            let again = add(&sources, job).await;
            assert_eq!((&again.source, again.added), (&before.source, false));
        }
        let listed = types().describe(&sources.get(&added[1].source).await.unwrap());
        assert_eq!((&listed["name"], &listed["type"]), (&json!("BBC News"), &json!("ARTICLE")));
        assert_eq!(listed["parmas"], r#"{"url":"https://a.example/2"}"#);
        assert_eq!(sources.remove_older("BBC News").await.unwrap(), 2);
        assert_eq!(sources.remove_older("BBC News").await.unwrap(), 0);
        sources.get("BBC").await.unwrap();
    }

    #[tokio::test]
    async fn a_credential_is_left_out_and_named() {
        let sources = sources();
        let values = json!({"search": "rust,ion", "token": "hush", "consumerSecret": "hush"});
        let outcome = add(&sources, &job("t", "TWITTER", values)).await;
        assert_eq!(outcome.left_out, ["consumerSecret", "token"]);
        let stored = sources.get("t").await.unwrap();
        assert!(!serde_json::to_string(&stored).unwrap().contains("hush"), "{stored:?}");
        assert_eq!(stored.definition.with["search"], "rust,ion");
    }

    #[test]
    fn the_parameters_of_a_type_are_in_the_order_of_the_older_service() {
        let modules =
            [module("feed", &[("after", false), ("zone", true), ("url", true), ("limit", false)])];
        let listed = types().parameters(&modules);
        let expected = OlderTypeParameters {
            kind: "ARTICLE".into(),
            params: ["url", "zone", "after", "limit"].map(str::to_owned).to_vec(),
        };
        assert_eq!(listed, [expected]);
    }

    #[test]
    fn what_is_no_job_is_refused_without_its_values() {
        for (entry, words) in [
            (json!([]), "it is no job"),
            (json!({"name": "x"}), "it is no job"),
            (json!({"name": "x", "type": "T", "parmas": "hush"}), "no JSON object"),
            (json!({"name": "x", "type": "T", "parmas": 5}), "neither a text nor an object"),
            (json!({"name": "x", "type": "T", "parmas": {"url": ["hush"]}}), "\"url\" is neither"),
        ] {
            let error = OlderJob::from_json(&entry).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_list_is_read_up_to_its_mistake() {
        let mut read = Vec::new();
        let list = r#"[{"name": "a"}, {"name": "b"}, oops"#;
        let error = read_list(list.as_bytes(), |entry| {
            read.push(entry["name"].clone());
            true
        });
        assert!(error.unwrap_err().is_syntax());
        assert_eq!(read, ["a", "b"]);
        assert!(read_list(&b"{}"[..], |_| true).unwrap_err().to_string().contains("array of jobs"));
        assert!(read_list(&b"[1] x"[..], |_| true).is_err());
        read_list(&b"[]"[..], |_| true).unwrap();
        read_list(&b"[1, 2, oops"[..], |entry| entry != 2).unwrap();
    }

    #[test]
    fn every_name_of_a_job_gives_a_name_of_a_source() {
        let long = "n".repeat(SOURCE_NAME_MAX);
        for name in
            ["bbc-top", "BBC News", "äöü", "", "-", "..", "a/b", &long, &format!("{long} x")]
        {
            let first = first_name(name);
            assert!(is_source_name(&first), "{name:?}: {first:?}");
            let further = format!("{}{}", further_prefix(&first), "0".repeat(SUFFIX_DIGITS));
            assert!(is_source_name(&further), "{name:?}: {further:?}");
        }
        assert_ne!(first_name("a b"), first_name("a/b"));
    }
}
