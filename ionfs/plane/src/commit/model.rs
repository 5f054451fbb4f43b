//! Explores every interleaving of the commit protocol with a model checker.
//!
//! [`CommitStep::next_step`], which also decides the steps of the real commit, decides what each
//! actor does next. A model of the stores answers. Two closers of one event file, a retried
//! attempt, two relays, the end of an on-success job, a consumer and `gc` act concurrently. Within
//! small budgets, any of them may die after any step, and any write may go unanswered: it is done,
//! or not done, or done later, when nobody expects it any more.
//!
//! The invariants are the functions `blobs_are_whole`, `published_is_visible`, `starts_once` and so
//! on. Protocols with one deliberate fault ([`CommitFault`]) show that the checker can find
//! violations: each must be refuted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use ion_model::event::PublicationState;
use ion_model::record::CommitMode;
use stateright::{Checker as _, Model, Property};

use super::steps::{CommitEnd, CommitStep, StoreAnswer};

/// The content that a module writes into the event file. Attempts of a deterministic module write
/// the same content.
type Content = u8;

const RIGHTFUL: &str = "no attempt commits once a later one has begun";

const BY_ONE_RELAY: &str = "one of several relays publishes what a dead closer left";

const NOTHING_LEFT: &str = "at rest, every event is published, marked and worked on";

const ONCE: &str = "an event starts a module once";

const WHOLE: &str = "an event's document is there only while every blob it names is whole";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CommitDocument {
    content: Content,
    /// The closer whose blobs the document names.
    blobs: usize,
    attempt: u32,
    publication: PublicationState,
    publisher: Option<usize>,
    /// Whether the document's attempt held the job when the document was inserted.
    rightful: bool,
}

/// A party that commits: a closer of the event file, a relay, or the end of the job, which reveals
/// the staged event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Actor {
    attempt: u32,
    content: Content,
    step: CommitStep,
    dead: bool,
    /// The document as this actor knows it, which it writes back.
    view: Option<CommitDocument>,
}

impl Actor {
    fn new(attempt: u32, content: Content, step: CommitStep) -> Self {
        Self { attempt, content, step, dead: false, view: None }
    }

    fn is_working(&self) -> bool {
        !self.dead && !matches!(self.step, CommitStep::End(_))
    }
}

/// A write that was sent and has not arrived yet. Nobody waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent {
    who: usize,
    step: CommitStep,
    /// The document that it writes, for a step that writes one.
    view: Option<CommitDocument>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CommitGc {
    NotYet,
    /// The old blobs that were listed, with a bit for each closer.
    Listed(u8),
    /// The listed blobs that no document named.
    Condemned(u8),
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CommitState {
    /// The closers whose blobs are whole in the store, with a bit for each closer.
    blobs: u8,
    document: Option<CommitDocument>,
    /// The ledger's record of the job: its attempt, whether that attempt may write, and the attempt
    /// that succeeded.
    attempt: u32,
    held: bool,
    succeeded: Option<u32>,
    outbox: bool,
    /// The number of messages in the subscribing module's queue.
    messages: u8,
    /// How often the bus has accepted the event's message.
    accepted: u8,
    /// The number of jobs that the event has started.
    started: u8,
    closers: Vec<Actor>,
    relays: Vec<Actor>,
    sent: Vec<Sent>,
    gc: CommitGc,
    deaths: u8,
    silences: u8,
    /// How often a slow actor may still be taken for dead.
    hastes: u8,
}

/// A deliberate fault in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommitFault {
    None,
    DocumentBeforeBlobs,
    MarkBeforePublish,
    NoGuard,
    NoGrace,
    ClaimByNobody,
    RelaysDoNotAgree,
}

#[derive(Clone)]
struct Protocol {
    mode: CommitMode,
    /// Whether guard and write are one transaction (SQLite) or two calls (MongoDB).
    strict: bool,
    /// The content that each closer of the first attempt writes.
    closers: Vec<Content>,
    /// The content that the closer of a second attempt writes, if there may be one.
    retry: Option<Content>,
    relays: usize,
    /// Whether `gc` runs concurrently.
    gc: bool,
    deaths: u8,
    silences: u8,
    hastes: u8,
    fault: CommitFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Closer(usize),
    Relay(usize),
}

