//! What a call costs: through the mesh, and through two Envoys that somebody configured by hand with the same TLS and
//! protocols, to the same application. The two take turns, so that whatever else the machine does falls on both.

use crate::measure::{Durations, processor_time, table};
use airlane_tests::{
    client,
    load::{Arrivals, Load},
    mesh::Mesh,
    port,
    process::Process,
    until::{SOON, until},
    workload::App,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use std::{fs, path::Path, process::Command, time::Duration};

const ROUNDS: usize = 20;
const CALLS_PER_ROUND: u64 = 2_000;
const PER_SECOND: f64 = 500.0;

/// A way to the application: the port it is entered by, and the processes that carry the calls.
struct Way {
    name: &'static str,
    entry: u16,
    envoys: [i32; 2],
    busy: Duration,
    calls: u64,
    p50: Durations,
    p99: Durations,
}

pub(crate) async fn run() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    let by_hand = ByHand::start(mesh.home(), payments.app_port()).await;
    let way = |name, entry, envoys| Way {
        name,
        entry,
        envoys,
        busy: Duration::ZERO,
        calls: 0,
        p50: Durations::default(),
        p99: Durations::default(),
    };
    let mut ways = [
        way("by hand", by_hand.entry, [by_hand.caller.pid(), by_hand.called.pid()]),
        way("mesh", front.outbound(), [front.envoy_pid(), payments.envoy_pid()]),
    ];
    for round in 0..ROUNDS {
        // Whoever comes first finds colder caches: take turns at that too.
        for turn in 0..2 {
            go(&mut ways[(round + turn) % 2], round as u64).await;
        }
    }
    table(&format!("A call, {PER_SECOND} a second, rounds of {CALLS_PER_ROUND}"));
    for way in &ways {
        way.p50.row(&format!("{}: median of a round", way.name));
        way.p99.row(&format!("{}: 99th percentile of a round", way.name));
    }
    let cost = |way: &Way| way.busy.as_secs_f64() * 1e6 / way.calls as f64;
    let median = |way: &Way| way.p50.quantile(0.5).as_secs_f64();
    let [hand, meshed] = &ways;
    println!(
        "\nEnvoy processor time for each call: {:.1} µs by hand, {:.1} µs meshed, {:.3}×. Median {:.3}×.",
        cost(hand),
        cost(meshed),
        cost(meshed) / cost(hand),
        median(meshed) / median(hand),
    );
}

async fn go(way: &mut Way, seed: u64) {
    let busy = || way.envoys.iter().map(|pid| processor_time(*pid)).sum::<Duration>();
    let before = busy();
    let load = Load::start_with(way.entry, "http://payments/pay", PER_SECOND, Arrivals::Poisson(seed));
    until("the round is over", SOON, async || {
        if load.sent() >= CALLS_PER_ROUND { Ok(()) } else { Err(load.sent().to_string()) }
    })
    .await;
    let report = load.finish().await;
    report.assert_nothing_failed(CALLS_PER_ROUND);
    let spent = busy() - before;
    way.busy += spent;
    way.calls += report.sent;
    way.p50.add(Duration::from_micros(report.latency_us.value_at_quantile(0.5)));
    way.p99.add(Duration::from_micros(report.latency_us.value_at_quantile(0.99)));
}

/// Two Envoys with static configuration.
struct ByHand {
    entry: u16,
    caller: Process,
    called: Process,
}

impl ByHand {
    async fn start(home: &Path, app: u16) -> Self {
        let folder = home.join("by-hand");
        fs::create_dir(&folder).unwrap();
        certificates(&folder);
        let (entry, door) = (port::free(), port::free());
        let start = |name: &str, configuration: String| {
            let file = folder.join(format!("{name}.yaml"));
            fs::write(&file, configuration).unwrap();
            let mut command = Command::new(std::env::var_os("AIRLANE_ENVOY").unwrap());
            command
                .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c"])
                .arg(file);
            Process::start(name, command, &home.join("logs"))
        };
        let caller = start("caller", caller(&folder, entry, door));
        let called = start("called", called(&folder, door, app));
        until("the hand-configured Envoys answer", SOON, async || {
            let answer = client::get_through(entry, "http://payments/").await?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        ByHand { entry, caller, called }
    }
}

fn certificates(folder: &Path) {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "by hand");
    fs::write(folder.join("root.pem"), root.self_signed(&root_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI("spiffe://hand/payments".try_into().unwrap())];
    fs::write(folder.join("leaf.pem"), leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(folder.join("leaf.key"), key.serialize_pem()).unwrap();
}

fn tls(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "{{ tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}, alpn_protocols: [h2], \
         tls_certificates: [{{ certificate_chain: {{ filename: {folder}/leaf.pem }}, private_key: {{ filename: {folder}/leaf.key }} }}], \
         validation_context: {{ trusted_ca: {{ filename: {folder}/root.pem }}, \
         match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: 'spiffe://hand/payments' }} }}] }} }}"
    )
}

fn caller(folder: &Path, entry: u16, door: u16) -> String {
    let tls = tls(folder);
    format!(
        r"static_resources:
  listeners:
  - name: entry
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {entry} }} }}
    filter_chains: [{{ filters: [{{ name: http, typed_config: {{
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: entry,
      http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}],
      route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{
        cluster: called, timeout: 0s, retry_policy: {{ retry_on: 'connect-failure,refused-stream', num_retries: 2 }} }} }}] }}] }}
    }} }}] }}]
  clusters:
  - name: called
    type: STATIC
    load_assignment: {{ cluster_name: called, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {door} }} }} }} }}] }}] }}
    typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {{ http2_protocol_options: {{}} }} }} }}
    outlier_detection: {{ consecutive_gateway_failure: 5 }}
    transport_socket: {{ name: tls, typed_config: {{
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls} }} }}
"
    )
}

fn called(folder: &Path, door: u16, app: u16) -> String {
    let tls = tls(folder);
    format!(
        r"static_resources:
  listeners:
  - name: door
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {door} }} }}
    listener_filters: [{{ name: inspector, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }} }}]
    filter_chains: [{{
      transport_socket: {{ name: tls, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
        require_client_certificate: true, common_tls_context: {tls} }} }},
      filters: [{{ name: http, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: door,
        forward_client_cert_details: SANITIZE_SET,
        set_current_client_cert_details: {{ uri: true }},
        http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}],
        route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: application, timeout: 0s }} }}] }}] }}
      }} }}] }}]
  clusters:
  - name: application
    type: STATIC
    load_assignment: {{ cluster_name: application, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {app} }} }} }} }}] }}] }}
"
    )
}
