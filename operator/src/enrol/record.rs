//! What was tried on a workload: the memory of restarts, in the workload's own annotations.

use crate::{
    marks::{LAST_RESTART, RESTARTED_AT},
    observe::kubernetes::workload::Deployment,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a restart is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Way {
    /// New pods get sidecars.
    Join,
    /// New pods get none.
    Leave,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Join => "join the mesh",
            Way::Leave => "leave the mesh",
        })
    }
}

/// A restart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// What for.
    pub(crate) to: Way,
    /// When it was begun.
    pub(crate) begun_at: Timestamp,
    /// [`RESTARTED_AT`] of the template before, to which it is put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<String>,
    /// [`RESTARTED_AT`] of the template since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<String>,
    /// Why it is put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<Failure>,
}

/// The end of a restart that did not go well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    /// When that was decided.
    pub(crate) at: Timestamp,
    /// Why.
    pub(crate) because: String,
}

/// A record that somebody else wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unreadable;

impl Record {
    /// A restart that begins now, of a template with this [`RESTARTED_AT`]. Whoever leaves gets the template back that
    /// it had before it joined, if that is known.
    pub(crate) fn begin(to: Way, before: Option<String>, now: Timestamp) -> Record {
        let after = match (to, &before) {
            (Way::Leave, Some(_)) => None,
            _ => Some(now.to_string()),
        };
        Record { to, begun_at: now, before, after, failed: None }
    }

    /// What a Deployment remembers.
    ///
    /// # Errors
    /// [`Unreadable`] if that is nothing of ours.
    pub(crate) fn of(deployment: &Deployment) -> Result<Option<Record>, Unreadable> {
        let written = deployment.annotations.get(LAST_RESTART);
        written.map(|text| serde_json::from_str(text).map_err(|_| Unreadable)).transpose()
    }

    /// Whether the template is as this restart left it.
    pub(crate) fn holds(&self, deployment: &Deployment) -> bool {
        deployment.on_template.get(RESTARTED_AT) == self.after.as_ref()
    }
}

/// Why a Deployment's new pods are kept out of the mesh though their namespace asks for it: with a sidecar they did not
/// come up.
pub(crate) fn kept_out(deployment: &Deployment) -> Option<String> {
    let record = Record::of(deployment).ok()??;
    let failed = record.failed.filter(|_| record.to == Way::Join)?;
    Some(failed.because)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_gets_its_template_back() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (first, second) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let joins = Record::begin(Way::Join, None, at(first));
        assert_eq!((&joins.before, joins.after.as_deref()), (&None, Some(first)));
        let leaves = Record::begin(Way::Leave, joins.after, at(second));
        assert_eq!((leaves.before.as_deref(), &leaves.after), (Some(first), &None));
        let was_never_restarted = Record::begin(Way::Leave, None, at(second));
        assert_eq!(was_never_restarted.after.as_deref(), Some(second));
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let at = "2026-01-01T00:00:00Z".parse().expect("a time");
        let failed = Some(Failure { at, because: "no progress for 60 s".to_owned() });
        let record = Record { failed, ..Record::begin(Way::Join, None, at) };
        let text = serde_json::to_string(&record).expect("JSON");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("a record"), record);
        assert!(text.contains("\"begunAt\":\"2026-01-01T00:00:00Z\""), "{text}");
    }
}