/// The outcome of a step that an actor sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Answered,
    DoneUnanswered,
    LostUnanswered,
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Act(Who, Fate),
    Die(Who),
    /// An unanswered write arrives late.
    Arrive(usize),
    /// The attempt is taken for dead, and the next attempt begins.
    NextAttempt,
    /// The attempt succeeds, by one write to the job's record.
    Succeed,
    /// An actor carries out what the record of a succeeded job requires.
    Reveal,
    /// A relay finds the document in the outbox.
    Look(usize),
    Claim,
    Acknowledge,
    Collect,
}

impl Protocol {
    /// Makes a protocol with one closer and one relay, and without failures.
    fn new(mode: CommitMode) -> Self {
        Self {
            mode,
            strict: true,
            closers: vec![0],
            retry: None,
            relays: 1,
            gc: false,
            deaths: 0,
            silences: 0,
            hastes: 0,
            fault: CommitFault::None,
        }
    }

    fn first_step(&self) -> CommitStep {
        if self.fault == CommitFault::DocumentBeforeBlobs {
            CommitStep::Insert
        } else {
            CommitStep::StoreBlobs
        }
    }

    fn guard_holds(&self, state: &CommitState, attempt: u32) -> bool {
        self.fault == CommitFault::NoGuard || (state.held && state.attempt == attempt)
    }

    /// Carries out the write of a step, as the stores do. With `checked` the guard was checked when
    /// the write was sent.
    fn write(
        &self,
        state: &mut CommitState,
        who: Who,
        step: CommitStep,
        view: &mut Option<CommitDocument>,
        checked: bool,
    ) -> StoreAnswer {
        let index = match who {
            Who::Closer(index) | Who::Relay(index) => index,
        };
        let actor = actor(state, who).clone();
        let guarded = matches!(who, Who::Closer(_))
            && matches!(step, CommitStep::Insert | CommitStep::Replace(_));
        if guarded && !checked && !self.guard_holds(state, actor.attempt) {
            return StoreAnswer::Fenced;
        }
        let publication = match self.mode {
            CommitMode::OnClose => PublicationState::Unpublished,
            CommitMode::OnSuccess => PublicationState::Staged,
        };
        let rightful = state.held && state.attempt == actor.attempt;
        let own = || CommitDocument {
            content: actor.content,
            blobs: index,
            attempt: actor.attempt,
            publication,
            publisher: None,
            rightful,
        };
        match step {
            CommitStep::StoreBlobs => {
                state.blobs |= 1 << index;
                StoreAnswer::Done
            }
            CommitStep::Insert => match &state.document {
                None => {
                    *view = Some(own());
                    state.document.clone_from(view);
                    StoreAnswer::Done
                }
                Some(there) => {
                    *view = Some(there.clone());
                    StoreAnswer::Exists {
                        publication: there.publication,
                        attempt: Some(there.attempt),
                        same: there.content == actor.content,
                    }
                }
            },
            CommitStep::Replace(earlier) => match &state.document {
                Some(there)
                    if there.publication == PublicationState::Staged
                        && Some(there.attempt) == earlier =>
                {
                    *view = Some(own());
                    state.document.clone_from(view);
                    StoreAnswer::Done
                }
                _ => StoreAnswer::Changed,
            },
            CommitStep::Reveal => self.write_if_expected(
                state,
                view,
                PublicationState::Staged,
                PublicationState::Unpublished,
            ),
            CommitStep::Adopt => {
                let (Some(there), Some(known)) = (&mut state.document, view.as_mut()) else {
                    return StoreAnswer::Changed;
                };
                let free = there.publisher == known.publisher
                    || self.fault == CommitFault::RelaysDoNotAgree;
                if there.publication != PublicationState::Unpublished || !free {
                    return StoreAnswer::Changed;
                }
                there.publisher = Some(index);
                *known = there.clone();
                StoreAnswer::Done
            }
            CommitStep::Publish => {
                state.messages += 1;
                state.accepted += 1;
                StoreAnswer::Done
            }
            CommitStep::Mark => self.write_if_expected(
                state,
                view,
                PublicationState::Unpublished,
                PublicationState::Published,
            ),
            CommitStep::End(_) => StoreAnswer::Changed,
        }
    }

