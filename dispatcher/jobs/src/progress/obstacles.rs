//! What a correlation waits for, as it is shown to people who wait for its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ion_model::id::JobId;
use ion_model::record::JobState;

use super::CorrelationStatus;

/// Something that has to happen before a correlation ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// No living dispatcher serves the module, and it has work.
    NotServed(String),
    /// A dead job. Gathering jobs of these modules may wait for it.
    DeadJob {
        /// The job.
        job: JobId,
        /// Its module.
        module: String,
        /// The modules whose gathering jobs are still waiting.
        gathering: Vec<String>,
    },
    /// The number of events that are not published yet.
    Unpublished(usize),
    /// The number of events and jobs that wait for a slot of the module.
    Queue(String, usize),
    /// The number of jobs of the module that run.
    Running(String, usize),
    /// A gathering job of the module, which waits for all that is below its event.
    Gathering(String),
}

impl Obstacle {
    /// Returns whether it remains until a person acts.
    pub fn needs_people(&self) -> bool {
        matches!(self, Self::NotServed(_) | Self::DeadJob { .. })
    }

    /// Returns whether both are the same obstacle, although its number may have changed.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unpublished(_), Self::Unpublished(_)) => true,
            (Self::Queue(one, _), Self::Queue(two, _))
            | (Self::Running(one, _), Self::Running(two, _)) => one == two,
            _ => self == other,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServed(module) => {
                write!(
                    out,
                    "a dispatcher that serves module {module:?}: start one with `ion up`, or give the module up with \
                     `ion module delete {module}`"
                )
            }
            Self::DeadJob { job, module, gathering } => {
                let short = job.short();
                write!(out, "dead job {short} of module {module:?}")?;
                if !gathering.is_empty() {
                    let modules = gathering.join(", ");
                    write!(
                        out,
                        ", for which {modules} may wait: `ion dead retry {short}` or `ion dead \
                         drop {short}`"
                    )?;
                }
                Ok(())
            }
            Self::Unpublished(events) => write!(
                out,
                "events that are not published yet ({events}): the bus is unavailable, or no \
                 dispatcher and no relay runs"
            ),
            Self::Queue(module, waiting) => {
                write!(out, "the queue of module {module:?} ({waiting})")
            }
            Self::Running(module, jobs) => write!(out, "module {module:?} ({jobs} running)"),
            Self::Gathering(module) => {
                write!(
                    out,
                    "module {module:?}, which gathers once the work below its event has ended"
                )
            }
        }
    }
}

/// The work of a correlation that has not ended.
#[derive(Clone, Debug, Default)]
pub struct OpenWork {
    /// The number of events and jobs that wait for a slot, by module.
    pub queued: BTreeMap<String, usize>,
    /// The number of jobs that run, by module.
    pub running: BTreeMap<String, usize>,
    /// The modules that have a waiting gathering job.
    pub gathering: BTreeSet<String>,
    /// The dead jobs, or some of them, with their modules.
    pub dead: Vec<(JobId, String)>,
    /// The number of events that are not published yet.
    pub unpublished: usize,
}

impl OpenWork {
    /// Returns the open work of a correlation.
    pub fn of(status: &CorrelationStatus) -> Self {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let mut work = Self {
            dead: status.dead.clone(),
            unpublished: count(status.unpublished),
            ..Self::default()
        };
        for (module, jobs) in &status.unclaimed {
            *work.queued.entry(module.clone()).or_default() += count(*jobs);
        }
        for (module, states) in &status.jobs {
            let of = |state: JobState| states.get(state.as_str()).copied().unwrap_or_default();
            let (queued, waiting) = (of(JobState::Queued), of(JobState::Waiting));
            if queued > 0 {
                *work.queued.entry(module.clone()).or_default() += count(queued);
            }
            let running = of(JobState::Starting) + of(JobState::Running);
            if running > 0 {
                work.running.insert(module.clone(), count(running));
            }
            if waiting > 0 {
                work.gathering.insert(module.clone());
            }
        }
        work
    }

    /// Returns what keeps the correlation from ending, with the names of the modules that living
    /// dispatchers serve. The obstacles that need a person come first.
    pub fn obstacles(self, served: &[String]) -> Vec<Obstacle> {
        let is_served = |module: &String| served.contains(module);
        let mut found: Vec<Obstacle> = self
            .queued
            .keys()
            .chain(self.running.keys())
            .chain(&self.gathering)
            .filter(|module| !is_served(module))
            .map(|module| Obstacle::NotServed(module.clone()))
            .collect();
        let gathers: Vec<String> = self.gathering.into_iter().collect();
        found.extend(self.dead.into_iter().map(|(job, module)| Obstacle::DeadJob {
            job,
            module,
            gathering: gathers.clone(),
        }));
        if self.unpublished > 0 {
            found.push(Obstacle::Unpublished(self.unpublished));
        }
        let of_served = |counts: BTreeMap<String, usize>, make: fn(String, usize) -> Obstacle| {
            let counts = counts.into_iter().filter(|(module, _)| is_served(module));
            counts.map(move |(module, count)| make(module, count)).collect::<Vec<_>>()
        };
        found.extend(of_served(self.queued, Obstacle::Queue));
        found.extend(of_served(self.running, Obstacle::Running));
        found.extend(gathers.into_iter().filter(is_served).map(Obstacle::Gathering));
        found.sort();
        found.dedup();
        found
    }
}
