//! Failpoints: named places of the protocol at which a test kills this process, as `kill -9` at
//! that moment would.
//!
//! `ION_FAILPOINTS` names the places: `commit.inserted=3` kills when that place is reached for the
//! third time; `*=1/200:7` kills at any place in one of 200 cases, drawn with seed 7. Several rules
//! are separated by commas. `ION_DELAYPOINTS` names one place where the process waits instead:
//! `beneath=300` waits for less than 300 microseconds each time, so that a race between a check and
//! the action after it has time to happen. Only builds with debug assertions read these variables:
//! in a release build [`hit`] and [`delay`] do nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The rules in `ION_FAILPOINTS`.
struct FailpointPlan(Vec<FailpointRule>);

enum FailpointRule {
    /// Kills when the place `name` is reached and `remaining` is 1. Each time before lowers
    /// `remaining`.
    Count { name: String, remaining: AtomicU64 },
    /// Kills at any place, in one of `one_of` cases.
    Chance { one_of: u64, draw_count: AtomicU64, seed: u64 },
}

/// Marks a failpoint. Returns, unless a rule kills this process here.
#[inline]
pub fn hit(name: &'static str) {
    static PLAN: OnceLock<Option<FailpointPlan>> = OnceLock::new();
    if !cfg!(debug_assertions) {
        return;
    }
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("ION_FAILPOINTS").ok()?;
        Some(
            FailpointPlan::parse(&text)
                .unwrap_or_else(|| panic!("ION_FAILPOINTS: {text:?} is not a list of failpoints")),
        )
    });
    if plan.as_ref().is_some_and(|plan| plan.kills_at(name)) {
        kill_this_process(name);
    }
}

/// Marks a place between a check and the action after it. Returns at once, unless
/// `ION_DELAYPOINTS` names the place: then it sleeps for a random time.
#[inline]
pub fn delay(name: &'static str) {
    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    // Not from 0: the number drawn for seed 0 is 0.
    static DRAW_COUNT: AtomicU64 = AtomicU64::new(1);
    if !cfg!(debug_assertions) {
        return;
    }
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("ION_DELAYPOINTS").ok()?;
        let (name, max_micros) = text.split_once('=')?;
        Some((name.to_owned(), max_micros.parse().ok()?))
    });
    if let Some((_, max_micros)) =
        plan.as_ref().filter(|(place, max_micros)| place == name && *max_micros > 0)
    {
        let wait = random_number(DRAW_COUNT.fetch_add(1, Ordering::Relaxed)) % max_micros;
        #[expect(clippy::disallowed_methods, reason = "a test asks for it, in a debug build")]
        std::thread::sleep(std::time::Duration::from_micros(wait));
    }
}

fn kill_this_process(name: &str) -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let _ =
        rustix::io::write(rustix::stdio::stderr(), format!("ion: killed at {name}\n").as_bytes());
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

impl FailpointPlan {
    /// Reads the rules; `None` when one of them is not valid.
    fn parse(text: &str) -> Option<Self> {
        let rule = |rule: &str| {
            let (name, when) = rule.split_once('=')?;
            if name != "*" {
                return Some(FailpointRule::Count {
                    name: name.to_owned(),
                    remaining: AtomicU64::new(when.parse().ok()?),
                });
            }
            let (chance, seed) = when.split_once(':')?;
            let one_of = chance.strip_prefix("1/")?.parse().ok().filter(|one_of| *one_of > 0)?;
            Some(FailpointRule::Chance {
                one_of,
                draw_count: AtomicU64::new(0),
                seed: seed.parse().ok()?,
            })
        };
        text.split(',').map(rule).collect::<Option<Vec<FailpointRule>>>().map(Self)
    }

    fn kills_at(&self, reached: &str) -> bool {
        self.0.iter().any(|rule| match rule {
            FailpointRule::Count { name, remaining } => {
                name == reached && remaining.fetch_sub(1, Ordering::Relaxed) == 1
            }
            FailpointRule::Chance { one_of, draw_count, seed } => {
                random_number(seed.wrapping_add(draw_count.fetch_add(1, Ordering::Relaxed)))
                    .is_multiple_of(*one_of)
            }
        })
    }
}

/// Returns the number that SplitMix64 makes of a seed: the same on every machine.
fn random_number(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_where_and_when_it_was_told() {
        let plan = FailpointPlan::parse("commit.inserted=2").unwrap();
        let killed: Vec<bool> =
            ["commit.inserted", "claim.done", "commit.inserted", "commit.inserted"]
                .map(|at| plan.kills_at(at))
                .into();
        assert_eq!(killed, [false, false, true, false]);
    }

    #[test]
    fn chance_is_what_was_asked_for_and_the_same_for_the_same_seed() {
        let draws = || {
            let plan = FailpointPlan::parse("*=1/10:7").unwrap();
            (0..10_000).map(|_| plan.kills_at("anywhere")).collect::<Vec<bool>>()
        };
        let killed = draws().iter().filter(|killed| **killed).count();
        assert!((800..1200).contains(&killed), "{killed}");
        assert_eq!(draws(), draws());
        assert!(FailpointPlan::parse("commit.inserted=soon").is_none());
        assert!(FailpointPlan::parse("*=1/0:1").is_none());
    }
}
