//! What will be done to a namespace, as a person is asked to agree to it.

use crate::{
    cli::{say, table::plain},
    enrol::record::Way,
    marks::{INJECT, OPTED_OUT},
    observe::kubernetes::{owner::Workload, workload::Crew},
};
use airlane_core::id::Namespace;

/// What will be done in a namespace.
pub(super) struct Plan {
    pub(super) namespace: Namespace,
    pub(super) way: Way,
    /// The namespace's label before anything else: given this value, or taken away.
    pub(super) label: Option<Option<&'static str>>,
    pub(super) steps: Vec<Step>,
}

/// What will be done to a workload.
pub(super) struct Step {
    pub(super) workload: Workload,
    pub(super) crew: Crew,
    /// Why it stays as it is.
    pub(super) blocked: Option<String>,
    /// What the operator does not dare, and why.
    pub(super) cautions: Vec<String>,
    /// Whether its own template's label has to say that it stays out.
    pub(super) by_label: bool,
}

impl Plan {
    pub(super) fn show(&self) {
        let Plan { namespace, way, label, steps } = self;
        let mut text = format!("{namespace}, to {way}:\n");
        match label {
            Some(Some(value)) => text.push_str(&format!("  label the namespace {INJECT}={value}\n")),
            Some(None) => text.push_str(&format!("  take the label {INJECT} from the namespace\n")),
            None => {}
        }
        for Step { workload, crew, blocked, cautions, by_label } in steps {
            let pods = match crew.bare + crew.meshed {
                1 => "the pod".to_owned(),
                pods => format!("the {pods} pods"),
            };
            let line = match (blocked, by_label) {
                (Some(why), _) => format!("  leave {workload} as it is: {why}"),
                (None, false) => format!("  replace {pods} of {workload}"),
                (None, true) => {
                    format!(
                        "  label the template of {workload} {INJECT}: {OPTED_OUT}, to replace {pods} of it"
                    )
                }
            };
            text.push_str(&plain(&line));
            text.push('\n');
            for caution in cautions {
                text.push_str(&format!("    caution: {}\n", plain(caution)));
            }
        }
        say(&text);
    }
}
