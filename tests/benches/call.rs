//! What a call costs: through the mesh, and through two Envoys that somebody configured by hand with the same TLS and
//! protocols, to the same application. The two take turns, so that whatever else the machine does falls on both.

use crate::measure::{Median, processor_time};
use airlane_tests::{
    client,
    load::{Arrivals, Load},
    mesh::Mesh,
    port,
    process::Process,
    until::{SOON, until},
    workload::App,
};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

const ROUNDS: usize = 20;
/// One after the other on one connection: what a call takes when nothing else is going on.
const ALONE_PER_ROUND: u64 = 1_000;
/// Open-loop, as of independent callers.
const CALLS_PER_ROUND: u64 = 1_500;
const PER_SECOND: f64 = 500.0;
const URL: &str = "http://payments/pay";

/// A way to the application: the port it is entered by, and the Envoys that carry the calls.
struct Way {
    name: &'static str,
    entry: u16,
    envoys: Vec<i32>,
    rounds: Vec<Round>,
    failed: u64,
}

/// What one round of calls took, in microseconds.
struct Round {
    /// Of calls one after the other.
    alone_p50: f64,
    alone_p99: f64,
    /// Of calls at [`PER_SECOND`], from when they were due.
    loaded_p99: f64,
    /// Processor time of the Envoys for each of those calls.
    processor: f64,
}

pub(crate) async fn run() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, URL, 200).await;
    let by_hand = ByHand::start(mesh.home(), payments.app_port()).await;
    let way = |name, entry, envoys| Way { name, entry, envoys, rounds: Vec::new(), failed: 0 };
    let mut ways = [
        way("no proxy", payments.app_port(), vec![]),
        way("two Envoys by hand", by_hand.entry, vec![by_hand.caller.pid(), by_hand.called.pid()]),
        way("mesh", front.outbound(), vec![front.envoy_pid(), payments.envoy_pid()]),
    ];
    let count = ways.len();
    for round in 0..ROUNDS {
        // Whoever comes first finds colder caches: take turns at that too.
        for turn in 0..count {
            ways[(round + turn) % count].go(round as u64).await;
        }
    }
    println!(
        "\n### A call: medians of {ROUNDS} rounds with their 95 % intervals\n\n\
         {ALONE_PER_ROUND} calls one after the other, then {CALLS_PER_ROUND} at {PER_SECOND} a second, each round.\n\n\
         | way | p50 alone | p99 alone | p99 at {PER_SECOND}/s | Envoy processor time | failed |\n|---|---|---|---|---|---|"
    );
    let figures: [fn(&Round) -> f64; 4] =
        [|round| round.alone_p50, |round| round.alone_p99, |round| round.loaded_p99, |round| round.processor];
    for way in &ways {
        let cells = figures.map(|of| format!("{} µs", Median::of(way.rounds.iter().map(of)).shown(0)));
        println!("| {} | {} | {} |", way.name, cells.join(" | "), way.failed);
    }
    // Each round against the one beside it.
    let [_, by_hand, mesh] = &ways;
    let ratios = figures.map(|of| {
        let pairs = mesh.rounds.iter().zip(&by_hand.rounds);
        format!("{}×", Median::of(pairs.map(|(mesh, by_hand)| of(mesh) / of(by_hand))).shown(3))
    });
    println!("| mesh ÷ by hand | {} | |", ratios.join(" | "));
}

impl Way {
    async fn go(&mut self, seed: u64) {
        let alone = one_after_the_other(self.entry).await;
        let busy = || self.envoys.iter().map(|pid| processor_time(*pid)).sum::<Duration>();
        let before = busy();
        let load = Load::start_with(self.entry, URL, PER_SECOND, Arrivals::Poisson(seed));
        until("the round is over", SOON, async || {
            if load.sent() >= CALLS_PER_ROUND { Ok(()) } else { Err(load.sent().to_string()) }
        })
        .await;
        let report = load.finish().await;
        self.failed += report.failed;
        let spent = busy() - before;
        self.rounds.push(Round {
            alone_p50: alone.value_at_quantile(0.5) as f64 / 1e3,
            alone_p99: alone.value_at_quantile(0.99) as f64 / 1e3,
            loaded_p99: report.latency_us.value_at_quantile(0.99) as f64,
            processor: spent.as_secs_f64() * 1e6 / report.sent as f64,
        });
    }
}

/// Nanoseconds of each call.
async fn one_after_the_other(entry: u16) -> Histogram<u64> {
    let stream = TcpStream::connect(("127.0.0.1", entry)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut latency = Histogram::new(3).unwrap();
    for _ in 0..ALONE_PER_ROUND {
        let request = Request::get(URL).header(header::HOST, "payments").body(Empty::<Bytes>::new()).unwrap();
        let started = Instant::now();
        let response = sender.send_request(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response.into_body().collect().await.unwrap();
        latency.record(u64::try_from(started.elapsed().as_nanos()).unwrap()).unwrap();
        sender.ready().await.unwrap();
    }
    connection.abort();
    latency
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
