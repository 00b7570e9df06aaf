//! Nobody gets in.

use airlane_tests::{
    mesh::Mesh,
    stranger::{Papers, Refusal, Stranger, csr, join_properly, join_request},
    until::{SOON, until},
    workload::App,
};
use airlane_wire::{
    join::{JoinInfo, workload_identity},
    message::{Certificate, HeartbeatRequest, HeartbeatResponse, JoinResponse, LeaveRequest, RenewRequest},
    operator::METHODS,
};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    data::accesslog::v3::{AccessLogCommon, HttpAccessLogEntry, HttpResponseProperties},
    service::{
        accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            stream_access_logs_message::{HttpAccessLogEntries, LogEntries},
        },
        discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
};
use envoy_types::pb::google::protobuf::UInt32Value;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use std::fs;
use tonic::Code;

const JOIN: &str = METHODS[0];
const RENEW: &str = METHODS[1];
const HEARTBEAT: &str = METHODS[2];
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE_OF_THE_WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const ACCESS_LOGS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

fn join_info(mesh: &Mesh) -> JoinInfo {
    fs::read_to_string(mesh.join()).unwrap().parse().unwrap()
}

async fn stranger(mesh: &Mesh, papers: Option<&Papers>) -> Stranger {
    Stranger::connect(&join_info(mesh), &mesh.state(), papers).await.unwrap()
}

