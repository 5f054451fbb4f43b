//! What people change of sources, by command and over HTTP: both use these functions.

use std::fmt;
use std::str::FromStr;

use ion_model::clock::{self, Millis};
use ion_model::source::{SourceDefinition, SourceRecord};
use ion_stores::Collection;
use serde_json::json;

use super::{DefinedBy, RACES_MAX, SourceError, Sources, check_owner, steps, times_of};
use crate::pipeline::Module;

/// Names one version of a source. A source that was removed and added again has other tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTag {
    version: i64,
    /// When the source was added; none if the caller does not say.
    added: Option<Millis>,
}

impl SourceTag {
    /// Returns the tag of this version of a source.
    pub fn of(source: &SourceRecord) -> Self {
        Self { version: source.version, added: Some(source.added) }
    }

    fn names(self, source: &SourceRecord) -> bool {
        self.version == source.version && self.added.is_none_or(|added| added == source.added)
    }
}

impl fmt::Display for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        self.added.map_or(Ok(()), |added| write!(f, "-{added}"))
    }
}

/// A text is no tag of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no tag of a source")]
pub struct NoSourceTag;

impl FromStr for SourceTag {
    type Err = NoSourceTag;

    fn from_str(text: &str) -> Result<Self, NoSourceTag> {
        let (version, added) = match text.split_once('-') {
            Some((version, added)) => (version, Some(added.parse().map_err(|_| NoSourceTag)?)),
            None => (text, None),
        };
        Ok(Self { version: version.parse().map_err(|_| NoSourceTag)?, added })
    }
}

/// Which source the caller of a change expects to find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExpectedSource {
    /// Any, or none.
    #[default]
    Any,
    /// Any version of an existing source.
    Existing,
    /// None.
    Missing,
    /// One of these versions.
    Version(Vec<SourceTag>),
}

impl ExpectedSource {
    fn check(&self, name: &str, found: Option<&SourceRecord>) -> Result<(), SourceError> {
        match (self, found) {
            (Self::Any, _) | (Self::Existing, Some(_)) | (Self::Missing, None) => Ok(()),
            (Self::Existing, None) => Err(SourceError::NoSuchSource(name.to_owned())),
            (Self::Missing, Some(_)) => Err(SourceError::Exists(name.to_owned())),
            (Self::Version(tags), Some(found)) if tags.iter().any(|tag| tag.names(found)) => Ok(()),
            (Self::Version(_), _) => Err(SourceError::Changed(name.to_owned())),
        }
    }
}

/// What a person wants a source to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSource {
    /// Its definition.
    pub definition: SourceDefinition,
    /// Whether it is paused; none to leave that as it is.
    pub paused: Option<bool>,
}

/// What an edit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditOutcome {
    /// The source is new.
    Added,
    /// The source was changed.
    Changed,
    /// The source was as it is wanted.
    Unchanged,
}

impl Sources {
    /// Adds a source or changes it. `edit` returns what the source is to be, given what it is; it is
    /// called again when another write comes first. Returns the document after the edit.
    ///
    /// # Errors
    /// When the source is not as `expected`, when a pipeline file declares it, when its schedule
    /// cannot be used, or what `edit` returns.
    pub async fn edit<E: From<SourceError>>(
        &self,
        name: &str,
        expected: &ExpectedSource,
        edit: impl Fn(Option<&SourceRecord>) -> Result<WantedSource, E>,
    ) -> Result<(SourceRecord, EditOutcome), E> {
        for _ in 0..RACES_MAX {
            let found = self.find(name).await?;
            expected.check(name, found.as_ref())?;
            if let Some(found) = &found {
                check_owner(found, DefinedBy::Person)?;
            }
            let WantedSource { definition, paused } = edit(found.as_ref())?;
            let times = times_of(name, &definition)?;
            let now = clock::now();
            let Some(found) = found else {
                let mut added = steps::new_source(name, definition, &times, now);
                if paused == Some(true) {
                    added = steps::pause(&added, &times, now);
                }
                if self.insert(&added).await.map_err(SourceError::from)? {
                    return Ok((added, EditOutcome::Added));
                }
                continue;
            };
            let mut after = found.clone();
            if found.definition != definition {
                after = steps::redefine(&after, definition, &times, now);
            }
            match paused {
                Some(true) if !after.paused => after = steps::pause(&after, &times, now),
                Some(false) if after.paused || after.gone.is_some() => {
                    after = steps::resume(&after, &times, now);
                }
                _ => {}
            }
            if after == found {
                return Ok((found, EditOutcome::Unchanged));
            }
            let written = self.write(&found, after).await.map_err(SourceError::from)?;
            if let Some(after) = written {
                return Ok((after, EditOutcome::Changed));
            }
        }
        Err(SourceError::Contended(name.to_owned()).into())
    }

