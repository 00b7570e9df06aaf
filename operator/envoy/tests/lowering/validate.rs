//! Envoy's own opinion of everything we can say, all of it in one static configuration.

use crate::support::{
    envoy,
    meshes::{self, Build, door, endpoint, undeclared},
    plane::IDENTITY,
};
use airlane_core::{
    id::{ClusterName, InstanceId, Namespace},
    mesh::{
        Cluster as Endpoints, Door, Limits, Mesh, Outliers, Repeatable, Route, Split, Transport, Undeclared,
        WhenOpen,
    },
    policy::{LoadBalancing, Millis, MtlsMode, RetryOn},
    world::Protocol,
};
use airlane_envoy::{
    bootstrap::{self, Bootstrap},
    catalog::{Catalog, Kind},
    lower::{Lowerer, Settings},
};
use envoy_types::{
    pb::envoy::{
        config::{
            bootstrap::v3::{
                Bootstrap as Static,
                bootstrap::{DynamicResources, StaticResources},
            },
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::{
                ApiConfigSource, ApiVersion, GrpcService, Node, TypedExtensionConfig,
                api_config_source::ApiType,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
            },
            listener::v3::{Listener, filter},
            route::v3::{RouteConfiguration, VirtualHost},
        },
        extensions::{
            bootstrap::internal_listener::v3::InternalListener,
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier,
            },
        },
    },
    util::pack_any,
};
use prost::Message;
use std::{net::IpAddr, path::Path, process::Command, sync::Arc, time::Duration};

const PROTOCOLS: [Protocol; 4] = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];

/// Every protocol over every transport and behind every door.
fn everything() -> Mesh {
    let mut mesh = meshes::empty().caller("front-1", "shop", "front", 15001);
    let transports = [
        Transport::Mtls { http2: true },
        Transport::Mtls { http2: false },
        Transport::Mixed,
        Transport::Plaintext,
    ];
    for (p, protocol) in PROTOCOLS.into_iter().enumerate() {
        for (t, transport) in transports.into_iter().enumerate() {
            let name = format!("s{p}{t}");
            let endpoints = vec![endpoint("a-1", 9001, true), endpoint("a-2", 9002, false)];
            let mut destination = meshes::destination(&name, protocol, transport, endpoints);
            let calls = &mut destination.calls;
            calls.load_balancing =
                [LoadBalancing::LeastRequest, LoadBalancing::RoundRobin, LoadBalancing::Random][t % 3];
            if t % 2 == 1 {
                calls.request_timeout = Some(Millis(10_001));
                calls.max_connection_age = Some(Millis(60_000));
                calls.retries.repeatable = Repeatable::All;
                calls.retries.repeatable_on = RetryOn::ALL.map(|(condition, _)| condition).into();
                calls.retries.per_try_timeout = Some(Millis(2_000));
                calls.limits = Limits {
                    connections: Some(100),
                    pending_requests: Some(0),
                    requests: Some(200),
                    retries: Some(10),
                    requests_per_connection: Some(100),
                };
                calls.outliers = Outliers {
                    consecutive_5xx: Some(5),
                    consecutive_gateway_errors: if t == 1 { Some(5) } else { None },
                    interval: Millis(30_000),
                    base_ejection_time: Millis(600_000),
                    max_ejection_percent: 50,
                };
                calls.when_open = Some(WhenOpen { body: "busy".to_owned(), retry_after_s: Some(30) });
            } else {
                calls.retries.repeatable =
                    Repeatable::Methods(["GET", "M-SEARCH", "A.B*"].map(str::to_owned).into());
                calls.retries.attempts = 0;
            }
            mesh = mesh.with(destination);
        }
    }
    let candidates =
        [meshes::service_port("a", "twice", 80).service, meshes::service_port("b", "twice", 80).service];
    mesh.ambiguous.insert("twice".parse().unwrap(), Arc::new(candidates.into()));
    mesh
}

