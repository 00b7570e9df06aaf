//! What every proxy gets besides destinations: the roots to trust and the current shares.

use super::{
    Lowered,
    proto::{fields, inline, packed},
    tls::BUNDLE,
};
use crate::catalog::Kind;
use envoy_types::pb::{
    envoy::{
        extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, secret},
        service::runtime::v3::Runtime,
    },
    google::protobuf::{Any, Value, value},
};
use std::collections::BTreeMap;

/// The runtime layer with the shares.
pub(crate) const ROLLOUTS: &str = "rollouts";

/// SDS: the roots to trust.
#[derive(Hash)]
pub(super) struct Bundle<'a> {
    pub(super) pem: &'a str,
}

impl Lowered for Bundle<'_> {
    const KIND: Kind = Kind::Secret;

    fn name(&self) -> String {
        BUNDLE.to_owned()
    }

    fn encode(&self) -> Any {
        packed(Secret {
            name: self.name(),
            r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(self.pem)),
                ..Default::default()
            })),
        })
    }
}

/// RTDS: the current share of every cluster of every split.
#[derive(Hash)]
pub(super) struct Rollouts<'a> {
    pub(super) shares: &'a BTreeMap<String, u32>,
}

impl Lowered for Rollouts<'_> {
    const KIND: Kind = Kind::Runtime;

    fn name(&self) -> String {
        ROLLOUTS.to_owned()
    }

    fn encode(&self) -> Any {
        let share = |share: u32| Value { kind: Some(value::Kind::NumberValue(f64::from(share))) };
        packed(Runtime {
            name: self.name(),
            layer: Some(fields(self.shares.iter().map(|(key, parts)| (key.clone(), share(*parts))))),
        })
    }
}
