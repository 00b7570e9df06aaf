//! What a `MeshPolicy` means.

use super::{Remarks, rules};
use crate::{field::FieldPath, mesh_policy as shape};
use airlane_core::{
    id::{Name, Namespace, ObjectId, ServiceId},
    policy::{
        AccessRule, AccessSpec, Asked, Caller, CallsSpec, CircuitBreakerSpec, ConnectionSpec, LoadBalancing,
        MtlsSpec, Policy, RetriesSpec, Target, TimeoutsSpec,
    },
};

/// The policy, if nothing in it must be refused. `system_namespace` is where a policy without target is about the
/// whole mesh.
pub(crate) fn policy(
    id: &ObjectId,
    spec: &shape::MeshPolicySpec,
    system_namespace: &Namespace,
    remarks: &mut Remarks,
) -> Policy {
    if let Some(target) = spec.target_ref.as_ref().filter(|target| target.kind != shape::TargetKind::Service)
        && target.port.is_some()
    {
        let message = format!("a {:?} has no ports to choose from", target.kind);
        remarks.refuse(FieldPath::of("spec.targetRef.port"), message, "remove it, or target the Service");
    }
    rules::policy(spec, remarks);
    Policy {
        id: id.clone(),
        generation: 0,
        age_rank: 0,
        target: target(&id.namespace, spec.target_ref.as_ref(), system_namespace).unwrap_or_else(|| {
            let message = "only the name of a ServiceAccount may have dots";
            let mend = "for another workload target its ServiceAccount";
            remarks.refuse(FieldPath::of("spec.targetRef.name"), message, mend);
            Target::Namespace(id.namespace.clone())
        }),
        calls: calls(spec, remarks),
        mtls: spec.mtls.as_ref().map(|mtls| MtlsSpec {
            mode: mtls.mode.map(Into::into),
            floor: mtls.floor,
            ports: mtls.ports.iter().map(|port| (port.port, port.mode.into())).collect(),
        }),
        access: spec.access.as_ref().map(|section| access(&id.namespace, section, remarks).into()),
    }
}

/// What a policy of this namespace with this `targetRef` is about; `None` if nothing of that kind can have the name.
pub(crate) fn target(
    namespace: &Namespace,
    target: Option<&shape::TargetRef>,
    system_namespace: &Namespace,
) -> Option<Target> {
    let namespace = namespace.clone();
    let Some(shape::TargetRef { kind, name, port }) = target else {
        let whole_mesh = namespace == *system_namespace;
        return Some(if whole_mesh { Target::Mesh } else { Target::Namespace(namespace) });
    };
    let label = || Name::parse(name.0.as_str()).ok();
    Some(match kind {
        shape::TargetKind::Service => {
            Target::Service { service: ServiceId { namespace, name: label()? }, port: *port }
        }
        shape::TargetKind::ServiceAccount => Target::ServiceAccount { namespace, name: name.0.clone() },
        shape::TargetKind::Deployment | shape::TargetKind::StatefulSet | shape::TargetKind::DaemonSet => {
            Target::Workload { namespace, name: label()? }
        }
    })
}

fn access(namespace: &Namespace, section: &shape::Access, remarks: &mut Remarks) -> AccessSpec {
    AccessSpec {
        admits_others: section.default == Some(shape::AccessDefault::Allow),
        mode: section.mode.map(Into::into).unwrap_or_default(),
        rules: section
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| {
                let path = FieldPath::of("spec.access.rules").index(index);
                access_rule(namespace, rule, &path, remarks)
            })
            .collect(),
    }
}

