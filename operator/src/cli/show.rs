//! How views look to people.

use super::table::{plain, table};
use crate::local::{
    host::StoredTokenView,
    root::{ReplacementView, RootView, RootsView},
    server::{CertificateView, ResourceView},
    view::{CanaryView, EffectiveView, EndpointView, PolicyView, ProxyView, ServiceView},
};
use airlane_core::problem::Problem;
use jiff::Timestamp;
use std::fmt::Write;

pub(super) fn services(rows: &[ServiceView]) -> String {
    let cells = |row: &ServiceView| {
        vec![
            row.namespace.clone(),
            row.name.clone(),
            ports(row),
            format!("{}/{}", row.ready, row.instances),
            row.mtls.clone(),
            format!("{:.1}", row.requests_per_second),
            format!("{:.2}%", row.error_percent),
            format!("{:.1}", row.retries_per_second),
            row.breaker.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["NAMESPACE", "NAME", "PORTS", "READY", "MTLS", "RPS", "5XX", "RETRIES/S", "BREAKER"], &rows)
}

fn ports(row: &ServiceView) -> String {
    let ports: Vec<String> =
        row.ports.iter().map(|port| format!("{}/{}", port.number, port.protocol)).collect();
    ports.join(",")
}

pub(super) fn endpoints(rows: &[EndpointView]) -> String {
    let cells = |row: &EndpointView| {
        vec![
            row.namespace.clone(),
            row.service.clone(),
            row.revision.clone(),
            row.instance.clone(),
            row.addresses.join(","),
            row.health.clone(),
            row.breaker.clone(),
            why(row),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["NAMESPACE", "SERVICE", "VERSION", "INSTANCE", "ADDRESS", "HEALTH", "BREAKER", "WHY"], &rows)
}

fn why(row: &EndpointView) -> String {
    let mut reasons = Vec::new();
    if !row.health_reason.is_empty() && row.health != "Healthy" {
        reasons.push(row.health_reason.clone());
    }
    if !row.left_out_by.is_empty() {
        // Proxies report whom they leave out each second, and why with their sidecars' heartbeats.
        let why = if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
        reasons.push(format!("left out by {}{why}", row.left_out_by.join(", ")));
    }
    if row.app_reachable {
        reasons.push("the application can be reached past its proxy: let it listen on loopback".to_owned());
    }
    reasons.join("; ")
}

pub(super) fn proxies(rows: &[ProxyView]) -> String {
    let cells = |row: &ProxyView| {
        vec![
            row.namespace.clone(),
            row.instance.clone(),
            if row.connected { "yes" } else { "no" }.to_owned(),
            if row.current { "yes" } else { "no" }.to_owned(),
            format!("{}/{}", row.acknowledged_epoch, row.published_epoch),
            row.rejected.to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["NAMESPACE", "PROXY", "CONNECTED", "CURRENT", "EPOCH", "REJECTED"], &rows)
}

pub(super) fn policies(rows: &[PolicyView]) -> String {
    let cells = |row: &PolicyView| {
        vec![
            row.namespace.clone(),
            row.name.clone(),
            row.target.clone(),
            if row.outdated { "file in error" } else { "yes" }.to_owned(),
            format!("{}/{}", row.programmed.acknowledged, row.programmed.targeted),
            row.problems.len().to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["NAMESPACE", "NAME", "TARGET", "ACCEPTED", "PROGRAMMED", "PROBLEMS"], &rows)
}

pub(super) fn effective(rows: &[EffectiveView]) -> String {
    let field = |row: &EffectiveView| match row.port {
        Some(port) => format!("{} (port {port})", row.field),
        None => row.field.clone(),
    };
    let rows: Vec<_> =
        rows.iter().map(|row| vec![field(row), row.value.clone(), row.origin.clone()]).collect();
    table(&["FIELD", "VALUE", "FROM"], &rows)
}

pub(super) fn canaries(rows: &[CanaryView]) -> String {
    let cells = |row: &CanaryView| {
        vec![
            row.namespace.clone(),
            row.name.clone(),
            format!("{} → {}", row.stable, row.canary),
            format!("{:?}", row.phase),
            row.step.clone(),
            percent(row.share_percent),
            row.because.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["NAMESPACE", "NAME", "VERSIONS", "PHASE", "STEP", "WEIGHT", "BECAUSE"], &rows)
}

pub(super) fn resources(rows: &[ResourceView]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| vec![row.kind.clone(), row.name.clone(), row.version.clone(), row.bytes.to_string()])
        .collect();
    table(&["KIND", "NAME", "VERSION", "BYTES"], &rows)
}

pub(super) fn certificates(rows: &[CertificateView]) -> String {
    let cells = |row: &CertificateView| {
        vec![
            row.holder.clone(),
            row.subject.clone(),
            moment(row.not_after),
            row.renew_at.map_or_else(|| "at half of its life".to_owned(), moment),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["HOLDER", "SUBJECT", "ENDS", "RENEWED"], &rows)
}

pub(super) fn roots(roots: &RootsView) -> String {
    let cells = |(number, root): (usize, &RootView)| {
        let does = if number == 0 { "signs" } else { "is trusted" };
        vec![root.sha256.chars().take(16).collect(), does.to_owned(), moment(root.not_after)]
    };
    let rows: Vec<_> = roots.roots.iter().enumerate().map(cells).collect();
    let mut text = String::from("\n") + &table(&["ROOT", "DOES", "ENDS"], &rows);
    text += &roots.replacement.as_ref().map_or_else(String::new, |it| replacement(Some(it)));
    text += &roots.trouble.as_ref().map_or_else(String::new, |trouble| format!("{}\n", plain(trouble)));
    text
}

/// How far the replacement of the root is.
pub(super) fn replacement(replacement: Option<&ReplacementView>) -> String {
    match replacement {
        None => "the root is not being replaced\n".to_owned(),
        Some(ReplacementView { handed_over: false, next_at }) => {
            format!("a new root is trusted; it signs from {} on\n", moment(*next_at))
        }
        Some(ReplacementView { handed_over: true, next_at }) => {
            format!("the new root signs; the old one is forgotten at {}\n", moment(*next_at))
        }
    }
}

pub(super) fn tokens(rows: &[StoredTokenView], now: Timestamp) -> String {
    let cells = |row: &StoredTokenView| {
        let state = match (row.revoked_at, row.expires_at) {
            (Some(at), _) => format!("revoked {}", moment(at)),
            (None, Some(at)) if at <= now => format!("expired {}", moment(at)),
            (None, Some(at)) => format!("until {}", moment(at)),
            (None, None) => "until revoked".to_owned(),
        };
        vec![
            row.id.clone(),
            row.service.clone().unwrap_or_else(|| "any service".to_owned()),
            moment(row.created_at),
            state,
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table(&["ID", "FOR", "MADE", "GOOD"], &rows)
}

/// A time as people read it: nobody counts parts of a second of a certificate.
fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn percent(value: f64) -> String {
    // Two digits are enough for the smallest share there is (0.01 %); whole percents are written whole.
    let text = format!("{value:.2}");
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

const OUTDATED: &str =
    "The file is in error: an earlier version is in force. `airlane check` says what is wrong.\n";

fn problems(text: &mut String, problems: &[Problem]) {
    if problems.is_empty() {
        return;
    }
    text.push_str("\nProblems:\n");
    for problem in problems {
        let field =
            if problem.field.is_empty() { String::new() } else { format!("{}: ", plain(&problem.field)) };
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {} {field}{}", problem.reason, plain(&problem.message));
    }
}

fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{:<width$}{}", format!("{name}:"), plain(value));
        text
    })
}

pub(super) fn service(row: &ServiceView, copies: &[EndpointView], values: &[EffectiveView]) -> String {
    let retries = if row.retries_per_second == 0.0 {
        "0".to_owned()
    } else {
        format!("{:.1}/s", row.retries_per_second)
    };
    let mut text = format!(
        "{}/{}   mTLS: {} · Retries: {retries} · Breaker: {}\n\n",
        plain(&row.namespace),
        plain(&row.name),
        plain(&row.mtls),
        plain(&row.breaker)
    );
    text += &facts(&[
        ("Ports", ports(row)),
        ("Ready", format!("{} of {}", row.ready, row.instances)),
        ("Requests", format!("{:.1}/s, {:.2}% answered 5xx", row.requests_per_second, row.error_percent)),
        ("Called by", row.callers.join(", ")),
    ]);
    let _ = write!(text, "\n{}\n{}", endpoints(copies), effective(values));
    text
}

pub(super) fn policy(row: &PolicyView) -> String {
    let mut text = facts(&[
        ("MeshPolicy", format!("{}/{}", row.namespace, row.name)),
        ("Target", row.target.clone()),
        ("File", row.file.clone()),
        ("Generation", row.generation.to_string()),
        ("Programmed", format!("{} of {} proxies", row.programmed.acknowledged, row.programmed.targeted)),
    ]);
    if row.outdated {
        text.push_str(OUTDATED);
    }
    problems(&mut text, &row.problems);
    text
}

pub(super) fn canary(row: &CanaryView) -> String {
    let mut rows = vec![
        ("Canary", format!("{}/{}", row.namespace, row.name)),
        ("Service", row.service.clone()),
        ("Versions", format!("{} → {}", row.stable, row.canary)),
        ("Phase", format!("{:?}", row.phase)),
        ("Step", row.step.clone()),
        ("Weight", percent(row.share_percent)),
        ("Because", row.because.clone()),
    ];
    rows.extend(row.needs.clone().map(|needs| ("Needs", needs)));
    let mut text = facts(&rows);
    if row.outdated {
        text.push_str(OUTDATED);
    }
    if let Some(progress) = row.progress.as_ref().filter(|progress| !progress.history.is_empty()) {
        text.push_str("\nHistory:\n");
        for transition in &progress.history {
            let share = 100.0 * f64::from(transition.share) / f64::from(airlane_core::mesh::FULL_SHARE);
            let _ = writeln!(
                text,
                "  {}  {:?} at {}: {}",
                transition.at.strftime("%H:%M:%S%.3f"),
                transition.phase,
                percent(share),
                plain(&transition.because)
            );
        }
    }
    problems(&mut text, &row.problems);
    text
}

pub(super) fn proxy(row: &ProxyView) -> String {
    let mut text = facts(&[
        ("Proxy", row.instance.clone()),
        ("Identity", row.identity.clone()),
        ("Connected", row.connected_at.map_or_else(|| "no".to_owned(), |at| format!("since {}", moment(at)))),
        ("Epoch", format!("{} of {}", row.acknowledged_epoch, row.published_epoch)),
        ("Reported", row.heard_at.map_or_else(|| "never".to_owned(), moment)),
    ]);
    for rejection in &row.rejections {
        let _ = writeln!(text, "Rejected: {}", plain(rejection));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_expired_does_not_look_good() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let token = |expires_at, revoked_at| StoredTokenView {
            id: "t".into(),
            service: None,
            created_at: at(0),
            expires_at,
            revoked_at,
        };
        let rows = [token(Some(at(10)), None), token(Some(at(11)), None), token(Some(at(10)), Some(at(5)))];
        let text = tokens(&rows, at(10));
        let states: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4)).collect();
        assert_eq!(states, ["expired", "until", "revoked"], "{text}");
    }
}
