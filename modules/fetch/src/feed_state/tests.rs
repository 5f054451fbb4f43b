//! What follows from visits.

use std::time::Duration;

use jiff::Timestamp;

use super::{FeedState, Outcome, Step, Visit, next};
use crate::feed::ItemId;
use crate::seen::{Choice, First, MISSING_MAX, Publication, Shown};

const NOW: &str = "2024-05-06T07:00:00Z";
const ADDRESS: &str = "https://example.org/feed";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn shown(names: &[&str]) -> Vec<Shown> {
    let one = |name: &&str| {
        let (id, words) = name.split_once('=').unwrap_or((name, "words"));
        Shown { id: ItemId::hashed(&[id]), fingerprint: words.to_owned(), date: None }
    };
    names.iter().map(one).collect()
}

fn visit(outcome: Outcome) -> Visit {
    Visit {
        moved_to: None,
        etag: Some("\"e\"".to_owned()),
        last_modified: None,
        fresh_for: None,
        outcome,
    }
}

fn read(names: &[&str]) -> Visit {
    visit(Outcome::Read { items: shown(names), ttl_minutes: None })
}

fn choice() -> Choice {
    Choice { first: First::New, updates: false, most: 100 }
}

fn start() -> FeedState {
    FeedState::default().at(ADDRESS)
}

/// Writes the state and reads it again, as two runs do.
fn reread(state: &FeedState) -> FeedState {
    FeedState::read(Some(state.to_json().as_bytes()), Some(&state.seen_lines())).unwrap()
}

/// Returns the state after the first run over these items.
fn after(names: &[&str]) -> FeedState {
    reread(&next(start(), read(names), &choice(), now()).state)
}

fn published(step: &Step) -> Vec<usize> {
    step.publish.iter().map(|one| one.index).collect()
}

#[test]
fn the_first_run_publishes_nothing_all_or_the_newest() {
    for (first, expected) in
        [(First::New, vec![]), (First::All, vec![0, 1, 2]), (First::Newest(2), vec![0, 1])]
    {
        let step = next(start(), read(&["a", "b", "c"]), &Choice { first, ..choice() }, now());
        assert_eq!(published(&step), expected, "{first:?}");
        let again = next(reread(&step.state), read(&["a", "b", "c"]), &choice(), now());
        assert_eq!(published(&again), [0; 0]);
    }
}

#[test]
fn the_newest_items_are_those_with_the_latest_dates_if_all_have_one() {
    let mut items = shown(&["old", "new", "middle"]);
    for (item, date) in items.iter_mut().zip(["2001-01-01", "2003-01-01", "2002-01-01"]) {
        item.date = crate::dates::parse_date(date);
    }
    let choice = Choice { first: First::Newest(2), ..choice() };
    let dated = visit(Outcome::Read { items: items.clone(), ttl_minutes: None });
    assert_eq!(published(&next(start(), dated, &choice, now())), [1, 2]);
    items[1].date = None;
    let undated = visit(Outcome::Read { items, ttl_minutes: None });
    assert_eq!(published(&next(start(), undated, &choice, now())), [0, 1]);
}

#[test]
fn an_item_is_published_once_and_a_repeated_run_publishes_the_same() {
    let state = after(&["a"]);
    let step = next(state.clone(), read(&["c", "b", "a"]), &choice(), now());
    assert_eq!(published(&step), [0, 1]);
    assert_eq!(next(state, read(&["c", "b", "a"]), &choice(), now()), step);
    assert_eq!(published(&next(step.state, read(&["c", "b", "a"]), &choice(), now())), [0; 0]);
}

#[test]
fn two_items_with_one_id_are_one() {
    let step = next(after(&[]), read(&["a", "a", "b"]), &choice(), now());
    assert_eq!(published(&step), [0, 2]);
}

#[test]
fn a_changed_item_is_published_again_only_if_that_is_wanted() {
    let state = after(&["a=one"]);
    assert_eq!(published(&next(state.clone(), read(&["a=two"]), &choice(), now())), [0; 0]);
    let updates = Choice { updates: true, ..choice() };
    let step = next(state, read(&["a=two"]), &updates, now());
    assert_eq!(step.publish, [Publication { index: 0, is_update: true }]);
    assert_eq!(published(&next(reread(&step.state), read(&["a=two"]), &updates, now())), [0; 0]);
}

#[test]
fn a_run_publishes_so_many_and_the_next_runs_publish_the_others() {
    let few = Choice { first: First::All, most: 2, ..choice() };
    let names = ["e", "d", "c", "b", "a"];
    let step = next(start(), read(&names), &few, now());
    assert_eq!(published(&step), [3, 4]);
    // The server must answer whole, though nothing has changed there.
    assert_eq!(step.state.validators(), (None, None));
    let step = next(reread(&step.state), read(&names), &few, now());
    assert_eq!(published(&step), [1, 2]);
    let step = next(reread(&step.state), read(&names), &few, now());
    assert_eq!(published(&step), [0]);
    assert_eq!(step.state.validators(), (Some("\"e\""), None));
}