/// Joins with a request and expects a refusal that is no help to a stranger.
async fn join_is_refused(mesh: &Mesh, what: &str, service: &str, identity: &str, token: &str) {
    let (mut request, _) = join_request(&join_info(mesh), service, identity);
    token.clone_into(&mut request.token);
    let answer = stranger(mesh, None).await.call::<JoinResponse>(JOIN, &request).await;
    let refusal = answer.expect_err(what);
    let code = refusal.code();
    let refused =
        matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument));
    assert!(refused, "{what}: {refusal:?}");
    let Refusal::Status(_, text) = refusal else { unreachable!("it has a code") };
    assert!(!text.contains(mesh.home().to_str().unwrap()), "{what}: a path is told: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_needs_the_right_token_and_the_name_it_is_for() {
    let mesh = Mesh::start().await;
    let join = join_info(&mesh);
    let domain = join.trust_domain.as_str();
    let payments = workload_identity(domain, "default", "payments");
    let scoped = mesh.ask(&["token", "create", "--service", "payments"]).await;
    let scoped = scoped.parse::<JoinInfo>().unwrap().secret;
    let right = join.secret.as_str();

    let tokens = [("no token", ""), ("a wrong token", "x"), ("a token cut off", &right[..right.len() - 1])];
    for (what, token) in tokens {
        join_is_refused(&mesh, what, "payments", &payments, token).await;
    }
    let ledger = workload_identity(domain, "default", "ledger");
    join_is_refused(&mesh, "another service's token", "ledger", &ledger, &scoped).await;

    let foreign = [
        ("another service's name", workload_identity(domain, "default", "ledger")),
        ("another namespace", workload_identity(domain, "shop", "payments")),
        ("another trust domain", workload_identity("evil.example", "default", "payments")),
        ("the operator's name", airlane_wire::join::operator_identity(domain)),
        ("a detour", format!("spiffe://{domain}/ns/default/sa/x/../payments")),
        ("an encoded slash", format!("spiffe://{domain}/ns/default%2Fsa/payments")),
        ("upper case", format!("spiffe://{domain}/ns/default/sa/Payments")),
        ("a query", format!("{payments}?x=1")),
        ("no SPIFFE ID", "https://payments.example/".to_owned()),
    ];
    for (what, identity) in foreign {
        join_is_refused(&mesh, what, "payments", &identity, right).await;
    }
    // The refusals were for what was wrong, not for everything.
    join_properly(&join, &mesh.state(), "payments").await;
    let own = JoinInfo { secret: scoped, ..join };
    join_properly(&own, &mesh.state(), "payments").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csr_with_more_than_the_identity_is_refused() {
    let mesh = Mesh::start().await;
    let join = join_info(&mesh);
    let identity = workload_identity(&join.trust_domain, "default", "payments");
    let with = |change: fn(&mut CertificateParams)| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
        change(&mut params);
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    let broken_signature = {
        let mut csr = with(|_| {});
        *csr.last_mut().unwrap() ^= 1;
        csr
    };
    let csrs = [
        (
            "a second name",
            with(|params| {
                params
                    .subject_alt_names
                    .push(SanType::URI("spiffe://airlane.local/ns/default/sa/ledger".try_into().unwrap()));
            }),
        ),
        (
            "another instance's name",
            with(|params| {
                params.subject_alt_names.push(SanType::DnsName("ledger-1".try_into().unwrap()));
            }),
        ),
        ("no name", with(|params| params.subject_alt_names.clear())),
        ("a broken signature", broken_signature),
        ("no CSR", Vec::new()),
        ("garbage", vec![0x30; 4096]),
    ];
    for (what, csr) in csrs {
        let (mut request, _) = join_request(&join, "payments", &identity);
        request.csr = csr;
        let answer = stranger(&mesh, None).await.call::<JoinResponse>(JOIN, &request).await;
        let refusal = answer.expect_err(what);
        assert!(
            matches!(refusal.code(), Some(Code::InvalidArgument | Code::PermissionDenied)),
            "{what}: {refusal:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_method_needs_a_certificate() {
    let mesh = Mesh::start().await;
    let rest = METHODS.iter().skip(1).copied();
    for path in rest.chain([DELTA, STATE_OF_THE_WORLD, ACCESS_LOGS, METRICS]) {
        let answer = stranger(&mesh, None).await.call::<LeaveRequest>(path, &LeaveRequest {}).await;
        assert_eq!(answer.expect_err(path).code(), Some(Code::Unauthenticated), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_are_refused_with_and_without_a_certificate() {
    let mesh = Mesh::start().await;
    let papers = join_properly(&join_info(&mesh), &mesh.state(), "payments").await;
    for path in [
        "/airlane.wire.v1.Operator/Sign",
        "/airlane.wire.v1.Operator/join",
        "/airlane.wire.v1.Operator/Join/",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/FetchAggregatedResources",
        "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/",
    ] {
        for (papers, codes) in [
            (None, &[Code::Unauthenticated, Code::Unimplemented][..]),
            (Some(&papers), &[Code::Unimplemented][..]),
        ] {
            let answer = stranger(&mesh, papers).await.call::<LeaveRequest>(path, &LeaveRequest {}).await;
            let refusal = answer.expect_err(path);
            assert!(refusal.code().is_some_and(|code| codes.contains(&code)), "{path}: {refusal:?}");
        }
    }
    let answer =
        stranger(&mesh, Some(&papers)).await.call::<LeaveRequest>(STATE_OF_THE_WORLD, &LeaveRequest {}).await;
    assert_eq!(answer.expect_err("state of the world").code(), Some(Code::Unimplemented));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_speaks_for_its_own_instance_only() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let join = join_info(&mesh);
    let papers = join_properly(&join, &mesh.state(), "payments").await;

    for id in [front.instance(), "", "airlane"] {
        let subscribe = DeltaDiscoveryRequest {
            node: Some(Node { id: id.to_owned(), ..Node::default() }),
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let answer =
            stranger(&mesh, Some(&papers)).await.call::<DeltaDiscoveryResponse>(DELTA, &subscribe).await;
        assert_eq!(answer.expect_err("a foreign node id").code(), Some(Code::PermissionDenied), "{id:?}");
    }

    let key = KeyPair::generate().unwrap();
    let ledger = RenewRequest { csr: csr(&key, &workload_identity(&join.trust_domain, "default", "ledger")) };
    let answer = stranger(&mesh, Some(&papers)).await.call::<Certificate>(RENEW, &ledger).await;
    let refusal = answer.expect_err("a renewal for another name");
    assert!(matches!(refusal.code(), Some(Code::InvalidArgument | Code::PermissionDenied)), "{refusal:?}");
    let own = RenewRequest { csr: csr(&key, &workload_identity(&join.trust_domain, "default", "payments")) };
    stranger(&mesh, Some(&papers)).await.call::<Certificate>(RENEW, &own).await.unwrap();

    // Joining as an instance that somebody else is.
    let (mut request, _) =
        join_request(&join, "payments", &workload_identity(&join.trust_domain, "default", "payments"));
    front.instance().clone_into(&mut request.instance);
    let answer = stranger(&mesh, None).await.call::<JoinResponse>(JOIN, &request).await;
    let stolen = answer.is_ok_and(|joined| joined.instance == front.instance());
    assert!(!stolen, "an instance was taken over");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_and_foreign_certificates_are_refused() {
    let mesh = Mesh::start_with(&["--leaf-ttl", "10s"]).await;
    let join = join_info(&mesh);
    let papers = join_properly(&join, &mesh.state(), "payments").await;
    let heartbeat = HeartbeatRequest::default();
    let mut early = stranger(&mesh, Some(&papers)).await;
    early.call::<HeartbeatResponse>(HEARTBEAT, &heartbeat).await.unwrap();
    until("the leaf has expired", SOON, async || {
        let late = Stranger::connect(&join, &mesh.state(), Some(&papers)).await;
        match late {
            Err(_) => Ok(()),
            Ok(mut late) => match late.call::<HeartbeatResponse>(HEARTBEAT, &heartbeat).await {
                Err(_) => Ok(()),
                Ok(_) => Err("still let in".to_owned()),
            },
        }
    })
    .await;
    // A connection made in time does not outlive its certificate.
    until("the old connection is closed too", SOON, async || {
        match early.call::<HeartbeatResponse>(HEARTBEAT, &heartbeat).await {
            Err(_) => Ok(()),
            Ok(_) => Err("still served".to_owned()),
        }
    })
    .await;

    let foreign = forged(&join, &papers.instance);
    let answer = match Stranger::connect(&join, &mesh.state(), Some(&foreign)).await {
        Ok(mut stranger) => stranger.call::<HeartbeatResponse>(HEARTBEAT, &heartbeat).await.map(|_| ()),
        Err(refusal) => Err(refusal),
    };
    assert!(answer.is_err(), "another authority's certificate was accepted");
}

/// The right names, signed by an authority of our own.
fn forged(join: &JoinInfo, instance: &str) -> Papers {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than the leaf's: else it would be refused as self-signed, whoever signed it.
    authority.distinguished_name.push(DnType::CommonName, "somebody else");
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    let identity = workload_identity(&join.trust_domain, "default", "payments");
    leaf.subject_alt_names =
        vec![SanType::URI(identity.try_into().unwrap()), SanType::DnsName(instance.try_into().unwrap())];
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    Papers {
        chain: vec![leaf.der().clone(), root.der().clone()],
        key_der: key.serialize_der(),
        instance: instance.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_about_what_was_not_published_is_refused() {
    let mesh = Mesh::start().await;
    let papers = join_properly(&join_info(&mesh), &mesh.state(), "payments").await;
    for cluster in ["80|ghost|default", "80|payments|default|v9", "80|ledger|shop"] {
        let failure = HttpAccessLogEntry {
            common_properties: Some(AccessLogCommon {
                upstream_cluster: cluster.to_owned(),
                ..AccessLogCommon::default()
            }),
            response: Some(HttpResponseProperties {
                response_code: Some(UInt32Value { value: 500 }),
                ..HttpResponseProperties::default()
            }),
            ..HttpAccessLogEntry::default()
        };
        let log = StreamAccessLogsMessage {
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: vec![failure] })),
            ..StreamAccessLogsMessage::default()
        };
        let answer =
            stranger(&mesh, Some(&papers)).await.call::<StreamAccessLogsResponse>(ACCESS_LOGS, &log).await;
        assert_eq!(answer.expect_err("a failure").code(), Some(Code::PermissionDenied), "{cluster}");

        let totals = stranger(&mesh, Some(&papers))
            .await
            .call::<ExportMetricsServiceResponse>(METRICS, &export(cluster))
            .await
            .unwrap();
        let rejected = totals.partial_success.map_or(0, |partial| partial.rejected_data_points);
        assert_eq!(rejected, 1, "{cluster}");
    }
}

/// One second of one counter of one cluster, as Envoy's OpenTelemetry statistics sink sends it.
fn export(cluster: &str) -> ExportMetricsServiceRequest {
    let attribute = KeyValue {
        key: "envoy.cluster_name".to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(cluster.to_owned())) }),
        ..KeyValue::default()
    };
    let point = NumberDataPoint {
        attributes: vec![attribute],
        start_time_unix_nano: 1_000_000_000,
        time_unix_nano: 2_000_000_000,
        value: Some(number_data_point::Value::AsInt(1_000)),
        ..NumberDataPoint::default()
    };
    let sum = Sum { data_points: vec![point], aggregation_temporality: 1, is_monotonic: true };
    let metric = Metric {
        name: "cluster.upstream_rq_total".to_owned(),
        data: Some(Data::Sum(sum)),
        ..Metric::default()
    };
    let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { scope_metrics: vec![scope], ..ResourceMetrics::default() }],
    }
}
