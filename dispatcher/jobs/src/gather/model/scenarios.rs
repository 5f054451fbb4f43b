//! What may happen around the gathering, and the faults that may be seeded.

/// A gathering with one seeded fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GatherFault {
    None,
    /// One walk is enough: the events are read, then their jobs, and no event again.
    OneWalk,
    /// The registry is read first, and not read again to see whether it has changed.
    RegistryOnce,
    /// The registry is only read last.
    RegistryLast,
    /// The gathering is judged by the modules that dispatcher B knows.
    OwnFile,
    /// A job of a module that is not registered any more does not count as work, even while it
    /// runs.
    FormerForgotten,
    /// A job that has succeeded counts as ended before its events are visible.
    OutboxIgnored,
    /// A dead job counts as ended.
    DeadIsOver,
    /// A job that no dispatcher has claimed yet counts as ended.
    UnclaimedIsOver,
    /// An event is for the modules that subscribe to its type now.
    ByType,
    /// The dispatcher that claims the gathering job starts it with what the housekeeping has found:
    /// a job that was revived since is missed.
    NotJudgedAgain,
    /// A gathering job that should be put back fails.
    PutBackFails,
    /// A gathering job that is adopted is put back, although its pod exists.
    AdoptedIsPutBack,
    /// That the gathering is ready is written even if the job has ended meanwhile.
    ReadyIsForced,
}

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) pieces: usize,
    pub(super) registered: &'static [&'static str],
    /// The modules that an operator may register or remove.
    pub(super) changing: &'static [&'static str],
    pub(super) on_success: bool,
    /// Whether the running attempt of `all` outlives its dispatcher.
    pub(super) outlives: bool,
    pub(super) changes: u8,
    pub(super) losses: u8,
    pub(super) failures: u8,
    pub(super) revivals: u8,
}

/// The module `work` moves to another name.
pub(super) const RENAMED: Scenario = Scenario {
    pieces: 1,
    registered: &["fan", "all", "work"],
    changing: &["work", "work2"],
    on_success: false,
    outlives: false,
    changes: 2,
    losses: 1,
    failures: 0,
    revivals: 0,
};

/// The module `work` is removed, and registered again under its name.
pub(super) const BACK: Scenario = Scenario { changing: &["work"], changes: 3, ..RENAMED };

/// Modules are registered, each at a moment of its own.
pub(super) const GROWING: Scenario = Scenario {
    registered: &["fan", "all"],
    changing: &["work", "look"],
    changes: 3,
    losses: 0,
    ..RENAMED
};

/// Modules are removed, each at a moment of its own.
pub(super) const SHRINKING: Scenario = Scenario {
    registered: &["fan", "all", "work", "look"],
    changing: &["work", "look"],
    losses: 0,
    ..RENAMED
};

/// Jobs end in every way, and no module changes.
pub(super) const FAILING: Scenario = Scenario {
    pieces: 2,
    on_success: true,
    changing: &[],
    changes: 0,
    losses: 1,
    failures: 1,
    revivals: 1,
    ..RENAMED
};

/// Dispatchers die, and other dispatchers adopt the running attempts.
pub(super) const OUTLIVING: Scenario = Scenario { on_success: false, outlives: true, ..FAILING };

/// A little of everything at once.
pub(super) const MIXED: Scenario =
    Scenario { on_success: true, changes: 1, losses: 0, failures: 1, revivals: 1, ..RENAMED };
