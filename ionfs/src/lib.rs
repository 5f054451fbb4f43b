//! Ion's data plane: the event model, the stores, the commit protocol and the filesystem at `/ion`.
//!
//! A map of the crate, lower layers first; a module names only modules above it in this list:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`id`], [`clock`], [`errors`], [`text`], [`metrics`], [`spans`], [`patience`], [`failpoint`] | ids as newtypes, made deterministically; milliseconds; an error in one line; quotes of what others wrote; counters and latencies; spans of jobs; time as this process has seen it; where tests kill the process |
//! | [`checksum`], [`event`], [`record`] | block checksums; events and both forms of event files; the other documents |
//! | [`sys`], [`beneath`] | every `unsafe` line; what others may change, touched by descriptors below a root |
//! | [`stores`] | the traits `Blobs`, `Documents`, `Bus`; their backends; opening by URL |
//! | [`cache`], [`upload`], [`address`] | verified reads; closed files become blobs; files' addresses for older modules |
//! | [`commit`], [`relay`], [`audit`], [`collect`], [`probe`] | steps 1-4 of a commit; the outbox; `check`; `gc`; what each store lets us do |
//! | [`node`] | what all mounts of one daemon share |
//! | [`fs`] | the filesystem in Ion's own types |
//! | [`mount`] | the kernel's calls; one mount |
//! | [`ticket`], [`csi`] | who may have a job's tree on a node, and how it ended; the driver that mounts trees for pods |

pub mod address;
pub mod audit;
pub mod beneath;
pub mod cache;
pub mod checksum;
pub mod clock;
pub mod collect;
pub mod commit;
pub mod csi;
pub mod environment;
pub mod errors;
pub mod event;
pub mod failpoint;
pub mod fs;
mod fuse;
pub mod home;
pub mod id;
pub mod limits;
pub mod metrics;
pub mod mount;
pub mod node;
pub mod patience;
pub mod probe;
pub mod record;
pub mod registry;
pub mod relay;
pub mod spans;
pub mod stores;
pub mod sys;
pub mod text;
pub mod ticket;
pub mod upload;
