//! What a well-shaped object means: shapes → values of core. Findings refuse the object; problems are said on it
//! while the rest of it is used.

pub(crate) mod policy;
pub(crate) mod rollout;
mod rules;
pub(crate) mod service;

use crate::field::{FieldPath, Finding};
use airlane_core::{
    id::ObjectId,
    problem::{Problem, Reason},
};

/// What was found out about one object beside its meaning.
pub(crate) struct Remarks {
    subject: ObjectId,
    pub(crate) findings: Vec<Finding>,
    pub(crate) problems: Vec<Problem>,
}

impl Remarks {
    pub(crate) fn on(subject: ObjectId) -> Self {
        Remarks { subject, findings: Vec::new(), problems: Vec::new() }
    }

    fn refuse(&mut self, path: FieldPath, message: impl Into<String>, mend: impl Into<String>) {
        self.findings.push(Finding { at: None, path, message: message.into(), mend: mend.into() });
    }

    pub(crate) fn not_yet(&mut self, path: &FieldPath, consequence: &str) {
        self.unsupported(path, format!("is not supported yet: {consequence}"));
    }

    /// Files are read on hosts only.
    pub(crate) fn in_kubernetes_alone(&mut self, path: &FieldPath) {
        self.unsupported(path, "has a meaning in Kubernetes alone, and is passed over".to_owned());
    }

    fn unsupported(&mut self, path: &FieldPath, message: String) {
        self.problems.push(Problem {
            subject: self.subject.clone(),
            field: path.to_string(),
            reason: Reason::NotYetSupported,
            message,
        });
    }
}
