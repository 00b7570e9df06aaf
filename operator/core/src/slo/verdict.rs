//! What the judge says, with the numbers that made it say so; the sentence is made from the data.

use crate::id::InstanceId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The judgement of one step, three-valued on purpose: not knowing is neither good nor bad.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// Every objective is certified at this step.
    Healthy(Certified),
    /// An objective is not met: take the release back.
    Breached(Breach),
    /// Neither, yet.
    Unknown(Doubt),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Healthy(certified) => certified.fmt(f),
            Verdict::Breached(breach) => breach.fmt(f),
            Verdict::Unknown(doubt) => doubt.fmt(f),
        }
    }
}

/// First attempts that had their outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Failed ones.
    pub failed: u64,
    /// All of them; while failures run ahead of totals, no less than `failed`.
    pub ended: u64,
}

/// A step is certified.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certified {
    /// Index into the plan's steps.
    pub step: usize,
    /// One per objective.
    pub certificates: Vec<Certificate>,
}

/// One objective is certified at one step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// The objective's name.
    pub objective: String,
    /// The rate the canary is below.
    pub bound: f64,
    /// The canary's first attempts at this step.
    pub canary: Counts,
    /// Logarithm of the evidence against a rate of `bound` or more.
    pub ln_evidence: f64,
    /// The chance that it is wrong, at most (β).
    pub wrong: f64,
}

/// An objective is not met.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breach {
    /// The objective with the largest share of the wealth.
    pub objective: String,
    /// What it was compared with.
    pub against: Against,
    /// The canary's first attempts at this step.
    pub canary: Counts,
    /// Stable's first attempts at this step.
    pub stable: Counts,
    /// ln W.
    pub ln_wealth: f64,
    /// The chance that a healthy release is taken back, at most (α); the bound of W is 1/α.
    pub false_rollback: f64,
}

/// What a canary is compared with.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Against {
    /// The version in production, beside it.
    Stable,
    /// The objective's own rate: there is no control.
    Max(f64),
}

/// Why there is no judgement yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Doubt {
    /// The canary has no objective to be judged by.
    NoObjectives,
    /// No complete window of this step has arrived.
    NoEvidence,
    /// The judge was restarted and has only what was saved.
    Resumed,
    /// Callers that send requests have not reported.
    NotCovered {
        /// Who.
        missing: Vec<InstanceId>,
    },
    /// Proxies lost log entries, or counted more errors than they logged.
    Untrusted {
        /// Who.
        callers: Vec<InstanceId>,
    },
    /// Certified by the windows before; the next says whether it is still so.
    AwaitingWindow,
    /// Outcomes may still stem from the share before.
    Settling,
    /// Certification needs more.
    Collecting {
        /// The objective furthest from its certificate.
        objective: String,
        /// The rate the canary must be below.
        bound: f64,
        /// The canary's first attempts at this step.
        canary: Counts,
        /// What is missing.
        needs: Needs,
    },
    /// At the rate of errors seen the bound is never certified.
    NeverAtThisRate {
        /// The objective.
        objective: String,
        /// The rate the canary must be below.
        bound: f64,
        /// The canary's first attempts at this step.
        canary: Counts,
    },
    /// The evidence against the canary is a hundredth of a breach or more: too much to go on, too little to go back.
    Suspicious {
        /// The objective.
        objective: String,
        /// The canary's first attempts at this step.
        canary: Counts,
        /// Stable's first attempts at this step.
        stable: Counts,
        /// ln W.
        ln_wealth: f64,
    },
    /// Stable breaches an objective itself: nothing can be promoted by evidence.
    StableDegraded {
        /// The objective.
        objective: String,
        /// Its rate.
        max: f64,
        /// Stable's rate lately.
        rate: f64,
    },
    /// The arms' request starts do not fit the share the proxies acknowledged: something else than the coin decides
    /// (affinity, a hash policy, a cluster without endpoints).
    SplitNotAsConfigured {
        /// The share acknowledged.
        share: f64,
        /// Requests that started on the canary.
        canary: u64,
        /// Requests that started on either.
        total: u64,
    },
    /// Without one endpoint's failures nothing is proven against the release.
    OneEndpointOnly {
        /// The endpoint.
        instance: InstanceId,
    },
    /// Without one caller's failures nothing is proven against the release.
    OneCallerOnly {
        /// The caller.
        caller: InstanceId,
    },
}