/// The resources of one proxy as a static configuration: routes and their hosts are put where their names stand.
fn inlined(catalog: &Catalog, proxy: &InstanceId, namespace: &Namespace) -> Static {
    let of = |kind: Kind| catalog.seen_by(proxy, namespace).filter(move |resource| resource.key.kind == kind);
    let hosts: Vec<VirtualHost> =
        of(Kind::VirtualHost).map(|resource| VirtualHost::decode(&*resource.body.value).unwrap()).collect();
    let routes: Vec<RouteConfiguration> = of(Kind::Routes)
        .map(|resource| {
            let mut routes = RouteConfiguration::decode(&*resource.body.value).unwrap();
            let of_it = |host: &&VirtualHost| host.name.rsplit_once('/').unwrap().0 == routes.name;
            let hosts: Vec<_> = hosts.iter().filter(of_it).cloned().collect();
            routes.vhds = None;
            routes.virtual_hosts.extend(hosts);
            routes
        })
        .collect();
    let listeners = of(Kind::Listener).map(|resource| {
        let mut listener = Listener::decode(&*resource.body.value).unwrap();
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
            if config.type_url.ends_with("HttpConnectionManager") {
                let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
                if let Some(RouteSpecifier::Rds(named)) = &manager.route_specifier {
                    let routes = routes.iter().find(|routes| routes.name == named.route_config_name);
                    manager.route_specifier =
                        Some(RouteSpecifier::RouteConfig(routes.expect("the routes exist").clone()));
                }
                *config = pack_any(manager);
            }
        }
        listener
    });
    let fixed = ["agent", "operator"].map(|name| Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        ..Default::default()
    });
    let clusters = of(Kind::Cluster).map(|resource| {
        let mut cluster = Cluster::decode(&*resource.body.value).unwrap();
        // Fixed clusters that call where a connection went are made before there is a stream for their secrets, and
        // Envoy crashes. Those that come over the stream are tested live.
        if cluster.cluster_discovery_type
            == Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32))
        {
            cluster.transport_socket = None;
        }
        cluster
    });
    Static {
        node: Some(Node { id: proxy.to_string(), cluster: namespace.to_string(), ..Default::default() }),
        bootstrap_extensions: vec![TypedExtensionConfig {
            name: "envoy.bootstrap.internal_listener".to_owned(),
            typed_config: Some(pack_any(InternalListener::default())),
        }],
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::DeltaGrpc as i32,
                transport_api_version: ApiVersion::V3 as i32,
                grpc_services: vec![GrpcService {
                    target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                        cluster_name: "operator".to_owned(),
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }),
        static_resources: Some(StaticResources {
            listeners: listeners.collect(),
            clusters: fixed.into_iter().chain(clusters).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn check(envoy: &Path, file: &str, config: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    std::fs::write(&path, config).unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--disable-hot-restart", "-l", "warn", "-c"])
        .arg(&path)
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn envoy_accepts_every_destination_and_every_caller() {
    let Some(envoy) = envoy() else { return };
    let (catalog, _) = lowerer().lower(&everything());
    let config = inlined(&catalog, &"front-1".parse().unwrap(), &"shop".parse().unwrap());
    assert_eq!(config.static_resources.as_ref().unwrap().listeners.len(), 2);
    check(&envoy, "config.pb", &config.encode_to_vec());
}

#[test]
fn envoy_accepts_every_door() {
    let Some(envoy) = envoy() else { return };
    for protocol in PROTOCOLS {
        for mode in [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disabled] {
            let mesh = meshes::empty().called("pay-1", "pay", 9001, 8080, door(mode, protocol));
            let (catalog, _) = lowerer().lower(&mesh);
            let config = inlined(&catalog, &"pay-1".parse().unwrap(), &"shop".parse().unwrap());
            assert_eq!(config.static_resources.as_ref().unwrap().listeners.len(), 1);
            check(&envoy, "config.pb", &config.encode_to_vec());
        }
    }
}

#[test]
fn envoy_accepts_what_redirected_callers_call() {
    let Some(envoy) = envoy() else { return };
    for first in ["10.96.0.5", "fd00:10:96::5"] {
        let doors =
            [(9_001, door(MtlsMode::Strict, Protocol::Http)), (3_306, door(MtlsMode::Strict, Protocol::Tcp))];
        let mut mesh = everything()
            .pod("back-1", "back", &doors, undeclared(MtlsMode::Strict))
            .at("back-1", if first.contains(':') { "fd00::5" } else { "127.0.0.1" }.parse().unwrap());
        for (number, destination) in (0..).zip(mesh.destinations.values_mut()) {
            let destination = Arc::make_mut(destination);
            let own = match first.parse().unwrap() {
                IpAddr::V4(address) => IpAddr::V4((address.to_bits() + number).into()),
                IpAddr::V6(address) => IpAddr::V6((address.to_bits() + u128::from(number)).into()),
            };
            // Half of them have none of their own.
            if number % 2 == 0 {
                destination.addresses = [own].into();
            }
        }
        let bytes = meshes::service_port("shop", "s31", 80);
        let cluster = mesh.destinations[&bytes].clusters[0].name.clone();
        let revision = |of: &str| ClusterName { revision: Some(of.parse().unwrap()), ..cluster.clone() };
        let shares = [
            [(revision("v1"), 9_000), (revision("v2"), 1_000)],
            [(revision("v1"), 10_000), (revision("v2"), 0)],
        ];
        for fail_safe in shares {
            let split = Arc::make_mut(mesh.destinations.get_mut(&bytes).unwrap());
            let of_revision =
                |name: &ClusterName| Endpoints { name: name.clone(), ..split.clusters[0].clone() };
            let revisions = [of_revision(&fail_safe[0].0), of_revision(&fail_safe[1].0)];
            split.clusters.truncate(1);
            split.clusters.extend(revisions);
            split.route =
                Route::Split(Split { runtime_prefix: "airlane".to_owned(), fail_safe: fail_safe.into() });
            let (catalog, _) = lowerer().lower(&mesh);
            let config = inlined(&catalog, &"back-1".parse().unwrap(), &"shop".parse().unwrap());
            // Where everything leaves and where it enters, requests on ports 80, 9001 and 9002, two services and a pod
            // that speak bytes.
            assert_eq!(config.static_resources.as_ref().unwrap().listeners.len(), 2 + 3 + 3);
            check(&envoy, "config.pb", &config.encode_to_vec());
        }
    }
}

#[test]
fn envoy_accepts_every_entrance() {
    let Some(envoy) = envoy() else { return };
    let modes = [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disabled];
    let port = |of: usize, protocol: usize| u16::try_from(8_000 + 10 * of + protocol).unwrap();
    for elsewhere in modes {
        for several in [false, true] {
            let exceptions = modes.iter().enumerate().map(|(of, mode)| (port(of, 9), *mode));
            let undeclared = Undeclared {
                exceptions: exceptions.take(if several { 3 } else { 0 }).collect(),
                ..undeclared(elsewhere)
            };
            let doors: Vec<_> = modes
                .iter()
                .enumerate()
                .flat_map(|(of, mode)| {
                    let door = move |(p, protocol): (usize, &Protocol)| (port(of, p), door(*mode, *protocol));
                    PROTOCOLS.iter().enumerate().map(door)
                })
                .collect();
            let doors = if several { &doors[..] } else { &doors[..1] };
            for access in [vec![], meshes::access()] {
                let keeping =
                    |(port, door): &(u16, Door)| (*port, Door { access: access.clone(), ..door.clone() });
                let doors: Vec<_> = doors.iter().map(keeping).collect();
                let undeclared = Undeclared { access: access.clone(), ..undeclared.clone() };
                let mesh = meshes::empty().pod("pay-1", "pay", &doors, undeclared);
                let (catalog, _) = lowerer().lower(&mesh);
                let config = inlined(&catalog, &"pay-1".parse().unwrap(), &"shop".parse().unwrap());
                assert_eq!(config.static_resources.as_ref().unwrap().listeners.len(), 2);
                check(&envoy, "config.pb", &config.encode_to_vec());
            }
        }
    }
}

#[test]
fn envoy_accepts_the_bootstrap() {
    let Some(envoy) = envoy() else { return };
    for operator_host in ["10.1.2.3", "fd00::1", "operator.airlane-system"] {
        let bootstrap = bootstrap::render(&Bootstrap {
            instance: "pay-1".parse().unwrap(),
            namespace: "shop".parse().unwrap(),
            operator_host: operator_host.to_owned(),
            operator_port: 15010,
            operator_identity: IDENTITY.parse().unwrap(),
            agent_socket: "agent.sock".to_owned(),
            admin_socket: "admin.sock".to_owned(),
            event_log: "events.log".to_owned(),
        });
        check(&envoy, "bootstrap.json", bootstrap.as_bytes());
    }
}

fn lowerer() -> Lowerer {
    Lowerer::new(Settings { bundle_pem: "roots".to_owned(), fail_safe_after: Duration::from_secs(600) })
}
