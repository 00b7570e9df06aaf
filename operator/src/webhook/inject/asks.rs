//! What the kubelet asks of the application, taken over by the agent.

use super::{INIT_CONTAINER, PROXY_CONTAINER, edits::Edits};
use crate::marks::OWN_PRE_STOP;
use airlane_wire::pod::{
    AGENT_PORT, Ask, Asked, Asks, Grpc, Header, How, HttpGet, Occasion, Scheme, TcpSocket,
};
use k8s_openapi::{
    api::core::v1::{
        Container, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

/// Points every probe and every HTTP hook of the user's containers at the agent, and notes down what it was. What
/// points there already, or needs no port of the pod (`exec`, another host), is left alone.
pub(super) fn take_over(spec: &PodSpec, grace: i64, asks: &mut Asks, edits: &mut Edits) {
    for (list, index, container) in users(spec) {
        let name = container.name.as_str();
        for occasion in Occasion::ALL {
            let Some(asking) = asking(container, occasion) else { continue };
            let Some(how) = asking.how(container).filter(|_| !asking.is_ours(name, occasion)) else {
                continue;
            };
            // Kubernetes gives a hook as long as the pod has to stop.
            let timeout = asking.timeout_seconds.unwrap_or(i32::try_from(grace).unwrap_or(i32::MAX));
            let timeout_seconds = u32::try_from(timeout).unwrap_or(1).max(1);
            asks.asks.insert(Asked::key(name, occasion), Ask { how, timeout_seconds });
            let asked = Asked::Container { container: name, occasion, secret: &asks.secret };
            let place = [&["spec", list, &index][..], field(occasion)].concat();
            let at = |last: &'static str| place.iter().copied().chain([last]);
            if asking.tcp.is_some() {
                edits.remove(at("tcpSocket"));
            }
            if asking.grpc.is_some() {
                edits.remove(at("grpc"));
            }
            edits.add(at("httpGet"), agent(&asked));
        }
    }
}

/// Gives every application container without a preStop one that takes the pod out of rotation first, and names the
/// others.
pub(super) fn drain_before_stop(spec: &PodSpec, secret: &str, edits: &mut Edits) {
    let mut own = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let index = index.to_string();
        let lifecycle = container.lifecycle.as_ref();
        let drain = json!({ "httpGet": agent(&Asked::Drain { secret }) });
        match lifecycle.map(|lifecycle| lifecycle.pre_stop.as_ref()) {
            None => {
                edits.add(["spec", "containers", &index, "lifecycle"], json!({ "preStop": drain }));
            }
            Some(None) => edits.add(["spec", "containers", &index, "lifecycle", "preStop"], drain),
            Some(Some(hook)) if drains(hook) => {}
            Some(Some(_)) => own.push(container.name.as_str()),
        }
    }
    if !own.is_empty() {
        edits.annotate(OWN_PRE_STOP, &own.join(","));
    }
}

/// The port of the pod that a container is asked on, if it is one of the user's asks.
pub(super) fn asked_ports(spec: &PodSpec) -> Vec<(&str, Occasion, u16)> {
    let mut ports = Vec::new();
    for (_, _, container) in users(spec) {
        for occasion in Occasion::ALL {
            let Some(asking) = asking(container, occasion) else { continue };
            if asking.is_ours(&container.name, occasion) {
                continue;
            }
            let port = match asking.how(container) {
                Some(How::HttpGet(http)) => http.port,
                Some(How::TcpSocket(tcp)) => tcp.port,
                Some(How::Grpc(grpc)) => grpc.port,
                None => continue,
            };
            ports.push((container.name.as_str(), occasion, port));
        }
    }
    ports
}

/// The containers that are not ours, each with its list and its place there.
pub(super) fn users(spec: &PodSpec) -> impl Iterator<Item = (&'static str, String, &Container)> {
    let init = spec.init_containers.iter().flatten().enumerate().map(|it| ("initContainers", it));
    let apps = spec.containers.iter().enumerate().map(|it| ("containers", it));
    init.chain(apps)
        .filter(|(_, (_, container))| ![INIT_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()))
        .map(|(list, (index, container))| (list, index.to_string(), container))
}

/// One probe or hook, whatever its type.
struct Asking<'a> {
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    /// `None` for hooks.
    timeout_seconds: Option<i32>,
}