#[test]
fn an_id_is_forgotten_after_the_feed_has_not_shown_it_for_a_while() {
    let mut state = after(&["a", "b"]);
    for _ in 0..MISSING_MAX {
        state = reread(&next(state, read(&["b"]), &choice(), now()).state);
    }
    assert_eq!(published(&next(state.clone(), read(&["a", "b"]), &choice(), now())), [0; 0]);
    state = next(state, read(&["b"]), &choice(), now()).state;
    assert_eq!(state.seen.len(), 1);
}

#[test]
fn an_item_that_could_not_be_published_is_published_by_the_next_run() {
    let mut step = next(after(&[]), read(&["a"]), &choice(), now());
    step.state.forget(&ItemId::hashed(&["a"]));
    assert_eq!(step.state.validators(), (None, None));
    assert_eq!(published(&next(step.state, read(&["a"]), &choice(), now())), [0]);
}

#[test]
fn a_permanent_redirect_is_adopted_after_it_was_seen_repeatedly() {
    let moved = |to: &str| Visit { moved_to: Some(to.to_owned()), ..read(&["a"]) };
    let mut state = after(&["a"]);
    for _ in 0..2 {
        state = reread(&next(state, moved("https://new.example/"), &choice(), now()).state);
        assert_eq!(state.address(), ADDRESS);
    }
    let hesitant = next(state.clone(), moved("https://other.example/"), &choice(), now()).state;
    assert_eq!(hesitant.address(), ADDRESS);
    state = next(state, moved("https://new.example/"), &choice(), now()).state;
    assert_eq!(state.address(), "https://new.example/");
    // The given address is the same, so the new one stays.
    assert_eq!(reread(&state).at(ADDRESS).address(), "https://new.example/");
}

#[test]
fn another_address_of_the_same_feed_goes_on_and_another_feed_begins_anew() {
    let state = || after(&["a", "b"]).at("https://example.org/other");
    assert_eq!(state().validators(), (None, None));
    assert_eq!(published(&next(state(), read(&["c", "b"]), &choice(), now())), [0]);
    assert_eq!(published(&next(state(), read(&["x", "y"]), &choice(), now())), [0; 0]);
}

#[test]
fn nothing_changes_when_nothing_has_changed() {
    let state = after(&["a"]);
    let not_modified = Visit { etag: None, ..visit(Outcome::NotModified) };
    let step = next(state.clone(), not_modified, &choice(), now());
    assert_eq!((step.publish.len(), step.not_before), (0, None));
    assert_eq!(step.state, state);
}

#[test]
fn the_next_visit_waits_as_long_as_headers_and_feed_ask_within_reason() {
    let visit = |fresh: u64, ttl_minutes: u64| Visit {
        fresh_for: Some(Duration::from_secs(fresh)),
        ..visit(Outcome::Read { items: vec![], ttl_minutes: Some(ttl_minutes) })
    };
    for (fresh, ttl, expected) in [
        (600, 0, "2024-05-06T07:10:00Z"),
        (600, 60, "2024-05-06T08:00:00Z"),
        (31_536_000, 60, "2024-05-07T07:00:00Z"),
        (0, u64::MAX, "2024-05-07T07:00:00Z"),
    ] {
        let step = next(start(), visit(fresh, ttl), &choice(), now());
        assert_eq!(step.not_before, Some(expected.parse().unwrap()), "{fresh} {ttl}");
        // A later answer without the feed repeats what the feed asked for.
        let quiet = next(
            reread(&step.state),
            super::Visit { fresh_for: None, ..visit(0, 0) },
            &choice(),
            now(),
        );
        assert_eq!(quiet.not_before, None);
    }
}

#[test]
fn refusals_wait_as_long_as_they_say_or_longer_each_time() {
    let refused = |wait| visit(Outcome::Refused { wait });
    let step = next(after(&["a"]), refused(Some(Duration::from_secs(90))), &choice(), now());
    assert_eq!(step.not_before, Some("2024-05-06T07:01:30Z".parse().unwrap()));
    let mut state = reread(&step.state);
    for minutes in [30, 60, 120] {
        let step = next(state, refused(None), &choice(), now());
        let wait = step.not_before.unwrap().duration_since(now());
        assert_eq!(wait.as_secs(), minutes * 60);
        state = reread(&step.state);
    }
    assert_eq!(state.refusals(), 4);
    let forever = refused(Some(Duration::from_secs(u64::MAX)));
    let step = next(state, forever, &choice(), now());
    assert_eq!(step.not_before, Some("2024-05-13T07:00:00Z".parse().unwrap()));
    assert_eq!(next(step.state, read(&["a"]), &choice(), now()).state.refusals(), 0);
}

#[test]
fn a_feed_that_is_gone_says_why_and_keeps_its_state() {
    let state = after(&["a"]);
    let step = next(state.clone(), visit(Outcome::Gone), &choice(), now());
    assert!(step.gone.unwrap().contains("410"));
    assert_eq!(step.state, state);
}