    /// Writes the actor's own copy back, if the document's publication and attempt are as the write
    /// expects.
    fn write_if_expected(
        &self,
        state: &mut CommitState,
        view: &mut Option<CommitDocument>,
        expected: PublicationState,
        becomes: PublicationState,
    ) -> StoreAnswer {
        let (Some(there), Some(known)) = (&mut state.document, view.as_mut()) else {
            return StoreAnswer::Changed;
        };
        if there.publication != expected || there.attempt != known.attempt {
            return StoreAnswer::Changed;
        }
        known.publication = becomes;
        *there = known.clone();
        StoreAnswer::Done
    }

    fn next_step(&self, actor: &Actor, step: CommitStep, answer: StoreAnswer) -> CommitStep {
        // After the reveal, the end of a job continues as a close does.
        let mode = if step == CommitStep::Reveal { CommitMode::OnClose } else { self.mode };
        let mode = if matches!(step, CommitStep::Insert | CommitStep::Replace(_)) {
            self.mode
        } else {
            mode
        };
        let next = step.next_step(answer, Some(actor.attempt), mode);
        if self.fault == CommitFault::MarkBeforePublish {
            return match (step, next) {
                (CommitStep::Publish, _) => {
                    CommitStep::End(CommitEnd::Committed(PublicationState::Published))
                }
                (_, CommitStep::Publish) => CommitStep::Mark,
                (CommitStep::Mark, _) => CommitStep::Publish,
                (_, next) => next,
            };
        }
        next
    }

    /// Lets an actor carry out its step, with this outcome.
    fn act(&self, state: &mut CommitState, who: Who, fate: Fate) -> Option<()> {
        let doing = actor(state, who).clone();
        if fate != Fate::Answered {
            state.silences = state.silences.checked_sub(1)?;
        }
        let mut view = doing.view.clone();
        let answer = match fate {
            Fate::Answered => self.write(state, who, doing.step, &mut view, false),
            Fate::DoneUnanswered => {
                self.write(state, who, doing.step, &mut view, false);
                StoreAnswer::Unknown
            }
            Fate::LostUnanswered => StoreAnswer::Unknown,
            Fate::Late => {
                // Where guard and write are two calls, the guard is checked before the write is
                // sent.
                let Who::Closer(index) = who else { return None };
                if !self.strict && !self.guard_holds(state, doing.attempt) {
                    return None;
                }
                state.sent.push(Sent { who: index, step: doing.step, view: view.clone() });
                StoreAnswer::Unknown
            }
        };
        let step = self.next_step(&doing, doing.step, answer);
        let changed = actor_mut(state, who);
        // The actor does not receive the result of an unanswered write.
        if fate == Fate::Answered {
            changed.view = view;
        }
        changed.step = step;
        if !changed.is_working() {
            changed.view = None;
        }
        Some(())
    }

    /// Returns whether no living actor is about to publish the document. A relay concludes this
    /// from a document that has stayed unchanged.
    fn nobody_publishes(&self, state: &CommitState) -> bool {
        let publishes = |actor: &Actor| {
            actor.is_working() && matches!(actor.step, CommitStep::Publish | CommitStep::Mark)
        };
        !state.closers.iter().chain(&state.relays).any(publishes)
    }

    fn old_blobs(&self, state: &CommitState) -> u8 {
        let mut old = state.blobs;
        for (index, actor) in state.closers.iter().enumerate() {
            let may_be_named =
                actor.is_working() || state.sent.iter().any(|sent| sent.who == index);
            if may_be_named && self.fault != CommitFault::NoGrace {
                old &= !(1 << index);
            }
        }
        old
    }
}

fn actor(state: &CommitState, who: Who) -> &Actor {
    match who {
        Who::Closer(index) => &state.closers[index],
        Who::Relay(index) => &state.relays[index],
    }
}

fn actor_mut(state: &mut CommitState, who: Who) -> &mut Actor {
    match who {
        Who::Closer(index) => &mut state.closers[index],
        Who::Relay(index) => &mut state.relays[index],
    }
}

const IDLE: CommitStep = CommitStep::End(CommitEnd::NotOurs);

impl Model for Protocol {
    type State = CommitState;
    type Action = Action;

