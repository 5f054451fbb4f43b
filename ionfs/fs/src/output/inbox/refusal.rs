//! Why something in an inbox is not published.

use ion_model::clock;
use ion_model::text::{REASON_MAX, cut_owned};
use ion_plane::commit::{Refusal, RefusalErrno, Rejection};

use crate::output::users::WriterFailure;

/// How many types are named where one is refused.
const NAMED_TYPES_MAX: usize = 10;

/// The reason why something in an inbox is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryRefusal {
    /// The event was refused.
    #[error(transparent)]
    Event(#[from] Refusal),
    /// No registered module takes events of the type.
    #[error("no module starts on events of type {event_type:?}: {}", in_words(.taken))]
    NotTaken {
        /// The type.
        event_type: String,
        /// The types that modules take.
        taken: Vec<String>,
    },
    /// The type is one of Ion's own.
    #[error("types that begin with \"ion.\" are Ion's own; no program publishes them")]
    OwnType,
    /// The content may not be whole.
    #[error("{0}")]
    Writer(WriterFailure),
    /// A name that an event cannot have is in the folder of a type.
    #[error(
        "a folder here is an event once it is whole, which nobody can see while it is made: make \
         it under a name that begins with a dot, and rename it (mv .x july)"
    )]
    Folder,
    /// Something that is neither a file nor a folder is in the folder of a type.
    #[error("only files and folders become events; put it into a folder, or copy what it leads to")]
    Kind,
    /// Something is put into the inbox itself.
    #[error("files are put into the folder of their type: {}", in_words(.taken))]
    NoType {
        /// The types that modules take.
        taken: Vec<String>,
    },
}

fn in_words(taken: &[String]) -> String {
    match taken.len() {
        0 => "no module is registered; `ion up PIPELINE` registers those of a file".to_owned(),
        1..=NAMED_TYPES_MAX => format!("modules start on {}", taken.join(", ")),
        _ => format!("modules start on {}, ...", taken[..NAMED_TYPES_MAX].join(", ")),
    }
}

impl DeliveryRefusal {
    /// Returns the error that close(), rename() or mkdir() returns.
    pub(super) fn errno(&self) -> RefusalErrno {
        match self {
            Self::Event(refusal) => refusal.errno(),
            Self::NotTaken { .. }
            | Self::OwnType
            | Self::Folder
            | Self::Kind
            | Self::NoType { .. } => RefusalErrno::Access,
            Self::Writer(_) => RefusalErrno::Io,
        }
    }

    /// Makes the record of the refusal.
    pub(super) fn record(&self, name: &str) -> Rejection {
        Rejection {
            name: name.to_owned(),
            errno: self.errno(),
            reason: cut_owned(self.to_string(), REASON_MAX),
            at: clock::now(),
        }
    }
}
