//! Turns the parser's error into a text that names the field, what is allowed there, and an
//! example.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;
use serde_saphyr::Location;

use super::chain::WARM_MAX;
use super::{AT_A_TIME_MAX, BATCH_MAX, Mistake, PipelineFile, PipelineProblem, RETRIES_MAX};

/// The prefix of top-level keys that are ignored: people define anchors (`&name`) there.
const ASIDE: &str = "x-";

/// Reads the text of a pipeline file.
pub(super) fn parse_file(text: &str) -> Result<PipelineFile, Mistake> {
    let mut keys = Vec::new();
    let read = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        let mut track = serde_path_to_error::Track::new();
        let file =
            WithoutAside::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track));
        file.inspect_err(|_| keys = track.path().iter().filter_map(segment_key).collect())
    });
    match read {
        Ok(WithoutAside(file)) => Ok(file),
        Err(error) => {
            let place = error.location().unwrap_or(Location::UNKNOWN);
            let words = explain_mistake(&error.without_snippet().to_string(), &keys);
            Err(PipelineProblem::Syntax(words).at_place(place))
        }
    }
}

/// Returns a key on the path to the mistake. [`serde_saphyr::Spanned`] keeps each value one step
/// below its key, as `value`: that step is left out.
fn segment_key(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } if key != "value" => Some(key.clone()),
        _ => None,
    }
}

/// A file without its ignored keys.
struct WithoutAside(PipelineFile);

impl<'de> Deserialize<'de> for WithoutAside {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = WithoutAside;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                PipelineFile::deserialize(MapAccessDeserializer::new(Rest(map))).map(WithoutAside)
            }
        }
        deserializer.deserialize_map(Whole)
    }
}

struct Rest<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.0.next_key::<String>()? {
            if !key.starts_with(ASIDE) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            self.0.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

/// Returns the parser's message with the field and what is allowed there, and without the parser's
/// own text for the location.
fn explain_mistake(message: &str, keys: &[String]) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message).trim();
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once("`, expected one of "));
    if let Some((field, allowed)) = unknown {
        let nearest =
            allowed.split(", ").min_by_key(|candidate| strsim::levenshtein(field, candidate));
        let hint = match nearest {
            Some(nearest) if strsim::levenshtein(field, nearest) <= 3 => {
                format!("; did you mean {nearest:?}?")
            }
            _ => ";".to_owned(),
        };
        return format!("unknown field {field:?}{hint} allowed: {allowed}");
    }
    if let Some((key, _)) =
        message.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split_once(','))
    {
        return format!("{key:?} is set here a second time; it is allowed once");
    }
    if message.starts_with("multiple YAML documents") {
        return "a second document begins here: a pipeline file is one YAML document; put these modules into the first"
            .into();
    }
    if message.starts_with("tabs disallowed") {
        return "a tab cannot indent a line in YAML: write spaces".into();
    }
    let is_of_type = ["expected ", "invalid ", "cannot deserialize ", "unknown variant "];
    if !is_of_type.iter().any(|begin| message.starts_with(begin)) {
        return message.to_owned();
    }
    match keys {
        [] => "a pipeline file is a map, as in modules: {resize: {on: [new_picture], run: [./resize.sh]}}"
            .into(),
        [modules, module] if modules == "modules" => {
            format!(
                "module {module:?} has to be a map, as in {module}: {{on: [new_picture], run: \
                 [./resize.sh]}}"
            )
        }
        [.., map, name] if matches!(map.as_str(), "env" | "limits" | "resources") => {
            format!("{name:?} of {map:?} has to be a text, as in {map}: {{{name}: {}}}", example_of(map))
        }
        [.., field] => match allowed_values(field) {
            Some(allowed) => format!("{field:?} has to be {allowed}"),
            None => format!("{field:?}: {message}"),
        },
    }
}

fn example_of(map: &str) -> &'static str {
    match map {
        "limits" => "16MiB",
        "resources" => "500m",
        _ => "\"1\"",
    }
}

/// Returns what a field may be, with an example where its values are not listed.
fn allowed_values(field: &str) -> Option<String> {
    let fixed = match field {
        "name" => "a text, as in name: video",
        "plane" => "a map of the stores' URLs, as in plane: {blobs: \"s3://bucket\"}",
        "blobs" | "documents" | "bus" => "a URL, as in blobs: \"s3://bucket\"",
        "modules" => {
            "a map from names to modules, as in modules: {resize: {on: [new_picture], run: \
             [./resize.sh]}}"
        }
        "Chain" => "a list of links, as in Chain: [{Command: cat}, {Command: sort}]",
        "Command" | "Name" | "Image" => "a text, as in Command: sort",
        "Arguments" => "a list of texts, as in Arguments: [-n, \"1\"]",
        "on" => "a list of event types, as in on: [new_picture]",
        "emits" => "a list of event types, as in emits: [thumbnail]",
        "gather" | "per" => "one event type, as in gather: frame",
        "on-dead" => "wait or go: what a gathering module does about a dead job",
        "run" => "a list of the program and its arguments, as in run: [./resize.sh, --fast]",
        "image" => "an image, as in image: \"registry.example/tools:v1\"",
        "secrets" => {
            "a list of names in a module, as in secrets: [SLACK_URL], and in a source a map that says \
             where each is, as in secrets: {token: file:/etc/ion/token}"
        }
        "secret" => "the name of a Kubernetes Secret, as in secret: ion-secrets",
        "type" => "text, url, number, bool, duration, choice or secret",
        "files" => "a list of paths, as in files: [\"lib/*.py\", model.onnx]",
        "env" => "a map of texts, as in env: {FPS: \"1\"}",
        "commit" => "on-close or on-success",
        "api" => "none or sidecar",
        "urls" => "none, ion or signed",
        "timeout" => "a time, as in timeout: 10m",
        "idle" => "a time, as in idle: 5m",
        "output" => "bytes, as in output: 1GiB",
        "limits" => "a map, as in limits: {staged-bytes: 16GiB}",
        "executor" => "local, container or kubernetes",
        "network" => "none or host",
        "resources" => "a map, as in resources: {cpu: 500m, memory: 256Mi}",
        "user" => "a user, as in user: \"1000:1000\"",
        "kubernetes" => "a map, as in kubernetes: {nodeSelector: {pool: gpu}}",
        "privileged" | "stdio" => "true or false",
        "retries" => return Some(format!("a number from 0 to {RETRIES_MAX}, as in retries: 3")),
        "batch" => return Some(format!("a number from 1 to {BATCH_MAX}, as in batch: 100")),
        "concurrency" => {
            return Some(format!("a number from 1 to {AT_A_TIME_MAX}, as in concurrency: 4"));
        }
        "warm" => return Some(format!("a number from 0 to {WARM_MAX}, as in warm: 2")),
        _ => return None,
    };
    Some(fixed.into())
}
