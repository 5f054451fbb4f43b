//! What a run tells: insights, the event about rejected items, and a line for people.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use crate::error::IndexError;
use crate::folder::JobFolder;
use crate::rejected;
use crate::send::Counts;

/// What a run has done.
#[derive(Clone, Debug)]
pub struct Report {
    /// The source of the items.
    pub(crate) source: String,
    /// The items that were read.
    pub(crate) items: u64,
    pub(crate) counts: Counts,
    pub(crate) rejected: u64,
    /// The indices that have one of the items.
    pub(crate) indices: usize,
    pub(crate) took: Duration,
}

impl Report {
    /// Publishes the event about rejected items, if there are any. It is the last act that can fail
    /// a run, beside the insights, so that a run that fails publishes nothing.
    pub(crate) fn publish_rejected(
        &self,
        folder: &JobFolder,
        event_type: &str,
    ) -> Result<(), IndexError> {
        if self.rejected == 0 {
            return Ok(());
        }
        let event = json!({
            "eventType": event_type,
            "files": [rejected::FILE_NAME],
            "source": self.source,
            "rejected": self.rejected,
        });
        folder.write_whole("events", "rejected.json", &format!("{event}\n"))
    }

    /// Keeps the figures as the insights of the job.
    pub(crate) fn keep_insights(&self, folder: &JobFolder) -> Result<(), IndexError> {
        let Counts { created, updated, already_there, requests, sent_again } = self.counts;
        let insights = json!({
            "source": self.source,
            "items": self.items,
            "created": created,
            "updated": updated,
            "alreadyThere": already_there,
            "rejected": self.rejected,
            "indices": self.indices,
            "requests": requests,
            "sentAgain": sent_again,
            "seconds": self.took.as_secs_f64(),
        });
        folder.write_whole(".", "insights.json", &format!("{insights}\n"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { created, updated, already_there, requests, sent_again } = self.counts;
        write!(
            formatter,
            "{} items of {:?}: {created} created, {updated} updated, {already_there} already \
             there, {} rejected; {requests} requests, {sent_again} documents sent again, {:.1} s",
            self.items,
            self.source,
            self.rejected,
            self.took.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_run_leaves_insights_and_an_event_about_rejected_items() {
        let root = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(root.path());
        folder.make_output().unwrap();
        let mut report = Report {
            source: "bbc".into(),
            items: 10,
            counts: Counts { created: 7, updated: 1, already_there: 2, requests: 3, sent_again: 4 },
            rejected: 0,
            indices: 2,
            took: Duration::from_millis(1500),
        };
        report.publish_rejected(&folder, "bad").unwrap();
        assert_eq!(std::fs::read_dir(root.path().join("out/events")).unwrap().count(), 0);
        report.rejected = 5;
        report.publish_rejected(&folder, "bad").unwrap();
        report.keep_insights(&folder).unwrap();
        let read = |name: &str| -> Value {
            let text = std::fs::read_to_string(root.path().join("out").join(name)).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(
            read("events/rejected.json"),
            json!({"eventType": "bad", "files": ["rejected.ndjson"], "source": "bbc", "rejected": 5})
        );
        let insights = read("insights.json");
        assert_eq!((&insights["created"], &insights["seconds"]), (&json!(7), &json!(1.5)));
        assert_eq!((&insights["alreadyThere"], &insights["rejected"]), (&json!(2), &json!(5)));
        assert!(report.to_string().contains("7 created, 1 updated, 2 already there, 5 rejected"));
    }
}