    fn init_states(&self) -> Vec<CommitState> {
        vec![CommitState {
            blobs: 0,
            document: None,
            attempt: 1,
            held: true,
            succeeded: None,
            outbox: false,
            messages: 0,
            accepted: 0,
            started: 0,
            closers: self
                .closers
                .iter()
                .map(|content| Actor::new(1, *content, self.first_step()))
                .collect(),
            relays: vec![Actor::new(0, 0, IDLE); self.relays],
            sent: vec![],
            gc: if self.gc { CommitGc::NotYet } else { CommitGc::Done },
            deaths: self.deaths,
            silences: self.silences,
            hastes: self.hastes,
        }]
    }

    fn actions(&self, state: &CommitState, actions: &mut Vec<Action>) {
        let closers = (0..state.closers.len()).map(Who::Closer);
        for who in closers.chain((0..state.relays.len()).map(Who::Relay)) {
            if actor(state, who).is_working() {
                let fates =
                    [Fate::Answered, Fate::DoneUnanswered, Fate::LostUnanswered, Fate::Late];
                actions.extend(fates.map(|fate| Action::Act(who, fate)));
                actions.push(Action::Die(who));
            }
        }
        actions.extend((0..state.sent.len()).map(Action::Arrive));
        actions.extend((0..state.relays.len()).map(Action::Look));
        actions.extend([
            Action::NextAttempt,
            Action::Succeed,
            Action::Reveal,
            Action::Claim,
            Action::Acknowledge,
            Action::Collect,
        ]);
    }

