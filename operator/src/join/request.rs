//! Reading a request to join: what every field must be, and the mend where it is not.

use crate::registry::Newcomer;
use airlane_core::{
    id::{
        BadName, Identity, InstanceId, Name, Namespace, Revision, ServiceId, TrustDomain, WorkloadRevision,
    },
    world::{InstancePort, Protocol},
};
use airlane_wire::message::{JoinRequest, Port};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// The most ports of one application.
const PORTS_MAX: usize = 64;
/// The longest path of a unix socket on Linux (`sun_path`, less its end).
const SOCKET_PATH_MAX: usize = 107;
/// The longest path of a file on Linux (`PATH_MAX`).
const PATH_MAX: usize = 4095;

/// What a request to join says of its sender, well-formed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Who it wants to be.
    pub identity: Identity,
    /// What it is.
    pub newcomer: Newcomer,
    /// The name it had before.
    pub had: Option<InstanceId>,
}

/// A field of a request to join that is not well-formed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadField {
    /// A name.
    #[error("{field}: {source}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: BadName,
    },
    /// The address is none.
    #[error("address: {given:?} is not an IP address; pass the one that other proxies reach this host by")]
    Address {
        /// What was given, cut to 80 characters.
        given: String,
    },
    /// The address is not one of a host.
    #[error(
        "address: no proxy can be reached at {given}; pass the address that other proxies reach this host by"
    )]
    Unreachable {
        /// What was given.
        given: IpAddr,
    },
    /// A port number.
    #[error("{field}: {given} is not a port; use 1 to 65535")]
    Port {
        /// The field.
        field: &'static str,
        /// What was given.
        given: u32,
    },
    /// A protocol.
    #[error("ports.protocol: {given:?} is not a protocol; use http, http2, grpc or tcp")]
    Protocol {
        /// What was given, cut to 80 characters.
        given: String,
    },
    /// Two ports of the proxy, or of the application, are the same.
    #[error("ports: {port} is named twice; give every port once")]
    Twice {
        /// The port.
        port: u16,
    },
    /// Too many ports.
    #[error("ports: {given} ports are more than {PORTS_MAX}; split the application")]
    Ports {
        /// How many.
        given: usize,
    },
    /// A path.
    #[error("{field}: not an absolute path of at most {longest} printable characters; use a shorter folder")]
    Path {
        /// The field.
        field: &'static str,
        /// The most bytes.
        longest: usize,
    },
}

/// Checks the paths in a request, which its sender's bootstrap will name.
///
/// # Errors
/// At the first one that is not well-formed.
pub(super) fn check_paths(request: &JoinRequest) -> Result<(), BadField> {
    for (field, path, longest) in [
        ("agent_socket", &request.agent_socket, SOCKET_PATH_MAX),
        ("admin_socket", &request.admin_socket, SOCKET_PATH_MAX),
        ("event_log", &request.event_log, PATH_MAX),
    ] {
        if !path.starts_with('/') || path.len() > longest || path.contains(char::is_control) {
            return Err(BadField::Path { field, longest });
        }
    }
    Ok(())
}

/// Reads what a request says of its sender.
///
/// # Errors
/// At the first field that is not well-formed.
pub(super) fn read(request: &JoinRequest, trust_domain: &TrustDomain) -> Result<Wish, BadField> {
    let namespace: Namespace = name("namespace", &request.namespace)?;
    let service: Name = name("service", &request.service)?;
    let revision: Revision = name("version", &request.revision)?;
    let had = match request.instance.as_str() {
        "" => None,
        text => Some(name("instance", text)?),
    };
    let outbound_port = match request.outbound_port {
        0 => 0,
        given => port("outbound_port", given)?,
    };
    let newcomer = Newcomer {
        workload: WorkloadRevision { namespace: namespace.clone(), workload: service.clone(), revision },
        service_account: service.clone().into(),
        services: [ServiceId { namespace: namespace.clone(), name: service.clone() }].into(),
        address: address(&request.address)?,
        ports: ports(&request.ports)?,
        outbound_port,
    };
    let identity =
        Identity { trust_domain: trust_domain.clone(), namespace, service_account: service.into() };
    Ok(Wish { identity, newcomer, had })
}

