//! The collections of a plane.

/// The collections of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collection {
    /// Events, insights and module logs: older Ion's one collection.
    Events,
    /// The job ledger.
    Jobs,
    /// Registered modules.
    Modules,
    /// Running dispatchers, for people to see.
    Dispatchers,
    /// Attempts whose trees pods have: see [`ion_csi::ticket`].
    Tickets,
    /// What is known of the plane as a whole: see [`crate::registry`] and [`plane_id`].
    Plane,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Events, Self::Jobs, Self::Modules, Self::Dispatchers, Self::Tickets, Self::Plane];

    /// Its name in a store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Jobs => "jobs",
            Self::Modules => "modules",
            Self::Dispatchers => "dispatchers",
            Self::Tickets => "tickets",
            Self::Plane => "plane",
        }
    }
}
