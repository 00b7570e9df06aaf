//! An intermediate that somebody else keeps in a Secret of the operator's namespace, as cert-manager writes it. It is read
//! again when it changes; one that could not sign for the mesh changes nothing.

use super::{
    Keys, Root,
    authority::{Intermediate, fits, parse, validity},
    error::{CaError, Unusable},
};
use airlane_core::{
    id::{Identity, Namespace},
    pki::{BACK_DATED, Certificate, Held},
};
use airlane_wire::join::OPERATOR_DNS_NAME;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, core::PartialObjectMeta};
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use std::{sync::Arc, time::Duration};
use zeroize::Zeroize as _;

/// The keys of the Secret, as Kubernetes names those of `kubernetes.io/tls`.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
/// The most certificates that are read of either.
const CERTIFICATES_MAX: usize = 16;

/// The Secret.
#[derive(Debug)]
pub(super) struct External {
    secrets: Api<Secret>,
    outline: Api<PartialObjectMeta<Secret>>,
    object: String,
    /// The Secret, for people.
    name: String,
    /// Whose leaf it must be able to sign, whatever else it may not.
    operator: Identity,
}

impl External {
    /// The Secret of that name.
    pub(super) fn new(client: Client, namespace: &Namespace, object: &str, operator: Identity) -> External {
        let name = format!("Secret {namespace}/{object}");
        let outline = Api::namespaced(client.clone(), namespace.as_str());
        let secrets = Api::namespaced(client, namespace.as_str());
        External { secrets, outline, object: object.to_owned(), name, operator }
    }

    /// Where to hear that it changed, and not to what.
    pub(super) fn outline(&self) -> Api<PartialObjectMeta<Secret>> {
        self.outline.clone()
    }

    /// What it is called.
    pub(super) fn object(&self) -> &str {
        &self.object
    }

    /// What it holds, if leaves that it signs are believed by whoever trusts its roots.
    pub(super) async fn load(&self, now: Timestamp) -> Result<Keys, CaError> {
        let found = self.secrets.get_opt(&self.object).await.map_err(|source| CaError::Api {
            verb: "get",
            place: self.name.clone(),
            source: Box::new(source),
        })?;
        let mut secret = found.ok_or_else(|| self.unusable(Unusable::Absent))?;
        let keys = keys_in(&secret, &self.operator, now);
        for value in secret.data.iter_mut().flat_map(std::collections::BTreeMap::values_mut) {
            value.0.zeroize();
        }
        keys.map_err(|why| self.unusable(why))
    }

    /// That it leads to a root which nobody trusts yet.
    pub(super) fn unknown_root(&self) -> CaError {
        self.unusable(Unusable::NewRoot)
    }

    fn unusable(&self, why: Unusable) -> CaError {
        CaError::External { place: self.name.clone(), why }
    }
}

fn keys_in(secret: &Secret, operator: &Identity, now: Timestamp) -> Result<Keys, Unusable> {
    let value = |key: &'static str, expected: &'static str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        value.map(|value| &*value.0).ok_or(Unusable::Content { key, expected })
    };
    let certificates = |key: &'static str, expected: &'static str| {
        let bad = || Unusable::Content { key, expected };
        let read: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(value(key, expected)?).take(CERTIFICATES_MAX).collect();
        read.ok().filter(|read| !read.is_empty()).ok_or_else(bad)
    };
    let chain = certificates(CHAIN, "certificates in PEM, the one that signs first")?;
    let roots = certificates(ROOTS, "the roots to trust, in PEM")?;
    let bad_key = || Unusable::Content {
        key: KEY,
        expected: "an ECDSA P-256 key in PKCS#8 PEM; for cert-manager, `privateKey: {algorithm: ECDSA, size: 256, \
                   encoding: PKCS8}`",
    };
    let key = std::str::from_utf8(value(KEY, "a key in PEM")?).map_err(|_| bad_key())?;
    let mut key =
        KeyPair::from_pkcs8_pem_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256).map_err(|_| bad_key())?;
    key.zeroize();
    let (cert, above) = chain.split_first().ok_or(Unusable::NoRoot)?;
    if !fits(cert, &key) {
        return Err(Unusable::Mismatch);
    }
    let parsed = parse(cert).ok_or_else(|| Unusable::Unbelieved("tls.crt is damaged".to_owned()))?;
    if !parsed.is_ca() {
        return Err(Unusable::NoAuthority);
    }
    let above: Vec<_> = above.iter().filter(|cert| !roots.contains(cert)).cloned().collect();
    let top = above.last().unwrap_or(cert);
    let root = roots.iter().find(|root| signed_by(top, root)).ok_or(Unusable::NoRoot)?.clone();
    let (not_before, not_after) = validity(&parsed);
    let damaged = |error: rcgen::Error| Unusable::Unbelieved(error.to_string());
    let signs = Intermediate {
        issuer: Issuer::from_ca_cert_der(cert, key).map_err(damaged)?,
        cert: cert.clone(),
        above,
        root,
        held: Held {
            certificate: Certificate::Intermediate,
            issued_at: not_before.saturating_add(BACK_DATED).unwrap_or(Timestamp::MAX),
            not_after,
        },
    };
    believed(&signs, &roots, operator, now)?;
    let root = |cert: CertificateDer<'static>| {
        let not_after = parse(&cert).map_or(Timestamp::MIN, |cert| validity(&cert).1);
        Root { cert, not_after }
    };
    Ok(Keys { roots: roots.into_iter().map(root).collect(), signs })
}

fn signed_by(cert: &CertificateDer<'_>, signer: &CertificateDer<'_>) -> bool {
    let (Some(cert), Some(signer)) = (parse(cert), parse(signer)) else { return false };
    cert.verify_signature(Some(signer.public_key())).is_ok()
}

/// Whether a leaf that it signs is believed, constraints of every certificate above included: one is made and shown as a
/// workload would show it.
fn believed(
    signs: &Intermediate,
    roots: &[CertificateDer<'static>],
    operator: &Identity,
    now: Timestamp,
) -> Result<(), Unusable> {
    let why = |error: &dyn std::fmt::Display| Unusable::Unbelieved(error.to_string());
    let key = KeyPair::generate().map_err(|error| why(&error))?;
    let leaf = signs
        .leaf(&key, operator.to_string(), OPERATOR_DNS_NAME, SignedDuration::from_mins(1), now)
        .map_err(|error| why(&error))?;
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| why(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|error| why(&error))?;
    let chain: Vec<_> = signs.chain().cloned().collect();
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verifier.verify_client_cert(&leaf.cert, &chain, at).map(drop).map_err(|error| why(&error))
}

#[cfg(test)]
mod tests;