impl Doubt {
    /// Whether it is told as *Holding*: it does not pass by itself in minutes while evidence arrives as it should.
    pub fn holds(&self) -> bool {
        match self {
            Doubt::NoEvidence | Doubt::Resumed | Doubt::AwaitingWindow | Doubt::Settling => false,
            Doubt::Collecting { needs, .. } => needs.eta_s.is_none_or(|eta| eta > PATIENCE_S),
            _ => true,
        }
    }

    /// What is missing, for people.
    pub fn needs(&self) -> Option<String> {
        match self {
            Doubt::Collecting { needs, .. } => Some(needs.to_string()),
            Doubt::NotCovered { missing } => Some(format!("reports from {}", names(missing))),
            Doubt::NoEvidence => Some("the first complete window of this step".into()),
            Doubt::OneEndpointOnly { instance } => {
                Some(format!("failures on another endpoint than {instance}"))
            }
            Doubt::OneCallerOnly { caller } => Some(format!("failures seen by another caller than {caller}")),
            Doubt::StableDegraded { .. } | Doubt::NeverAtThisRate { .. } => {
                Some("a decision by hand: promote or abort".into())
            }
            Doubt::NoObjectives => Some("an objective".into()),
            Doubt::Resumed
            | Doubt::Untrusted { .. }
            | Doubt::AwaitingWindow
            | Doubt::Settling
            | Doubt::Suspicious { .. }
            | Doubt::SplitNotAsConfigured { .. } => None,
        }
    }
}

/// A certificate further away than this, in seconds, is told as *Holding: not enough traffic*.
const PATIENCE_S: f64 = 900.0;

/// What certification lacks.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    /// Clean canary requests, if none fails any more.
    pub clean: u64,
    /// The canary's rate lately, requests per second.
    pub rps: f64,
    /// Expected seconds at that rate and at the rate of errors seen; `None` without traffic.
    pub eta_s: Option<f64>,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = if self.clean == 1 { "request" } else { "requests" };
        write!(f, "{} more clean {requests}", Grouped(self.clean))?;
        match self.eta_s {
            Some(eta) => write!(f, " (about {} at {} rps)", Span(eta), Rate(self.rps)),
            None => f.write_str(" (no traffic)"),
        }
    }
}

impl fmt::Display for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.certificates.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}{}: {} of {} canary requests failed: fewer than {} do (wrong ≤ {})",
                c.objective,
                Grouped(c.canary.failed),
                Grouped(c.canary.ended),
                Percent(c.bound),
                Percent(c.wrong),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { failed, ended } = self.canary;
        write!(f, "{}: {} of {} canary requests failed, ", self.objective, Grouped(failed), Grouped(ended))?;
        match self.against {
            Against::Stable => {
                write!(f, "{} of {} stable", Grouped(self.stable.failed), Grouped(self.stable.ended))?;
            }
            Against::Max(max) => write!(f, "at most {} may", Percent(max))?,
        }
        write!(
            f,
            "; evidence {} ≥ {} (false alarm ≤ {})",
            Evidenced(self.ln_wealth),
            Evidenced(-libm::log(self.false_rollback)),
            Percent(self.false_rollback)
        )
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::NoObjectives => f.write_str("there is no objective to judge the canary by"),
            Doubt::NoEvidence => f.write_str("no complete window of this step has arrived yet"),
            Doubt::Resumed => f.write_str("the judge was restarted and waits for fresh evidence"),
            Doubt::NotCovered { missing } => write!(f, "no report from {}", names(missing)),
            Doubt::Untrusted { callers } => {
                write!(f, "{} lost log entries or counted more errors than were logged", names(callers))
            }
            Doubt::AwaitingWindow => f.write_str("certified by the windows so far, waiting for the next"),
            Doubt::Settling => f.write_str("outcomes may still stem from the share before"),
            Doubt::Collecting { objective, bound, canary, .. } => write!(
                f,
                "{objective}: {} of {} canary requests failed: not yet certain that fewer than {} do",
                Grouped(canary.failed),
                Grouped(canary.ended),
                Percent(*bound)
            ),
            Doubt::NeverAtThisRate { objective, bound, canary } => write!(
                f,
                "{objective}: {} of {} canary requests failed: never certain at this error rate that fewer than {} do",
                Grouped(canary.failed),
                Grouped(canary.ended),
                Percent(*bound)
            ),
            Doubt::Suspicious { objective, canary, stable, ln_wealth } => write!(
                f,
                "{objective}: {} of {} canary requests failed, {} of {} stable; evidence {} is too much to go on",
                Grouped(canary.failed),
                Grouped(canary.ended),
                Grouped(stable.failed),
                Grouped(stable.ended),
                Evidenced(*ln_wealth)
            ),
            Doubt::StableDegraded { objective, max, rate } => write!(
                f,
                "stable breaches its own objective {objective}: {} of its requests fail, at most {} may",
                Percent(*rate),
                Percent(*max)
            ),
            Doubt::SplitNotAsConfigured { share, canary, total } => write!(
                f,
                "the split is not as configured: {} of {} requests went to the canary, its share is {}",
                Grouped(*canary),
                Grouped(*total),
                Percent(*share)
            ),
            Doubt::OneEndpointOnly { instance } => {
                write!(f, "one endpoint only: without {instance} nothing is proven against the release")
            }
            Doubt::OneCallerOnly { caller } => {
                write!(f, "one caller only: without {caller} nothing is proven against the release")
            }
        }
    }
}

