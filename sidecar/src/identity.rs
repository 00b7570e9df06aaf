//! Who the workload is: the key made here, the request for its certificate, and the certificate once it is checked.
//!
//! A key lives in this process's memory and in Envoy's, nowhere else; every leaf gets a new one.

use airlane_wire::message::Certificate;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{
    RootCertStore,
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use std::{sync::Arc, time::Duration};
use webpki::{EndEntityCert, KeyUsage};
use zeroize::{Zeroize, Zeroizing};

/// A fresh key, and the request to certify it.
pub(crate) struct KeyRequest {
    key: KeyPair,
    identity: String,
    /// PKCS#10, DER: an empty subject and the identity as its one SAN.
    pub(crate) csr: Vec<u8>,
}

impl Drop for KeyRequest {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl KeyRequest {
    /// Makes an ECDSA P-256 key for `identity`, a SPIFFE ID.
    pub(crate) fn new(identity: &str) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, identity: identity.into(), csr })
    }

    /// The leaf made of this key and the operator's answer, if Envoy can use it: Envoy accepts an expired or
    /// foreign certificate without a word and then fails every handshake.
    pub(crate) fn certified(&self, answer: &Certificate, now: UnixTime) -> Result<Leaf, BadCertificate> {
        let chain = certificates(&answer.chain_pem)?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&answer.bundle_pem)? {
            roots.add(root).map_err(BadCertificate::Root)?;
        }
        let (end_entity, intermediates) = chain.split_first().ok_or(BadCertificate::Empty)?;
        let end_entity = EndEntityCert::try_from(end_entity).map_err(BadCertificate::Leaf)?;
        end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &roots.roots,
                intermediates,
                now,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(BadCertificate::Leaf)?;
        if !end_entity.valid_uri_names().eq([self.identity.as_str()]) {
            return Err(BadCertificate::Identity { wanted: self.identity.clone() });
        }
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialized_der()));
        let signer = any_ecdsa_type(&key).map_err(BadCertificate::Key)?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(BadCertificate::Key)?;
        Ok(Leaf {
            certified: Arc::new(certified),
            roots: Arc::new(roots),
            key_pem: Zeroizing::new(self.key.serialize_pem()),
            chain_pem: answer.chain_pem.clone(),
            bundle_pem: answer.bundle_pem.clone(),
            renew_at: UnixTime::since_unix_epoch(milliseconds(answer.renew_at_ms)),
            not_after: UnixTime::since_unix_epoch(milliseconds(answer.not_after_ms)),
        })
    }
}

/// A certificate with its key, checked, and what to trust.
pub(crate) struct Leaf {
    /// For our own connections.
    pub(crate) certified: Arc<CertifiedKey>,
    /// Whom to trust.
    pub(crate) roots: Arc<RootCertStore>,
    /// For Envoy.
    pub(crate) key_pem: Zeroizing<String>,
    /// Leaf first.
    pub(crate) chain_pem: String,
    /// [`Self::roots`] as they came.
    pub(crate) bundle_pem: String,
    /// When to ask for the next.
    pub(crate) renew_at: UnixTime,
    /// When it ends.
    pub(crate) not_after: UnixTime,
}

/// Why the operator's answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadCertificate {
    /// It is no PEM.
    #[error("the operator's certificate is not PEM")]
    Pem(#[source] pem::Error),
    /// There is none.
    #[error("the operator sent no certificate")]
    Empty,
    /// A root is none.
    #[error("the operator's bundle holds a root that cannot be used")]
    Root(#[source] rustls::Error),
    /// The chain does not hold, or does not hold now.
    #[error("the operator's certificate does not verify against its own bundle; are both clocks right?")]
    Leaf(#[source] webpki::Error),
    /// It says somebody else's name.
    #[error("the operator's certificate is not for {wanted}")]
    Identity {
        /// The identity asked for.
        wanted: String,
    },
    /// It certifies another key.
    #[error("the operator's certificate is not for the key it was asked to certify")]
    Key(#[source] rustls::Error),
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, BadCertificate> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(BadCertificate::Pem)
}

fn milliseconds(since_1970: i64) -> Duration {
    Duration::from_millis(since_1970.try_into().unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{Ca, IDENTITY};

    fn check(
        ca: &Ca,
        change: impl FnOnce(&mut Certificate),
        now_offset_secs: i64,
    ) -> Result<Leaf, BadCertificate> {
        let request = KeyRequest::new(IDENTITY).expect("a key");
        let mut answer = ca.sign(&request.csr, IDENTITY, Duration::from_secs(3600));
        change(&mut answer);
        let now = UnixTime::now().as_secs().saturating_add_signed(now_offset_secs);
        request.certified(&answer, UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }

    #[test]
    fn takes_a_certificate_for_its_own_key_and_name() {
        let leaf = check(&Ca::new(), |_| {}, 0).expect("good");
        assert!(leaf.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(leaf.renew_at.as_secs() < leaf.not_after.as_secs());
    }

    #[test]
    fn refuses_what_envoy_would_fail_with() {
        let ca = Ca::new();
        let other = KeyRequest::new(IDENTITY).expect("a key");
        let hour = Duration::from_secs(3600);
        let foreign_key = ca.sign(&other.csr, IDENTITY, hour).chain_pem;
        assert!(matches!(check(&ca, |a| a.chain_pem = foreign_key, 0), Err(BadCertificate::Key(_))));
        let foreign_root = Ca::new().root_pem();
        assert!(matches!(check(&ca, |a| a.bundle_pem = foreign_root, 0), Err(BadCertificate::Leaf(_))));
        assert!(matches!(check(&ca, |_| {}, 7200), Err(BadCertificate::Leaf(_))));
        assert!(matches!(check(&ca, |a| a.chain_pem.clear(), 0), Err(BadCertificate::Empty)));
        let request = KeyRequest::new(IDENTITY).expect("a key");
        let answer = ca.sign(&request.csr, "spiffe://airlane.local/ns/default/sa/other", hour);
        assert!(matches!(request.certified(&answer, UnixTime::now()), Err(BadCertificate::Identity { .. })));
    }

    #[test]
    fn asks_for_its_identity_and_nothing_else() {
        let request = KeyRequest::new(IDENTITY).expect("a key");
        let der = request.csr.as_slice().into();
        let read = rcgen::CertificateSigningRequestParams::from_der(&der).expect("a good request").params;
        assert_eq!(read.distinguished_name.iter().count(), 0);
        assert_eq!(read.subject_alt_names, [SanType::URI(IDENTITY.try_into().expect("ASCII"))]);
    }
}
