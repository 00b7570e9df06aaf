//! A TLS client that believes any server.

use super::pki::AnyServer;
use std::sync::Arc;

pub fn tls_client(alpn: &[&[u8]]) -> rustls::ClientConnection {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    rustls::ClientConnection::new(Arc::new(config), "pay".try_into().unwrap()).unwrap()
}

/// The first bytes of such a client.
pub fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
    let mut hello = Vec::new();
    tls_client(alpn).write_tls(&mut hello).unwrap();
    hello
}
