//! Ion's data plane: the event model, the stores, the commit protocol and the filesystem at `/ion`.
//!
//! This crate is the front of six, of which each names only those above it in this list:
//!
//! | crate | what it holds |
//! | --- | --- |
//! | `ion-model` | ids, times, events and the other documents, limits, checksums: plain data |
//! | `ion-system` | what Ion needs of its process and of the operating system |
//! | `ion-stores` | the traits `Blobs`, `Documents`, `Bus`; their backends; opening by URL |
//! | `ion-plane` | verified reads, uploads, commits, the outbox, `check` and `gc` |
//! | `ion-fs` | the filesystem in Ion's own types, and its mounts |
//! | `ion-csi` | the driver that mounts jobs' trees for the pods of a Kubernetes node |

pub use ion_csi::{self as csi, ticket};
pub use ion_fs::{self as fs, mount};
pub use ion_model::{checksum, clock, errors, event, id, limits, record, text};
pub use ion_plane::{address, audit, cache, collect, commit, node, probe, relay, upload};
pub use ion_stores::{self as stores, registry};
pub use ion_system::{beneath, environment, failpoint, home, metrics, patience, spans, sys};
