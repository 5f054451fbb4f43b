//! What may happen around the gathering, and what may be wrong with it.

/// A gathering that is wrong in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The events are read before the jobs.
    EventsFirst,
    /// The registry is read before all else, and whether it still says so is not asked.
    RegistryOnce,
    /// The registry is read after all else only.
    RegistryLast,
    /// It is judged by what dispatcher B knows of the modules.
    OwnFile,
    /// A job of a module that is not registered any more is no work, even while it runs.
    FormerForgotten,
    /// A job that has succeeded counts as ended before its events are visible.
    OutboxIgnored,
    /// A dead job counts as ended.
    DeadIsOver,
    /// What no module has claimed yet counts as ended.
    UnclaimedIsOver,
    /// An event is for whoever subscribes to its type now.
    ByType,
    /// Whoever takes the gathering job starts it with what the house has found: a job that was
    /// revived since is missed.
    NotJudgedAgain,
    /// A gathering job that is put back has failed.
    PutBackFails,
    /// A gathering job that is adopted is put back, though its pod is there.
    AdoptedIsPutBack,
    /// That it is ready is written over whatever became of the job.
    ReadyIsForced,
}

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) pieces: usize,
    pub(super) registered: &'static [&'static str],
    /// What an operator may register or remove.
    pub(super) changing: &'static [&'static str],
    pub(super) on_success: bool,
    /// Whether what runs of `all` outlives its dispatcher.
    pub(super) outlives: bool,
    pub(super) changes: u8,
    pub(super) losses: u8,
    pub(super) failures: u8,
    pub(super) revivals: u8,
}

/// Work moves to another name.
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

/// It goes, and comes again under its name.
pub(super) const BACK: Scenario = Scenario { changing: &["work"], changes: 3, ..RENAMED };

/// Modules come, and each at a moment of its own.
pub(super) const GROWING: Scenario = Scenario {
    registered: &["fan", "all"],
    changing: &["work", "look"],
    changes: 3,
    losses: 0,
    ..RENAMED
};

/// Modules go, and each at a moment of its own.
pub(super) const SHRINKING: Scenario = Scenario {
    registered: &["fan", "all", "work", "look"],
    changing: &["work", "look"],
    losses: 0,
    ..RENAMED
};

/// Jobs end in every way while nobody changes a module.
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

/// Dispatchers die, and what runs goes on under others.
pub(super) const OUTLIVING: Scenario = Scenario { on_success: false, outlives: true, ..FAILING };

/// A little of all at once.
pub(super) const MIXED: Scenario =
    Scenario { on_success: true, changes: 1, losses: 0, failures: 1, revivals: 1, ..RENAMED };