fn access_rule(
    namespace: &Namespace,
    rule: &shape::AccessRule,
    path: &FieldPath,
    remarks: &mut Remarks,
) -> AccessRule {
    // An empty item would mean everybody.
    for (index, from) in rule.from.iter().enumerate() {
        if from.service_account.is_none() && from.namespace.is_none() {
            let path = path.key("from").index(index);
            remarks.refuse(
                path,
                "says nobody",
                "say serviceAccount, namespace or both; to mean anybody leave out from",
            );
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        if to.methods.is_empty() && to.paths.is_empty() {
            let path = path.key("to").index(index);
            remarks.refuse(
                path,
                "asks for nothing",
                "say methods, paths or both; to mean anything leave out to",
            );
        }
    }
    let caller = |from: &shape::AccessFrom| Caller {
        namespace: from.namespace.as_ref().map_or_else(|| namespace.clone(), |namespace| namespace.0.clone()),
        service_account: from.service_account.as_ref().map(|account| account.0.clone()),
    };
    let asked = |to: &shape::AccessTo| Asked {
        methods: to.methods.iter().map(|method| method.0.clone()).collect(),
        paths: to.paths.iter().map(|path| path.0.clone()).collect(),
    };
    AccessRule {
        name: rule.name.0.clone(),
        from: rule.from.iter().map(caller).collect(),
        to: rule.to.iter().map(asked).collect(),
    }
}

fn calls(spec: &shape::MeshPolicySpec, remarks: &mut Remarks) -> CallsSpec {
    CallsSpec {
        timeouts: spec.timeouts.as_ref().map(timeouts).unwrap_or_default(),
        retries: spec.retries.as_ref().map(retries).unwrap_or_default(),
        circuit_breaker: spec.circuit_breaker.as_ref().map(circuit_breaker).unwrap_or_default(),
        load_balancing: spec.load_balancing.as_ref().and_then(|section| load_balancing(section, remarks)),
        connection: spec.connection.as_ref().map(connection).unwrap_or_default(),
    }
}

fn timeouts(section: &shape::Timeouts) -> TimeoutsSpec {
    TimeoutsSpec {
        request: section.request.map(|duration| duration.0),
        stream_idle: section.stream_idle.map(|duration| duration.0),
        connection_idle: section.connection_idle.map(|duration| duration.0),
        connect: section.connect.map(|duration| duration.0),
    }
}

fn retries(section: &shape::Retries) -> RetriesSpec {
    let backoff = section.backoff.clone().unwrap_or_default();
    let budget = section.budget.clone().unwrap_or_default();
    RetriesSpec {
        attempts: section.attempts,
        per_try_timeout: section.per_try_timeout.map(|duration| duration.0),
        retry_on: section.retry_on.as_ref().map(|conditions| conditions.iter().map(|c| c.0).collect()),
        backoff_base: backoff.base.map(|duration| duration.0),
        backoff_max: backoff.max.map(|duration| duration.0),
        budget_percent: budget.percent,
        budget_min_concurrent: budget.min_concurrent,
        methods: section.methods.as_ref().map(|methods| methods.iter().map(|m| m.0.clone()).collect()),
    }
}

fn circuit_breaker(section: &shape::CircuitBreaker) -> CircuitBreakerSpec {
    let limits = section.limits.clone().unwrap_or_default();
    let outliers = section.outlier_detection.clone().unwrap_or_default();
    let when_open = section.when_open.clone().unwrap_or_default();
    CircuitBreakerSpec {
        max_connections: limits.max_connections,
        max_pending_requests: limits.max_pending_requests,
        max_requests: limits.max_requests,
        max_retries: limits.max_retries,
        max_requests_per_connection: limits.max_requests_per_connection,
        consecutive_5xx: outliers.consecutive_5xx,
        consecutive_gateway_errors: outliers.consecutive_gateway_errors,
        interval: outliers.interval.map(|duration| duration.0),
        base_ejection_time: outliers.base_ejection_time.map(|duration| duration.0),
        max_ejection_percent: outliers.max_ejection_percent,
        when_open_body: when_open.body,
        when_open_retry_after: when_open.retry_after.map(|duration| duration.0),
    }
}

fn load_balancing(section: &shape::LoadBalancing, remarks: &mut Remarks) -> Option<LoadBalancing> {
    match section.policy? {
        shape::LoadBalancingPolicy::RoundRobin => Some(LoadBalancing::RoundRobin),
        shape::LoadBalancingPolicy::LeastRequest => Some(LoadBalancing::LeastRequest),
        shape::LoadBalancingPolicy::Random => Some(LoadBalancing::Random),
        policy @ (shape::LoadBalancingPolicy::RingHash | shape::LoadBalancingPolicy::Maglev) => {
            let path = FieldPath::of("spec.loadBalancing.policy");
            remarks
                .not_yet(&path, &format!("{policy:?} is not used; write RoundRobin, LeastRequest or Random"));
            None
        }
    }
}

fn connection(section: &shape::Connection) -> ConnectionSpec {
    ConnectionSpec {
        http2: section.http2.map(Into::into),
        max_age: section.max_age.map(|duration| duration.0),
    }
}
