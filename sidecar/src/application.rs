//! The application's environment: how its calls find the mesh.

use std::collections::BTreeMap;

/// What an application may want to know of its place in the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The namespace.
    pub(crate) namespace: String,
    /// The service.
    pub(crate) service: String,
    /// The version.
    pub(crate) version: String,
    /// The instance's name.
    pub(crate) instance: String,
    /// Where Envoy takes outgoing calls.
    pub(crate) outbound_port: u16,
}

/// Read by clients in both cases; `grpc_proxy` by gRPC's own libraries.
const PROXY: [&str; 5] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "grpc_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Hosts that are called directly.
const DIRECT: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The variables to set; hosts the user called directly stay so. `present` reads a variable.
pub(crate) fn environment(
    place: &Place,
    present: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    let proxy = format!("http://127.0.0.1:{}", place.outbound_port);
    let added = NO_PROXY.iter().filter_map(|name| present(name));
    let mut direct: Vec<String> = DIRECT.map(String::from).into();
    for host in added.flat_map(|list| list.split(',').map(|host| host.trim().to_owned()).collect::<Vec<_>>())
    {
        if !host.is_empty() && !direct.contains(&host) {
            direct.push(host);
        }
    }
    let direct = direct.join(",");
    let of_proxy = PROXY.iter().map(|name| (*name, &proxy));
    let of_direct = NO_PROXY.iter().map(|name| (*name, &direct));
    let of_place = [
        ("AIRLANE_NAMESPACE", &place.namespace),
        ("AIRLANE_SERVICE", &place.service),
        ("AIRLANE_VERSION", &place.version),
        ("AIRLANE_INSTANCE", &place.instance),
        ("AIRLANE_PROXY", &proxy),
    ];
    let all = of_proxy.chain(of_direct).chain(of_place);
    all.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(present: &[(&str, &str)], expected_no_proxy: &str) {
        let place = Place {
            namespace: "shop".into(),
            service: "pay".into(),
            version: "v2".into(),
            instance: "pay-v2-1".into(),
            outbound_port: 15001,
        };
        let read = |name: &str| present.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let environment = environment(&place, read);
        for name in PROXY {
            assert_eq!(environment[name], "http://127.0.0.1:15001");
        }
        for name in NO_PROXY {
            assert_eq!(environment[name], expected_no_proxy);
        }
        assert_eq!(environment["AIRLANE_INSTANCE"], "pay-v2-1");
    }

    #[test]
    fn calls_go_through_envoy_except_where_the_user_said_otherwise() {
        check(&[], "localhost,127.0.0.1,::1");
        check(
            &[("NO_PROXY", "db.internal, localhost"), ("no_proxy", "10.0.0.0/8,")],
            "localhost,127.0.0.1,::1,db.internal,10.0.0.0/8",
        );
    }
}
