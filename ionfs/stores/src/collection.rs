//! The collections of a plane's documents.

/// A collection of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collection {
    /// Events, insights and module logs, in one collection as in older Ion.
    Events,
    /// The job ledger.
    Jobs,
    /// Registered modules.
    Modules,
    /// Running dispatchers, so that people can see them.
    Dispatchers,
    /// Tickets: one for each attempt whose tree a pod may mount. See `ion_csi::ticket`.
    Tickets,
    /// Facts about the plane as a whole: see [`crate::registry`] and
    /// [`crate::get_or_set_plane_id`]. Also the versions of its modules: see
    /// `ion_model::version::VersionRecord`.
    Plane,
    /// Sources: see `ion_model::source`.
    Sources,
}

impl Collection {
    /// All collections.
    pub const ALL: [Self; 7] = [
        Self::Events,
        Self::Jobs,
        Self::Modules,
        Self::Dispatchers,
        Self::Tickets,
        Self::Plane,
        Self::Sources,
    ];

    /// Returns the collection's name in a store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Jobs => "jobs",
            Self::Modules => "modules",
            Self::Dispatchers => "dispatchers",
            Self::Tickets => "tickets",
            Self::Plane => "plane",
            Self::Sources => "sources",
        }
    }
}
