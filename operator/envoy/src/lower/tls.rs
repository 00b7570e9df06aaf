//! Mutual TLS between proxies: who shows what, and who is believed.

use super::proto::{ads, exactly, grpc_to, no, number, transport_socket, yes};
use airlane_core::id::{Identity, TrustDomain};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            ApiConfigSource, ApiVersion, ConfigSource, TransportSocket, api_config_source::ApiType,
            config_source::ConfigSourceSpecifier,
        },
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            downstream_tls_context::SessionTicketKeysType,
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
        r#type::matcher::v3::StringMatcher,
    },
    google::protobuf::Duration,
};
use std::collections::BTreeSet;

/// The protocol that a caller's proxy offers besides the one it speaks, so that an inbound listener tells mesh TLS
/// from the application's own.
pub(super) const ALPN: &str = "airlane";

/// The SDS resource with the roots to trust, over ADS.
pub(super) const BUNDLE: &str = "bundle";

/// The SDS resource with the proxy's own certificate, from the agent beside it.
pub(crate) const LEAF: &str = "leaf";

/// The static cluster of the agent.
pub(crate) const AGENT: &str = "agent";

const SOCKET: &str = "envoy.transport_sockets.tls";

/// Calls only endpoints that prove to be one of these.
pub(super) fn calling(
    identities: &BTreeSet<Identity>,
    trust_domain: &TrustDomain,
    speaking: Option<&str>,
) -> TransportSocket {
    let mut expected: Vec<StringMatcher> =
        identities.iter().map(|identity| exactly(&identity.to_string())).collect();
    if expected.is_empty() {
        // Without a matcher Envoy would believe every leaf of the mesh. This one matches none: identities have a path.
        expected.push(exactly(&format!("spiffe://{trust_domain}")));
    }
    calling_any(expected, speaking)
}

/// Calls only endpoints that prove an identity which one of these matches.
pub(super) fn calling_any(identities: Vec<StringMatcher>, speaking: Option<&str>) -> TransportSocket {
    let alpn = [Some(ALPN), speaking].into_iter().flatten().map(str::to_owned).collect();
    transport_socket(
        SOCKET,
        UpstreamTlsContext {
            common_tls_context: Some(common(identities, alpn)),
            // A resumed session would not show the peer's renewed leaf.
            max_session_keys: Some(number(0)),
            ..Default::default()
        },
    )
}

/// Lets in only callers that prove one of these identities.
pub(super) fn called(identities: Vec<StringMatcher>) -> TransportSocket {
    transport_socket(
        SOCKET,
        DownstreamTlsContext {
            common_tls_context: Some(common(identities, vec!["h2".to_owned(), "http/1.1".to_owned()])),
            require_client_certificate: Some(yes()),
            require_sni: Some(no()),
            disable_stateful_session_resumption: true,
            session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
            ..Default::default()
        },
    )
}

fn common(subject_alt_names: Vec<StringMatcher>, alpn_protocols: Vec<String>) -> CommonTlsContext {
    let tls13 = TlsProtocol::TlSv13 as i32;
    CommonTlsContext {
        // Envoy's own maximum as a client is TLS 1.2.
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: tls13,
            tls_maximum_protocol_version: tls13,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
            name: LEAF.to_owned(),
            sds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3 as i32,
                initial_fetch_timeout: Some(Duration::default()),
                config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
                    api_type: ApiType::Grpc as i32,
                    transport_api_version: ApiVersion::V3 as i32,
                    grpc_services: vec![grpc_to(AGENT)],
                    set_node_on_first_message_only: true,
                    ..Default::default()
                })),
                ..Default::default()
            }),
        }],
        alpn_protocols,
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: subject_alt_names
                        .into_iter()
                        .map(|matcher| SubjectAltNameMatcher {
                            san_type: SanType::Uri as i32,
                            matcher: Some(matcher),
                            ..Default::default()
                        })
                        .collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(SdsSecretConfig {
                    name: BUNDLE.to_owned(),
                    // Zero: wait for ever. After a timeout Envoy would open the listener without a certificate.
                    sds_config: Some(ConfigSource {
                        initial_fetch_timeout: Some(Duration::default()),
                        ..ads()
                    }),
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}
