//! What jobs used, summed by module, by type or by correlation.
//!
//! # How it works
//! The jobs are read page by page in the order of their creation, and only the fields that are
//! summed. The memory is bounded: beyond [`GROUPS_MAX`] groups, the half that used less is summed
//! up as one. A group of that half that has later jobs begins anew, so its row lacks what came
//! before. Jobs of a correlation follow each other closely, so that concerns few.

use std::cmp::Reverse;
use std::collections::HashMap;

use ion_model::record::Attempt;
use ion_model::usage::AttemptUsage;
use ion_stores::{Collection, Documents, Pages, Query, StoreError, TimeRange, decode};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How many groups are summed apart. Each takes some 200 bytes: more cost memory, fewer make the
/// sums of a plane with many correlations incomplete.
const GROUPS_MAX: usize = 100_000;

/// By what jobs are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageGrouping {
    /// By their modules; a link of a chain counts as a module.
    Module,
    /// By the types of the events that they worked on.
    Type,
    /// By their correlations.
    Correlation,
}

impl UsageGrouping {
    /// Returns the word for a group.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Type => "type",
            Self::Correlation => "correlation",
        }
    }
}

/// Which jobs are summed.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    /// Those of this correlation; none for all.
    pub correlation: Option<String>,
    /// Those created then.
    pub time: TimeRange,
}

/// What some jobs used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageSum {
    /// The number of jobs.
    pub jobs: u64,
    /// The number of their attempts, those in progress included.
    pub attempts: u64,
    /// What their ended attempts used: sums, and the most memory of any attempt. A value is absent
    /// if no attempt has it.
    #[serde(flatten)]
    pub usage: AttemptUsage,
    /// How long their ended attempts took, in milliseconds.
    pub wall_ms: u64,
    /// The number of ended attempts whose processor time is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_measured: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl UsageSum {
    fn add_job(&mut self, attempts: &[Attempt]) {
        self.jobs += 1;
        self.attempts += attempts.len() as u64;
        for attempt in attempts {
            let Some(ended) = attempt.ended else { continue };
            self.wall_ms += u64::try_from(ended - attempt.started).unwrap_or(0);
            self.not_measured += u64::from(attempt.usage.cpu_ms.is_none());
            self.add_usage(attempt.usage);
        }
    }

    /// Adds what ran at another time: the most memory is that of one of both.
    fn add_usage(&mut self, other: AttemptUsage) {
        let peak_bytes = self.usage.peak_bytes.max(other.peak_bytes);
        self.usage = AttemptUsage { peak_bytes, ..self.usage.plus_concurrent(other) };
    }

    fn add_sum(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.wall_ms += other.wall_ms;
        self.not_measured += other.not_measured;
        self.add_usage(other.usage);
    }

    /// Returns what groups are sorted by: processor time, then time.
    fn cost(&self) -> (u64, u64) {
        (self.usage.cpu_ms.unwrap_or(0), self.wall_ms)
    }
}

/// What the jobs of each group used.
#[derive(Clone, Debug, Default)]
pub struct UsageTable {
    /// The groups, those with the most processor time first.
    pub rows: Vec<(String, UsageSum)>,
    /// The sum of the groups that were too many; none if every group has a row.
    pub rest: Option<UsageSum>,
}

/// The part of a job that is summed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SummedJob {
    #[serde(default)]
    module: String,
    #[serde(default)]
    event_type: String,
    #[serde(default)]
    correlation_id: String,
    #[serde(default)]
    attempts: Vec<Attempt>,
}

/// Sums what jobs used.
///
/// # Errors
/// When the documents cannot be read.
pub async fn read_usage(
    documents: &dyn Documents,
    filter: UsageFilter,
    grouping: UsageGrouping,
) -> Result<UsageTable, StoreError> {
    let mut groups = UsageGroups::new(GROUPS_MAX);
    let equals = filter.correlation.map(|id| ("correlationId", json!(id)));
    let query = Query::equal(Collection::Jobs, equals.into_iter().collect()).only(&[
        "module",
        "eventType",
        "correlationId",
        "created",
        "attempts",
    ]);
    let mut pages = Pages::new(filter.time.restrict(query, "created"), "created");
    while let Some(page) = pages.next(documents).await? {
        for document in page {
            let job: SummedJob = decode(Collection::Jobs, document)?;
            let group = match grouping {
                UsageGrouping::Module => job.module,
                UsageGrouping::Type => job.event_type,
                UsageGrouping::Correlation => job.correlation_id,
            };
            groups.add_job(group, &job.attempts);
        }
    }
    Ok(groups.into_table())
}

/// Groups of jobs, of which there are at most so many.
struct UsageGroups {
    most: usize,
    sums: HashMap<String, UsageSum>,
    rest: Option<UsageSum>,
}

