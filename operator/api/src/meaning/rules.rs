//! What the schemas say by rules (`x-kubernetes-validations`), for objects that never met an API server. Each rule of
//! the shapes is here, or where its fields are read; `tests/refused` holds an object for each of them.

use super::Remarks;
use crate::{
    field::FieldPath,
    matching::RequestMatch,
    mesh_policy::{
        EgressTls, HashOn, LoadBalancing, LoadBalancingPolicy, MeshPolicySpec, Per, RateLimit, Retries,
        Route, Timeouts,
    },
};

/// The rules of a policy.
pub(crate) fn policy(spec: &MeshPolicySpec, remarks: &mut Remarks) {
    let path = FieldPath::of("spec");
    tries(spec.timeouts.as_ref(), spec.retries.as_ref(), &path, remarks);
    if let Some(section) = &spec.load_balancing {
        load_balancing(section, &path.key("loadBalancing"), remarks);
    }
    for (index, limit) in spec.rate_limits.iter().flat_map(|limits| &limits.0).enumerate() {
        rate_limit(limit, path.key("rateLimits").index(index), remarks);
    }
    for (index, one) in spec.routes.iter().flat_map(|routes| &routes.0).enumerate() {
        route(one, &path.key("routes").index(index), remarks);
    }
    for (index, egress) in spec.egress.iter().flat_map(|egress| &egress.0).enumerate() {
        if let Some(EgressTls { originate: None | Some(false), client_certificate: Some(_) }) = egress.tls {
            remarks.refuse(
                path.key("egress").index(index).key("tls").key("clientCertificate"),
                "a certificate is shown by whoever encrypts",
                "write originate: true, or remove clientCertificate",
            );
        }
    }
}

/// A second try must be able to start, and its pauses to grow.
fn tries(timeouts: Option<&Timeouts>, retries: Option<&Retries>, path: &FieldPath, remarks: &mut Remarks) {
    let Some(retries) = retries else { return };
    let path = path.key("retries");
    let request = timeouts.and_then(|timeouts| timeouts.request);
    if let (Some(per_try), Some(request)) = (retries.per_try_timeout, request)
        && per_try > request
    {
        let message = format!(
            "perTryTimeout {per_try} is longer than the request timeout {request}: the second try can never start"
        );
        remarks.refuse(path.key("perTryTimeout"), message, "make it shorter");
    }
    let backoff = retries.backoff.as_ref();
    if let (Some(base), Some(max)) =
        (backoff.and_then(|backoff| backoff.base), backoff.and_then(|backoff| backoff.max))
        && base > max
    {
        let message = format!("the longest pause {max} is shorter than the first, {base}");
        remarks.refuse(path.key("backoff").key("max"), message, format!("write at least {base}"));
    }
}

fn load_balancing(section: &LoadBalancing, path: &FieldPath, remarks: &mut Remarks) {
    let Some(hash_on) = &section.hash_on else { return };
    let path = path.key("hashOn");
    if !matches!(section.policy, Some(LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev)) {
        remarks.refuse(
            path.clone(),
            "only RingHash and Maglev hash",
            "write policy: RingHash, or remove hashOn",
        );
    }
    let HashOn { header, cookie, source_ip } = &hash_on.0;
    if one_of([header.is_some(), cookie.is_some(), source_ip.is_some()]).is_err() {
        remarks.refuse(path, "one thing is hashed", "give exactly one of header, cookie and sourceIp");
    }
}

fn rate_limit(limit: &RateLimit, path: FieldPath, remarks: &mut Remarks) {
    if limit.header.is_some() != (limit.per == Per::Header) {
        remarks.refuse(path, "header belongs to per: Header", "give both, or neither");
    }
}

fn route(route: &Route, path: &FieldPath, remarks: &mut Remarks) {
    matches(&route.matches, &path.key("match"), remarks);
    tries(route.timeouts.as_ref(), route.retries.as_ref(), path, remarks);
    if !route.to.is_empty() && route.to.iter().all(|to| to.weight == Some(0)) {
        remarks.refuse(
            path.key("to"),
            "every weight is 0: nothing would be sent anywhere",
            "write a weight above 0",
        );
    }
}

/// Every part of a match is matched in one way.
pub(crate) fn matches(matches: &[RequestMatch], path: &FieldPath, remarks: &mut Remarks) {
    for (index, one) in matches.iter().enumerate() {
        let path = path.index(index);
        if let Some(wanted) = &one.path
            && one_of([wanted.exact.is_some(), wanted.prefix.is_some()]).is_err()
        {
            let path = path.key("path");
            remarks.refuse(path, "a path is matched in one way", "give exactly one of exact and prefix");
        }
        for (index, header) in one.headers.iter().enumerate() {
            let given = [header.exact.is_some(), header.prefix.is_some(), header.present.is_some()];
            if one_of(given).is_err() {
                remarks.refuse(
                    path.key("headers").index(index),
                    "a header is matched in one way",
                    "give exactly one of exact, prefix and present",
                );
            }
        }
    }
}

/// Not exactly one was given.
pub(crate) struct NotOne;

/// Which of several alternatives is given.
pub(crate) fn one_of<const N: usize>(given: [bool; N]) -> Result<usize, NotOne> {
    let mut positions = given.into_iter().enumerate().filter(|(_, given)| *given).map(|(index, _)| index);
    match (positions.next(), positions.next()) {
        (Some(index), None) => Ok(index),
        _ => Err(NotOne),
    }
}