fn names(ids: &[InstanceId]) -> String {
    let shown: Vec<&str> = ids.iter().take(3).map(InstanceId::as_str).collect();
    match ids.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A count with a comma between thousands.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A probability as percent with at most three significant digits.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        let decimals = match percent {
            p if p >= 100.0 => 0,
            p if p >= 10.0 => 1,
            p if p >= 1.0 => 2,
            p if p >= 0.1 => 3,
            _ => 4,
        };
        let text = format!("{percent:.decimals$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        write!(f, "{text} %")
    }
}

/// A logarithm, told as the number; beyond a million the number tells nobody anything.
struct Evidenced(f64);

impl fmt::Display for Evidenced {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a million")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match libm::exp(self.0) {
            e if e > 1e6 => f.write_str("over a million"),
            e if e >= 10.0 => Grouped(libm::round(e) as u64).fmt(f),
            e => write!(f, "{e:.1}"),
        }
    }
}

/// Requests per second.
struct Rate(f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            r if r >= 10.0 => write!(f, "{r:.0}"),
            r => f.write_str(format!("{r:.2}").trim_end_matches('0').trim_end_matches('.')),
        }
    }
}

/// Seconds, in the unit people would use.
struct Span(f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            s if s < 1.0 => f.write_str("1 s"),
            s if s < 99.5 => write!(f, "{s:.0} s"),
            s if s < 5_970.0 => write!(f, "{:.0} min", s / 60.0),
            s if s < 172_800.0 => write!(f, "{:.0} h", s / 3_600.0),
            s => write!(f, "{:.0} days", s / 86_400.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: impl fmt::Display, text: &str) {
        assert_eq!(what.to_string(), text);
    }

    #[test]
    fn a_breach_is_told_with_its_numbers() {
        let mut breach = Breach {
            objective: "errors".into(),
            against: Against::Stable,
            canary: Counts { failed: 6, ended: 94 },
            stable: Counts { failed: 1, ended: 1_790 },
            ln_wealth: libm::log(1_412.0),
            false_rollback: 0.001,
        };
        check(
            &breach,
            "errors: 6 of 94 canary requests failed, 1 of 1,790 stable; evidence 1,412 ≥ 1,000 (false alarm ≤ 0.1 %)",
        );
        breach.against = Against::Max(0.01);
        check(
            &breach,
            "errors: 6 of 94 canary requests failed, at most 1 % may; evidence 1,412 ≥ 1,000 (false alarm ≤ 0.1 %)",
        );
    }

    #[test]
    fn needs_are_told_with_the_time_they_take() {
        check(
            Needs { clean: 412, rps: 1.0, eta_s: Some(412.0) },
            "412 more clean requests (about 7 min at 1 rps)",
        );
        check(Needs { clean: 1, rps: 0.0, eta_s: None }, "1 more clean request (no traffic)");
    }

    #[test]
    fn numbers_are_short_and_right() {
        for (p, text) in
            [(0.001, "0.1 %"), (0.01, "1 %"), (1.0, "100 %"), (0.025, "2.5 %"), (0.000_05, "0.005 %")]
        {
            check(Percent(p), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            check(Grouped(n), text);
        }
    }
}