    /// Removes a source. Its runs and their events stay.
    ///
    /// # Errors
    /// When there is no such source, when it is not as `expected`, or when a pipeline file declares
    /// it.
    pub async fn delete(&self, name: &str, expected: &ExpectedSource) -> Result<(), SourceError> {
        for _ in 0..RACES_MAX {
            let found = self.get(name).await?;
            expected.check(name, Some(&found))?;
            check_owner(&found, DefinedBy::Person)?;
            let same = match expected {
                ExpectedSource::Version(_) => vec![("version", json!(found.version))],
                _ => vec![],
            };
            let same = [same, vec![("added", json!(found.added))]].concat();
            if self.plane().documents.delete(Collection::Sources, name, same).await? {
                return Ok(());
            }
        }
        Err(SourceError::Contended(name.to_owned()))
    }

    /// Returns a source, or none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find(&self, name: &str) -> Result<Option<SourceRecord>, SourceError> {
        Ok(self.plane().documents.get_as(Collection::Sources, name).await?)
    }

    /// Returns the registered modules, by name. Those with parameters may be started by sources.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn modules(&self) -> Result<Vec<Module>, SourceError> {
        let mut modules = self.ledger.modules().await?;
        modules.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(modules)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ion_model::source::{MissedRuns, ScheduleRule, SourceSchedule, SourceState};
    use ion_stores::DataPlane;

    use super::*;
    use crate::ledger::Ledger;

    fn definition(every: Millis) -> SourceDefinition {
        let rule = ScheduleRule::Every(every);
        let schedule = SourceSchedule { rule, jitter: 0, missed: MissedRuns::Last };
        SourceDefinition {
            module: "feed".into(),
            schedule,
            with: BTreeMap::new(),
            secrets: BTreeMap::new(),
            pipeline: None,
        }
    }

    fn wanted(every: Millis, paused: Option<bool>) -> Result<WantedSource, SourceError> {
        Ok(WantedSource { definition: definition(every), paused })
    }

    fn sources() -> Sources {
        Sources::new(Ledger::new(DataPlane::in_memory().unwrap()))
    }

    #[tokio::test]
    async fn an_edit_is_refused_when_the_source_is_another_version() {
        let sources = sources();
        let any = ExpectedSource::Any;
        let (first, done) = sources.edit("s", &any, |_| wanted(60_000, None)).await.unwrap();
        assert_eq!(done, EditOutcome::Added);
        let missing = sources.edit("s", &ExpectedSource::Missing, |_| wanted(1_000, None)).await;
        assert!(matches!(missing, Err(SourceError::Exists(_))), "{missing:?}");
        let read = ExpectedSource::Version(vec![SourceTag::of(&first)]);
        let (second, done) = sources.edit("s", &read, |_| wanted(120_000, None)).await.unwrap();
        assert_eq!((done, second.version), (EditOutcome::Changed, first.version + 1));
        let late = sources.edit("s", &read, |_| wanted(180_000, None)).await;
        assert!(matches!(late, Err(SourceError::Changed(_))), "{late:?}");
        assert!(matches!(sources.delete("s", &read).await, Err(SourceError::Changed(_))));
        let (same, done) = sources.edit("s", &any, |_| wanted(120_000, None)).await.unwrap();
        assert_eq!((done, &same), (EditOutcome::Unchanged, &second));
        sources.delete("s", &ExpectedSource::Existing).await.unwrap();
        let gone = sources.delete("s", &any).await;
        assert!(matches!(gone, Err(SourceError::NoSuchSource(_))), "{gone:?}");
        let old = ExpectedSource::Version(vec![SourceTag::of(&second)]);
        assert!(matches!(
            sources.edit("s", &old, |_| wanted(1_000, None)).await,
            Err(SourceError::Changed(_))
        ));
    }

    #[tokio::test]
    async fn an_edit_pauses_and_resumes() {
        let sources = sources();
        let edit = async |paused| {
            let edited = sources.edit("s", &ExpectedSource::Any, |_| wanted(60_000, paused)).await;
            edited.unwrap().0.state()
        };
        assert_eq!(edit(Some(true)).await, SourceState::Paused);
        assert_eq!(edit(None).await, SourceState::Paused);
        assert_eq!(edit(Some(false)).await, SourceState::Idle);
    }

    #[tokio::test]
    async fn a_source_of_a_pipeline_file_is_changed_there_alone() {
        let sources = sources();
        let by = DefinedBy::Pipeline("/p.yaml");
        let declared = SourceDefinition { pipeline: Some("/p.yaml".into()), ..definition(60_000) };
        sources.define("s", declared, by).await.unwrap();
        let any = ExpectedSource::Any;
        let refused = sources.edit("s", &any, |_| wanted(1_000, None)).await;
        assert!(matches!(refused, Err(SourceError::OfPipeline { .. })), "{refused:?}");
        let refused = sources.delete("s", &any).await;
        assert!(matches!(refused, Err(SourceError::OfPipeline { .. })), "{refused:?}");
    }

    #[test]
    fn a_tag_is_read_again() {
        let tag = SourceTag { version: 7, added: Some(1_795_806_000_000) };
        assert_eq!(tag.to_string().parse(), Ok(tag));
        assert_eq!("7".parse(), Ok(SourceTag { version: 7, added: None }));
        for wrong in ["", "x", "7-", "-7-1-2", "7 ", "*"] {
            assert!(wrong.parse::<SourceTag>().is_err(), "{wrong}");
        }
    }
}