fn asking(container: &Container, occasion: Occasion) -> Option<Asking<'_>> {
    let lifecycle = container.lifecycle.as_ref();
    let probe = |probe: &'static str| match probe {
        "liveness" => container.liveness_probe.as_ref(),
        "readiness" => container.readiness_probe.as_ref(),
        _ => container.startup_probe.as_ref(),
    };
    match occasion {
        Occasion::Liveness | Occasion::Readiness | Occasion::Startup => {
            let probe: &Probe = probe(occasion.as_str())?;
            Some(Asking {
                http: probe.http_get.as_ref(),
                tcp: probe.tcp_socket.as_ref(),
                grpc: probe.grpc.as_ref(),
                timeout_seconds: Some(probe.timeout_seconds.unwrap_or(1)),
            })
        }
        Occasion::PostStart => lifecycle?.post_start.as_ref().map(hook),
        Occasion::PreStop => lifecycle?.pre_stop.as_ref().map(hook),
    }
}

/// Kubernetes does nothing for a TCP hook.
fn hook(handler: &LifecycleHandler) -> Asking<'_> {
    Asking { http: handler.http_get.as_ref(), tcp: None, grpc: None, timeout_seconds: None }
}

/// Where a probe or hook stands in its container.
fn field(occasion: Occasion) -> &'static [&'static str] {
    match occasion {
        Occasion::Liveness => &["livenessProbe"],
        Occasion::Readiness => &["readinessProbe"],
        Occasion::Startup => &["startupProbe"],
        Occasion::PostStart => &["lifecycle", "postStart"],
        Occasion::PreStop => &["lifecycle", "preStop"],
    }
}

impl Asking<'_> {
    /// How the kubelet would ask a port of this pod; `None` if it asks no port, or none that there is.
    fn how(&self, container: &Container) -> Option<How> {
        if let Some(http) = self.http {
            let headers = http.http_headers.iter().flatten();
            return http
                .host
                .as_deref()
                .unwrap_or_default()
                .is_empty()
                .then_some(())
                .and_then(|()| port(&http.port, container))
                .map(|port| {
                    How::HttpGet(HttpGet {
                        path: http.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into()),
                        port,
                        scheme: match http.scheme.as_deref() {
                            Some("HTTPS") => Scheme::Https,
                            _ => Scheme::Http,
                        },
                        http_headers: headers
                            .map(|header| Header { name: header.name.clone(), value: header.value.clone() })
                            .collect(),
                    })
                });
        }
        if let Some(tcp) = self.tcp {
            let here = tcp.host.as_deref().unwrap_or_default().is_empty();
            let port = port(&tcp.port, container).filter(|_| here)?;
            return Some(How::TcpSocket(TcpSocket { port }));
        }
        let grpc = self.grpc?;
        let port = u16::try_from(grpc.port).ok().filter(|port| *port > 0)?;
        Some(How::Grpc(Grpc { port, service: grpc.service.clone().unwrap_or_default() }))
    }

    /// Whether it points at the agent already.
    fn is_ours(&self, container: &str, occasion: Occasion) -> bool {
        match self.http.and_then(at_agent) {
            Some(Asked::Container { container: named, occasion: on, .. }) => {
                named == container && on == occasion
            }
            Some(Asked::Drain { .. }) => occasion == Occasion::PreStop,
            _ => false,
        }
    }
}

fn drains(hook: &LifecycleHandler) -> bool {
    matches!(hook.http_get.as_ref().and_then(at_agent), Some(Asked::Drain { .. }))
}

/// What a request asks the agent.
fn at_agent(http: &HTTPGetAction) -> Option<Asked<'_>> {
    let agents = http.port == IntOrString::Int(i32::from(AGENT_PORT));
    Asked::of_path(http.path.as_deref()?).filter(|_| agents)
}

fn agent(asked: &Asked<'_>) -> Value {
    json!({ "path": asked.path(), "port": AGENT_PORT })
}

/// The number of a port. As the kubelet does, a name is looked for in the container itself, and is read as a number
/// if it is not there.
fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let declared = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            declared.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}
