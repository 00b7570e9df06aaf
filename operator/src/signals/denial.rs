//! Requests that a policy did not let pass, as the proxies before the applications tell them.
//!
//! The operator writes them to its log, where whoever wrote the policy looks for them. Anybody who may connect can
//! cause entries, so each batch tells a request once with its number, and no more than [`TOLD_MAX`] of them.

use airlane_envoy::lower::{ACCESS_FILTER, ACCESS_SECTION, DENIED_BY};
use envoy_types::pb::{
    envoy::data::accesslog::v3::{
        HttpAccessLogEntry, tls_properties::certificate_properties::subject_alt_name::San,
    },
    google::protobuf::value::Kind,
};
use std::collections::BTreeMap;

/// Different requests that one batch of a proxy, a tenth of a second, may have told.
const TOLD_MAX: usize = 10;

/// The longest part of a path that is told, in characters.
const PATH_MAX: usize = 200;

/// A request that a policy did not let pass.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Denial {
    /// The policy, and which of its rules came nearest.
    by: String,
    /// Whether it was let in all the same.
    audited: bool,
    /// Who asked, if they proved it.
    caller: Option<String>,
    method: String,
    path: String,
}

impl Denial {
    /// What an entry tells; `None` if it tells of something else.
    fn of(entry: &HttpAccessLogEntry) -> Option<Denial> {
        let common = entry.common_properties.as_ref()?;
        let found = &common.metadata.as_ref()?.filter_metadata.get(ACCESS_FILTER)?.fields;
        let policy = |key: &str| match found.get(key)?.kind.as_ref()? {
            Kind::StringValue(policy) => Some(policy.clone()),
            _ => None,
        };
        let [enforced, audited] = DENIED_BY.map(policy);
        let request = entry.request.as_ref();
        let sans = common.tls_properties.as_ref().and_then(|tls| tls.peer_certificate_properties.as_ref());
        let caller =
            sans.into_iter().flat_map(|properties| &properties.subject_alt_name).find_map(|name| match name
                .san
                .as_ref()?
            {
                San::Uri(identity) => Some(identity.clone()),
                _ => None,
            });
        Some(Denial {
            audited: enforced.is_none(),
            by: enforced.or(audited)?,
            caller,
            method: request
                .and_then(|request| request.request_method().as_str_name().split('_').next())
                .unwrap_or_default()
                .to_owned(),
            path: request.map_or("", |request| &request.path).chars().take(PATH_MAX).collect(),
        })
    }
}

/// Tells what a batch of a proxy has of denials.
pub(super) fn tell(proxy: &str, entries: &[HttpAccessLogEntry]) {
    let mut denials: BTreeMap<Denial, usize> = BTreeMap::new();
    for denial in entries.iter().filter_map(Denial::of) {
        *denials.entry(denial).or_default() += 1;
    }
    let untold: usize = denials.values().skip(TOLD_MAX).sum();
    for (denial, times) in denials.into_iter().take(TOLD_MAX) {
        let Denial { by, audited, caller, method, path } = denial;
        let (policy, because) = by.split_once(ACCESS_SECTION).unwrap_or((&by, ""));
        let because = because.trim_start_matches([':', ' ']);
        let caller = caller.as_deref().unwrap_or("nobody known");
        let what = if audited { "a request would be denied" } else { "a request was denied" };
        tracing::warn!(proxy, policy, because, caller, method, ?path, times, "{what}");
    }
    if untold > 0 {
        tracing::warn!(proxy, times = untold, "more requests were denied");
    }
}
