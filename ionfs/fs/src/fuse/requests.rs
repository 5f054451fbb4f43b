//! Counts the kernel's requests of each kind: what a program costs here, whatever else the machine
//! does.

use ion_system::metrics::{Counter, PlaneMetrics};

/// The kinds of requests that the kernel makes, by their FUSE names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Link,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Readdirplus,
    Releasedir,
    Fsyncdir,
    Statfs,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Fallocate,
    Lseek,
    CopyFileRange,
}

/// Each kind's label, in the order of [`RequestKind`].
const LABELS: [&str; 32] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "fallocate",
    "lseek",
    "copy_file_range",
];

/// The counters of one mount. The labels are looked up once.
#[derive(Debug)]
pub(super) struct Requests([Counter; LABELS.len()]);

impl Requests {
    pub(super) fn new(metrics: &PlaneMetrics) -> Self {
        Self(LABELS.map(|label| metrics.request_counter(label)))
    }

    pub(super) fn count(&self, kind: RequestKind) {
        self.0[kind as usize].add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_label() {
        let metrics = PlaneMetrics::default();
        let requests = Requests::new(&metrics);
        requests.count(RequestKind::Lookup);
        requests.count(RequestKind::CopyFileRange);
        requests.count(RequestKind::CopyFileRange);
        let counted = LABELS.map(|label| metrics.request_counter(label).get());
        assert_eq!((counted[0], counted[LABELS.len() - 1]), (1, 2));
        assert_eq!(counted.iter().sum::<u64>(), 3);
    }
}
