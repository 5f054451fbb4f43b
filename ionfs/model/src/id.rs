//! Ids. Each kind has its own type, so that an event's id cannot be passed where a job's is needed.
//!
//! Ids are strings, not UUIDs, because older Ion's documents hold ids such as `frontapi`. Ids that
//! Ion derives are UUIDv5: the same parent, module and file name give the same id on every attempt
//! and every host. This makes commits idempotent.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Returns the first characters of an id, by which people know it.
pub fn short_id(id: &str) -> &str {
    id.char_indices().nth(8).map_or(id, |(end, _)| &id[..end])
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Makes an id of its text in a document or a message.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// Returns a new random id (UUIDv4).
            pub fn random() -> Self {
                Self(Uuid::new_v4().to_string())
            }

            /// Returns the id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Returns the first eight characters, which are enough for people to tell ids apart.
            pub fn short(&self) -> &str {
                short_id(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<$name> for serde_json::Value {
            fn from(id: $name) -> Self {
                Self::String(id.0)
            }
        }
    };
}

id! {
    /// The id of an event.
    EventId
}
id! {
    /// The id of a correlation: one first event and all events that descend from it.
    CorrelationId
}
id! {
    /// The id of a job: one module on one event.
    JobId
}

/// Returns the UUIDv5 namespace that an id stands for: the id itself if it is a UUID, otherwise a
/// UUIDv5 of its text.
fn namespace(id: &str) -> Uuid {
    Uuid::parse_str(id).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()))
}

impl EventId {
    /// Returns the id of the event that `module`, started by the event `parent`, publishes from the
    /// event file `file_name`.
    pub fn derive(parent: &EventId, module: &str, file_name: &str) -> Self {
        // The zero byte keeps ("a", "bc") apart from ("ab", "c"): neither part can contain a zero
        // byte.
        let name = format!("{module}\0{file_name}");
        Self(Uuid::new_v5(&namespace(parent.as_str()), name.as_bytes()).to_string())
    }
}

impl JobId {
    /// Returns the id of the job of `module` on `event`.
    pub fn derive(event: &EventId, module: &str) -> Self {
        Self(Uuid::new_v5(&namespace(event.as_str()), module.as_bytes()).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_file_gives_the_same_id() {
        let parent = EventId::new("frontapi");
        let id = EventId::derive(&parent, "sample", "a.json");
        assert_eq!(id, EventId::derive(&parent, "sample", "a.json"));
        assert_ne!(id, EventId::derive(&parent, "sample", "b.json"));
        assert_ne!(id, EventId::derive(&parent, "samplea", ".json"));
        assert_ne!(id.as_str(), JobId::derive(&parent, "sample").as_str());
    }
}