    fn next_state(&self, state: &CommitState, action: Action) -> Option<CommitState> {
        let mut next = state.clone();
        match action {
            Action::Act(who, fate) => self.act(&mut next, who, fate)?,
            Action::Die(who) => {
                next.deaths = next.deaths.checked_sub(1)?;
                match who {
                    Who::Closer(index) => {
                        let closer = &mut next.closers[index];
                        *closer = Actor {
                            dead: true,
                            ..Actor::new(closer.attempt, closer.content, IDLE)
                        };
                    }
                    // Another relay takes its place, because there are many relays.
                    Who::Relay(index) => next.relays[index] = Actor::new(0, 0, IDLE),
                }
            }
            Action::Arrive(index) => {
                let Sent { who, step, mut view } = next.sent.remove(index);
                self.write(&mut next, Who::Closer(who), step, &mut view, !self.strict);
            }
            Action::NextAttempt => {
                let retry = self.retry?;
                if state.attempt > 1 || state.succeeded.is_some() {
                    return None;
                }
                // An attempt that still works is only slow, and is taken for dead by mistake.
                if state.closers.iter().any(Actor::is_working) {
                    next.hastes = next.hastes.checked_sub(1)?;
                }
                next.attempt = 2;
                next.closers.push(Actor::new(2, retry, self.first_step()));
            }
            Action::Succeed => {
                let mut of_attempt =
                    state.closers.iter().filter(|actor| actor.attempt == state.attempt);
                let well = |actor: &Actor| {
                    !actor.dead && matches!(actor.step, CommitStep::End(CommitEnd::Committed(_)))
                };
                if state.succeeded.is_some() || !of_attempt.all(well) {
                    return None;
                }
                next.succeeded = Some(state.attempt);
                next.held = false;
                next.outbox = self.mode == CommitMode::OnSuccess;
            }
            Action::Reveal => {
                let busy = state
                    .closers
                    .iter()
                    .any(|actor| actor.step == CommitStep::Reveal && actor.is_working());
                if !state.outbox || busy {
                    return None;
                }
                match &state.document {
                    Some(staged)
                        if staged.publication == PublicationState::Staged
                            && Some(staged.attempt) == state.succeeded =>
                    {
                        let mut end =
                            Actor::new(staged.attempt, staged.content, CommitStep::Reveal);
                        end.view = Some(staged.clone());
                        next.closers.push(end);
                    }
                    Some(staged) if staged.publication == PublicationState::Staged => {
                        next.document = None;
                    }
                    _ => next.outbox = false,
                }
            }
            Action::Look(index) => {
                let there = state.document.as_ref()?;
                if there.publication != PublicationState::Unpublished
                    || state.relays[index].is_working()
                {
                    return None;
                }
                let relay = &mut next.relays[index];
                relay.attempt = there.attempt;
                relay.content = there.content;
                relay.view = Some(there.clone());
                relay.step = CommitStep::Publish;
                if there.publisher != Some(index) {
                    relay.step = CommitStep::Adopt;
                    if !self.nobody_publishes(state) {
                        next.hastes = next.hastes.checked_sub(1)?;
                    }
                }
            }
            Action::Claim => {
                if state.messages == 0
                    || (state.started > 0 && self.fault != CommitFault::ClaimByNobody)
                {
                    return None;
                }
                next.started += 1;
                if self.fault == CommitFault::ClaimByNobody {
                    next.messages -= 1;
                }
            }
            Action::Acknowledge => {
                if state.messages == 0 || state.started == 0 {
                    return None;
                }
                next.messages -= 1;
            }
            Action::Collect => {
                next.gc = match state.gc {
                    CommitGc::NotYet => CommitGc::Listed(self.old_blobs(state)),
                    CommitGc::Listed(old) => CommitGc::Condemned(match &state.document {
                        Some(there) => old & !(1 << there.blobs),
                        None => old,
                    }),
                    CommitGc::Condemned(blobs) => {
                        next.blobs &= !blobs;
                        CommitGc::Done
                    }
                    CommitGc::Done => return None,
                };
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(WHOLE, blobs_are_whole),
            Property::always(
                "nothing is published without a visible document",
                published_is_visible,
            ),
            Property::always(ONCE, starts_once),
            Property::always(NOTHING_LEFT, all_done_at_rest),
            Property::always(
                "an event that was reported as committed is committed",
                reported_is_committed,
            ),
            Property::always(
                "only what the succeeded attempt of an on-success job staged is visible",
                only_succeeded_visible,
            ),
            Property::always(RIGHTFUL, committed_by_current),
            Property::always(BY_ONE_RELAY, published_by_one_relay),
        ];
        // An attempt whose closers write different contents under one name cannot succeed.
        let at_odds = self.closers.iter().any(|content| *content != self.closers[0]);
        if self.mode == CommitMode::OnClose || !at_odds || self.retry.is_some() {
            properties.push(Property::sometimes(
                "an event is published and worked on",
                |_, state: &CommitState| state.started > 0,
            ));
            properties.push(Property::sometimes("a relay publishes", |_, state: &CommitState| {
                state.relays.iter().any(|relay| relay.step == CommitStep::Mark)
            }));
        }
        properties
    }
}

fn blobs_are_whole(_: &Protocol, state: &CommitState) -> bool {
    state.document.as_ref().is_none_or(|there| state.blobs & (1 << there.blobs) != 0)
}

fn published_is_visible(_: &Protocol, state: &CommitState) -> bool {
    let seen =
        state.document.as_ref().is_some_and(|there| there.publication != PublicationState::Staged);
    seen || (state.accepted == 0 && state.started == 0)
}

fn starts_once(_: &Protocol, state: &CommitState) -> bool {
    state.started <= 1
}

fn all_done_at_rest(_: &Protocol, state: &CommitState) -> bool {
    let at_rest = state.messages == 0
        && !state.outbox
        && state.sent.is_empty()
        && !state.closers.iter().chain(&state.relays).any(Actor::is_working);
    let done = |there: &CommitDocument| {
        there.publication == PublicationState::Published && state.accepted > 0 && state.started == 1
    };
    match &state.document {
        // A relay will still publish the document, so this is not a state of rest.
        Some(there) if there.publication == PublicationState::Unpublished => true,
        Some(there) if there.publication == PublicationState::Staged => {
            state.succeeded != Some(there.attempt) || !at_rest
        }
        Some(there) => !at_rest || done(there),
        None => true,
    }
}

fn reported_is_committed(protocol: &Protocol, state: &CommitState) -> bool {
    state
        .closers
        .iter()
        .filter(|actor| matches!(actor.step, CommitStep::End(CommitEnd::Committed(_))))
        .all(|actor| {
            let same = state.document.as_ref().is_some_and(|there| there.content == actor.content);
            // A later attempt may have replaced what an attempt staged that did not succeed.
            same || (protocol.mode == CommitMode::OnSuccess && state.attempt > actor.attempt)
        })
}

fn only_succeeded_visible(protocol: &Protocol, state: &CommitState) -> bool {
    let seen =
        state.document.as_ref().filter(|there| there.publication != PublicationState::Staged);
    protocol.mode == CommitMode::OnClose
        || seen.is_none_or(|there| Some(there.attempt) == state.succeeded)
}

fn committed_by_current(protocol: &Protocol, state: &CommitState) -> bool {
    // Where guard and write are two calls, the margins of the lease ensure this, and this model has
    // no time.
    !protocol.strict || state.document.as_ref().is_none_or(|there| there.rightful)
}

fn published_by_one_relay(protocol: &Protocol, state: &CommitState) -> bool {
    let closers = state.closers.iter().filter(|closer| !closer.dead).count();
    let calm = (state.silences, state.hastes) == (protocol.silences, protocol.hastes);
    let closers_only =
        state.deaths + 1 == protocol.deaths && closers == 0 && state.closers.len() == 1;
    // Two closers of one event file may both publish it, so only one closer is considered here. A
    // closer that is dead now may have published the event before.
    !calm || !closers_only || state.accepted <= 2
}

/// Returns the scenarios. Each covers a part of what may happen concurrently, because everything
/// together has too many states.
fn scenarios() -> impl Iterator<Item = Protocol> {
    let modes = [CommitMode::OnClose, CommitMode::OnSuccess].into_iter();
    let strictness = modes.flat_map(|mode| [true, false].map(|strict| (mode, strict)));
    strictness.flat_map(|(mode, strict)| {
        let one = Protocol { strict, deaths: 1, silences: 1, hastes: 1, ..Protocol::new(mode) };
        let one = move || Protocol { closers: vec![0], ..one.clone() };
        [
            Protocol { retry: Some(0), relays: 2, ..one() },
            Protocol { retry: Some(1), relays: 2, ..one() },
            Protocol { retry: Some(0), gc: true, ..one() },
            Protocol { retry: Some(1), gc: true, ..one() },
            Protocol { retry: Some(1), deaths: 2, silences: 2, ..one() },
            Protocol { closers: vec![0, 0], gc: true, ..one() },
            Protocol { closers: vec![0, 1], gc: true, ..one() },
            Protocol { closers: vec![0, 0], relays: 2, hastes: 0, ..one() },
            Protocol { closers: vec![0, 0], retry: Some(0), hastes: 0, ..one() },
            Protocol { closers: vec![0, 1], retry: Some(1), hastes: 0, ..one() },
        ]
    })
}

#[test]
fn no_interleaving_loses_doubles_or_tears_an_event() {
    let (mut states, mut seen) = (0, 0);
    for protocol in scenarios() {
        let checked = protocol.checker().threads(2).spawn_bfs().join();
        checked.assert_properties();
        states += checked.unique_state_count();
        seen += 1;
    }
    println!("{states} states in {seen} scenarios");
}

#[test]
fn a_protocol_that_is_wrong_in_one_place_is_refuted() {
    let broken = |fault, mode| Protocol { fault, retry: Some(1), relays: 2, ..Protocol::new(mode) };
    let (on_close, on_success) = (CommitMode::OnClose, CommitMode::OnSuccess);
    for (protocol, violated) in [
        (broken(CommitFault::DocumentBeforeBlobs, on_close), WHOLE),
        (Protocol { deaths: 1, ..broken(CommitFault::MarkBeforePublish, on_close) }, NOTHING_LEFT),
        (Protocol { gc: true, ..broken(CommitFault::NoGrace, on_close) }, WHOLE),
        (Protocol { deaths: 1, ..broken(CommitFault::ClaimByNobody, on_close) }, ONCE),
        (Protocol { hastes: 1, ..broken(CommitFault::NoGuard, on_success) }, RIGHTFUL),
        (Protocol { deaths: 1, ..broken(CommitFault::RelaysDoNotAgree, on_close) }, BY_ONE_RELAY),
    ] {
        let fault = protocol.fault;
        let checked = protocol.checker().threads(2).spawn_bfs().join();
        assert!(
            checked.discovery(violated).is_some(),
            "{fault:?} was not found to violate: {violated}"
        );
    }
}