impl UsageGroups {
    fn new(most: usize) -> Self {
        Self { most: most.max(2), sums: HashMap::new(), rest: None }
    }

    fn add_job(&mut self, group: String, attempts: &[Attempt]) {
        if self.sums.len() >= self.most && !self.sums.contains_key(&group) {
            self.sum_up_cheaper_half();
        }
        self.sums.entry(group).or_default().add_job(attempts);
    }

    fn sum_up_cheaper_half(&mut self) {
        let mut sorted = sort_by_cost(std::mem::take(&mut self.sums));
        let rest = self.rest.get_or_insert_default();
        for (_, cheap) in sorted.drain(self.most / 2..) {
            rest.add_sum(&cheap);
        }
        self.sums = sorted.into_iter().collect();
    }

    fn into_table(self) -> UsageTable {
        UsageTable { rows: sort_by_cost(self.sums), rest: self.rest }
    }
}

fn sort_by_cost(sums: HashMap<String, UsageSum>) -> Vec<(String, UsageSum)> {
    let mut sorted: Vec<_> = sums.into_iter().collect();
    sorted.sort_unstable_by(|(name, sum), (other, others)| {
        (Reverse(sum.cost()), name).cmp(&(Reverse(others.cost()), other))
    });
    sorted
}

#[cfg(test)]
mod tests {
    use ion_model::clock::Millis;
    use ion_stores::{DataPlane, Durability, encode};

    use super::*;

    fn attempt(started: Millis, took: Millis, cpu_ms: Option<u64>) -> Attempt {
        let usage = AttemptUsage { cpu_ms, peak_bytes: cpu_ms, ..AttemptUsage::default() };
        Attempt { ended: Some(started + took), usage, ..Attempt::new(1, started) }
    }

    #[tokio::test]
    async fn attempts_are_summed_by_group_and_unknown_values_are_no_zeros() {
        let plane = DataPlane::in_memory().unwrap();
        let documents = &*plane.documents;
        let job = |n: i64, module: &str, attempts: Vec<Attempt>| {
            let document = json!({
                "id": format!("j{n:03}"), "module": module, "eventType": "t", "created": n,
                "correlationId": format!("c{n}"), "attempts": encode(&attempts),
            });
            (Collection::Jobs, document)
        };
        let mut jobs: Vec<_> =
            (0..300).map(|n| job(n, "small", vec![attempt(n, 2, Some(1))])).collect();
        let running = Attempt::new(3, 300);
        jobs.push(job(
            300,
            "large",
            vec![attempt(0, 5, Some(400)), attempt(0, 5, Some(500)), running],
        ));
        jobs.push(job(301, "pod", vec![attempt(0, 7, None)]));
        documents.insert_all(jobs, None, Durability::Now).await.unwrap();
        let read = async |filter, grouping| read_usage(documents, filter, grouping).await.unwrap();
        let table = read(UsageFilter::default(), UsageGrouping::Module).await;
        let rows: Vec<_> = table.rows.iter().map(|(name, sum)| (&**name, json!(sum))).collect();
        let large = json!({"jobs": 1, "attempts": 3, "cpuMs": 900, "peakBytes": 500, "wallMs": 10});
        let small =
            json!({"jobs": 300, "attempts": 300, "cpuMs": 300, "peakBytes": 1, "wallMs": 600});
        let pod = json!({"jobs": 1, "attempts": 1, "wallMs": 7, "notMeasured": 1});
        assert_eq!(rows, [("large", large), ("small", small), ("pod", pod)]);
        let time = TimeRange { since: Some(299), until: Some(301) };
        let filter = UsageFilter { time, correlation: None };
        let table = read(filter, UsageGrouping::Correlation).await;
        let names: Vec<&str> = table.rows.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["c300", "c299"]);
        let filter = UsageFilter { correlation: Some("c5".into()), ..UsageFilter::default() };
        let table = read(filter, UsageGrouping::Type).await;
        assert_eq!((table.rows.len(), table.rows[0].1.jobs), (1, 1));
    }

    #[test]
    fn too_many_groups_keep_the_costly_ones_and_lose_no_sum() {
        let mut groups = UsageGroups::new(10);
        for n in 0..100_u64 {
            groups.add_job(format!("g{n}"), &[attempt(0, 1, Some(n % 50))]);
            assert!(groups.sums.len() <= 10);
        }
        let table = groups.into_table();
        assert_eq!(table.rows[0].1.usage.cpu_ms, Some(49));
        let mut all = table.rest.unwrap();
        table.rows.iter().for_each(|(_, sum)| all.add_sum(sum));
        assert_eq!((all.jobs, all.usage.cpu_ms), (100, Some((0..50).sum::<u64>() * 2)));
    }
}
