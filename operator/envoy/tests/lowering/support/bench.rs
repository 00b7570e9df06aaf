//! What a mesh is tried with: a plane that publishes it, and real proxies.

use super::{
    envoy,
    meshes::{self, Build, endpoint, free_port, identity},
    plane::Plane,
    proxy::Proxy,
};
use airlane_core::{
    mesh::{Door, Mesh, Transport},
    policy::MtlsMode,
};
use airlane_envoy::lower::{Lowerer, Settings};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub const H2: Transport = Transport::Mtls { http2: true };

/// A plane that publishes meshes to the proxy `front-1` of an application in `shop`, and to one called proxy.
pub struct Bench {
    pub envoy: PathBuf,
    pub plane: Plane,
    lowerer: Lowerer,
    published: Mesh,
    pub outbound: u16,
    pub mesh_port: u16,
}

impl Bench {
    pub fn new() -> Option<Self> {
        let envoy = envoy()?;
        let plane = Plane::start();
        let settings = Settings {
            bundle_pem: plane.authority.root_pem.clone(),
            fail_safe_after: Duration::from_secs(600),
        };
        let lowerer = Lowerer::new(settings);
        Some(Self {
            envoy,
            plane,
            lowerer,
            published: meshes::empty(),
            outbound: free_port(),
            mesh_port: free_port(),
        })
    }

    /// The mesh last published, to edit.
    pub fn published(&self) -> Mesh {
        self.published.clone()
    }

    pub fn publish(&mut self, mesh: &Mesh) {
        self.published = mesh.clone();
        self.plane.publish(self.lowerer.lower(mesh).0);
    }

    /// The caller's proxy, with the mesh that has it.
    pub fn caller(&mut self, mesh: &Mesh) -> Proxy {
        let mesh = mesh.clone().caller("front-1", "shop", "front", self.outbound);
        self.publish(&mesh);
        Proxy::start(&self.envoy, &self.plane, "front-1", &identity("shop", "front"), &[self.outbound])
    }

    /// A door of `pay` before an application, and a caller's proxy whose mesh knows `pay` behind it.
    pub fn pair(&mut self, app: u16, door: Door, transport: Transport) -> (Proxy, Proxy) {
        let mtls = door.mtls != MtlsMode::Disabled;
        let mesh = meshes::empty()
            .with(meshes::destination(
                "pay",
                door.protocol,
                transport,
                vec![endpoint("pay-1", self.mesh_port, mtls)],
            ))
            .called("pay-1", "pay", self.mesh_port, app, door);
        let caller = self.caller(&mesh);
        let pay = identity("shop", "pay");
        let called = Proxy::start(&self.envoy, &self.plane, "pay-1", &pay, &[self.mesh_port]);
        (caller, called)
    }

    pub fn door(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.mesh_port))
    }
}