fn name<T: FromStr<Err = BadName>>(field: &'static str, text: &str) -> Result<T, BadField> {
    text.parse().map_err(|source| BadField::Name { field, source })
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn address(text: &str) -> Result<IpAddr, BadField> {
    let given: IpAddr = text.parse().map_err(|_| BadField::Address { given: cut(text) })?;
    let other_than_a_host = match given {
        // Link-local holds the metadata services of the clouds.
        IpAddr::V4(v4) => {
            v4.is_unspecified() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST || v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if other_than_a_host { Err(BadField::Unreachable { given }) } else { Ok(given) }
}

fn port(field: &'static str, given: u32) -> Result<u16, BadField> {
    u16::try_from(given).ok().filter(|port| *port != 0).ok_or(BadField::Port { field, given })
}

fn ports(given: &[Port]) -> Result<Vec<InstancePort>, BadField> {
    if given.len() > PORTS_MAX {
        return Err(BadField::Ports { given: given.len() });
    }
    let (mut apps, mut meshes) = (BTreeSet::new(), BTreeSet::new());
    given
        .iter()
        .map(|given| {
            let (app, mesh) = (port("ports.app", given.app)?, port("ports.mesh", given.mesh)?);
            let service = if given.service == 0 { app } else { port("ports.service", given.service)? };
            if !apps.insert(app) {
                return Err(BadField::Twice { port: app });
            }
            if !meshes.insert(mesh) {
                return Err(BadField::Twice { port: mesh });
            }
            let protocol = match given.protocol.as_str() {
                "http" => Protocol::Http,
                "http2" => Protocol::Http2,
                "grpc" => Protocol::Grpc,
                "tcp" => Protocol::Tcp,
                other => return Err(BadField::Protocol { given: cut(other) }),
            };
            Ok(InstancePort { service, app, mesh, protocol, of: None, past_proxy: false })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> JoinRequest {
        JoinRequest {
            namespace: "shop".into(),
            service: "pay".into(),
            revision: "v1".into(),
            address: "127.0.0.1".into(),
            ports: vec![Port { app: 8080, mesh: 15006, protocol: "grpc".into(), service: 80 }],
            outbound_port: 15001,
            agent_socket: "/run/a/agent.sock".into(),
            admin_socket: "/run/a/admin.sock".into(),
            event_log: "/run/a/outliers.jsonl".into(),
            ..JoinRequest::default()
        }
    }

    fn check(edit: impl FnOnce(&mut JoinRequest), says: &str) {
        let mut request = good();
        edit(&mut request);
        let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
        match check_paths(&request).and_then(|()| read(&request, &trust_domain)) {
            Ok(_) => assert_eq!(says, "", "it is let through"),
            Err(error) => {
                let error = error.to_string();
                assert!(!says.is_empty() && error.contains(says), "{error:?} does not say {says:?}");
                assert!(error.len() < 300, "{} characters", error.len());
            }
        }
    }

    #[test]
    fn a_good_request_is_read_as_it_is_written() {
        let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
        let wish = read(&good(), &trust_domain).expect("well-formed");
        assert_eq!(wish.identity.to_string(), "spiffe://airlane.local/ns/shop/sa/pay");
        assert_eq!(wish.newcomer.workload.to_string(), "shop/pay@v1");
        assert_eq!(
            wish.newcomer.ports,
            [InstancePort {
                service: 80,
                app: 8080,
                mesh: 15006,
                protocol: Protocol::Grpc,
                of: None,
                past_proxy: false
            }]
        );
        assert_eq!(wish.had, None);
        check(|r| r.ports.clear(), "");
        check(|r| r.outbound_port = 0, "");
        check(|r| r.address = "fd00::1".into(), "");
        check(|r| r.instance = "pay-v1-bcdfg".into(), "");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "a/b", "..", "a\0b", "A", "*", "a.b", "\u{430}", &"x".repeat(65_536)] {
            check(|r| r.namespace = bad.into(), "namespace: ");
            check(|r| r.service = bad.into(), "service: ");
            check(|r| r.revision = bad.into(), "version: ");
            if !bad.is_empty() {
                check(|r| r.instance = bad.into(), "instance: ");
            }
        }
    }

    #[test]
    fn addresses_that_are_no_hosts_are_refused() {
        for bad in ["", "localhost", "1.2.3", "127.0.0.1:80", "0x7f.1", &"1".repeat(65_536)] {
            check(|r| r.address = bad.into(), "not an IP address");
        }
        for bad in [
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.169.254",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            check(|r| r.address = bad.into(), "no proxy can be reached");
        }
    }

    #[test]
    fn ports_and_paths_that_are_none_are_refused() {
        let port = |app, mesh, protocol: &str| Port { app, mesh, protocol: protocol.into(), service: 0 };
        for bad in [0, 65_536, u32::MAX] {
            check(|r| r.ports = vec![port(bad, 1, "http")], "ports.app");
            check(|r| r.ports = vec![port(1, bad, "http")], "ports.mesh");
        }
        check(|r| r.outbound_port = 65_536, "outbound_port");
        check(|r| r.ports = vec![port(1, 2, "HTTP")], "use http, http2, grpc or tcp");
        check(|r| r.ports = vec![port(1, 2, "http"), port(1, 3, "http")], "1 is named twice");
        check(|r| r.ports = vec![port(1, 2, "http"), port(3, 2, "http")], "2 is named twice");
        check(|r| r.ports = (1..=65).map(|n| port(n, n, "tcp")).collect(), "more than 64");
        for bad in ["", "agent.sock", "/a\0b", "/a\nb", &format!("/{}", "x".repeat(107))] {
            check(|r| r.agent_socket = bad.into(), "agent_socket");
            check(|r| r.admin_socket = bad.into(), "admin_socket");
        }
        check(|r| r.event_log = "outliers".into(), "event_log");
        check(|r| r.event_log = format!("/{}", "x".repeat(4095)), "event_log");
    }
}
