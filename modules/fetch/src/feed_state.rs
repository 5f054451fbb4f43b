//! What a feed's source remembers from one run to the next, and what follows from an answer.
//!
//! [`next`] is a pure function: from the state of the last succeeded run, an answer and the time,
//! to the next state and the items to publish. An item is published if and only if the next state
//! remembers it for the first time, so a run that is repeated publishes the same.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::feed::ItemId;
use crate::pause;
use crate::seen::{Choice, Publication, SeenItems, Shown};

/// How often in a row a permanent redirect to the same address is seen before it is adopted. Fewer
/// follow a mistake that is mended the same day, more ask the old address longer.
const MOVES_UNTIL_ADOPTED: u32 = 3;

/// What the source remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FeedState {
    /// The address that was given.
    given: String,
    /// The address that is asked: the given one, or where it has moved to.
    address: String,
    /// The header `ETag` of the last answer, never looked into.
    etag: Option<String>,
    /// The header `Last-Modified` of the last answer, never looked into.
    last_modified: Option<String>,
    /// Where the feed seems to have moved to.
    moving: Option<Moving>,
    /// How many visits in a row were refused.
    refusals: u32,
    /// How many minutes the feed asks readers to wait between two visits.
    ttl_minutes: Option<u64>,
    /// Whether the feed has been read before.
    has_been_read: bool,
    /// Whether the address has been changed since.
    #[serde(skip)]
    is_other_address: bool,
    /// The items that the feed shows. They are kept in a file of their own.
    #[serde(skip)]
    seen: SeenItems,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Moving {
    to: String,
    times: u32,
}

impl FeedState {
    /// Reads the state from its two files.
    ///
    /// # Errors
    ///
    /// The first is not what [`FeedState::to_json`] wrote.
    pub fn read(json: Option<&[u8]>, seen: Option<&str>) -> Result<Self, serde_json::Error> {
        let mut state: Self = json.map_or(Ok(Self::default()), serde_json::from_slice)?;
        state.seen = SeenItems::read(seen.unwrap_or_default());
        Ok(state)
    }

    /// Returns the state for this address. Another address than before begins with nothing but the
    /// items, which show whether it is the same feed.
    #[must_use]
    pub fn at(mut self, given: &str) -> Self {
        if self.given != given {
            self.is_other_address = self.has_been_read;
            given.clone_into(&mut self.given);
            given.clone_into(&mut self.address);
            (self.etag, self.last_modified, self.moving, self.refusals) = (None, None, None, 0);
        }
        self
    }

    /// Returns the address to ask.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the address was changed since the last run.
    pub fn is_at_new_address(&self) -> bool {
        self.is_other_address
    }

    /// Returns what the last answer was called by its server: `ETag` and `Last-Modified`.
    pub fn validators(&self) -> (Option<&str>, Option<&str>) {
        (self.etag.as_deref(), self.last_modified.as_deref())
    }

    /// Returns how many visits in a row were refused.
    pub fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Returns everything but the items, as JSON.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self);
        json.expect("a state has only texts and numbers") + "\n"
    }

    /// Returns the items as lines.
    pub fn seen_lines(&self) -> String {
        self.seen.lines()
    }

    /// Forgets an item that could not be published, so that the next run publishes it. The next
    /// answer must come whole for that.
    pub fn forget(&mut self, id: &ItemId) {
        self.seen.forget(id);
        (self.etag, self.last_modified) = (None, None);
    }
}

/// What a visit to the feed brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Where permanent redirects lead.
    pub moved_to: Option<String>,
    /// The header `ETag`.
    pub etag: Option<String>,
    /// The header `Last-Modified`.
    pub last_modified: Option<String>,
    /// How long the answer stays fresh.
    pub fresh_for: Option<Duration>,
    /// What the server said.
    pub outcome: Outcome,
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing has changed.
    NotModified,
    /// The feed.
    Read {
        /// Its items, in its order.
        items: Vec<Shown>,
        /// How many minutes it asks readers to wait.
        ttl_minutes: Option<u64>,
    },
    /// That the visit comes too soon.
    Refused {
        /// The wait that it asks for.
        wait: Option<Duration>,
    },
    /// That the feed will never come back.
    Gone,
}

/// What follows from a visit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is remembered.
    pub state: FeedState,
    /// What is published.
    pub publish: Vec<Publication>,
    /// When the next visit may come.
    pub not_before: Option<Timestamp>,
    /// Why there is to be no further visit.
    pub gone: Option<String>,
}

/// Returns what follows from a visit at the time `now`.
pub fn next(state: FeedState, visit: Visit, choice: &Choice, now: Timestamp) -> Step {
    let mut step = Step { state, publish: Vec::new(), not_before: None, gone: None };
    let state = &mut step.state;
    let wait = match visit.outcome {
        Outcome::Gone => {
            step.gone = Some(format!("{} answered 410 Gone at {now}", state.address));
            return step;
        }
        Outcome::Refused { wait } => {
            let wait = pause::after_refusal(wait, state.refusals);
            state.refusals += 1;
            Some(wait)
        }
        Outcome::NotModified => {
            state.refusals = 0;
            state.etag = visit.etag.or(state.etag.take());
            state.last_modified = visit.last_modified.or(state.last_modified.take());
            state.follow(visit.moved_to);
            state.fresh_wait(visit.fresh_for)
        }
        Outcome::Read { items, ttl_minutes } => {
            state.refusals = 0;
            (state.etag, state.last_modified) = (visit.etag, visit.last_modified);
            state.ttl_minutes = ttl_minutes;
            state.follow(visit.moved_to);
            step.publish = state.read_items(&items, choice);
            state.fresh_wait(visit.fresh_for)
        }
    };
    step.not_before = wait.and_then(|wait| pause::later(now, wait));
    step
}

impl FeedState {
    /// Counts a permanent redirect, and adopts it when it was seen often enough.
    fn follow(&mut self, moved_to: Option<String>) {
        let Some(to) = moved_to else {
            self.moving = None;
            return;
        };
        let times = match &self.moving {
            Some(moving) if moving.to == to => moving.times + 1,
            _ => 1,
        };
        if times >= MOVES_UNTIL_ADOPTED {
            self.address = to;
            self.moving = None;
        } else {
            self.moving = Some(Moving { to, times });
        }
    }

    /// Returns how long the answer and the feed ask readers to wait.
    fn fresh_wait(&self, fresh_for: Option<Duration>) -> Option<Duration> {
        let ttl = self.ttl_minutes.filter(|minutes| *minutes > 0);
        let ttl = ttl.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        pause::while_fresh(ttl.max(fresh_for))
    }

    /// Remembers the items that the feed shows, and returns those to publish.
    fn read_items(&mut self, items: &[Shown], choice: &Choice) -> Vec<Publication> {
        let is_other_feed =
            self.is_other_address && !items.iter().any(|item| self.seen.has(&item.id));
        let chosen = self.seen.choose(items, choice, !self.has_been_read || is_other_feed);
        if chosen.is_partial {
            // The next answer must come whole.
            (self.etag, self.last_modified) = (None, None);
        }
        self.has_been_read = true;
        chosen.publish
    }
}

#[cfg(test)]
mod tests;
