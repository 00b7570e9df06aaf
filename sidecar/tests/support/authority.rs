//! A certificate authority for tests: a root, an intermediate, and leaves for servers and workloads.

#![allow(dead_code, reason = "no test binary uses all of it")]

use airlane_wire::message::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime};

/// The identity tests join with.
pub(crate) const IDENTITY: &str = "spiffe://airlane.local/ns/default/sa/pay";
/// The operator's identity.
pub(crate) const OPERATOR: &str = "spiffe://airlane.local/ns/airlane-system/sa/airlane";

/// The authority.
pub(crate) struct Ca {
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate and key; the chain ends with the root.
pub(crate) struct Server {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(params: &mut CertificateParams, identity: &str, lifetime: Duration) {
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().expect("ASCII"))];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + lifetime).into();
}

fn since_1970_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_millis().try_into().expect("before the year 292 million")
}

impl Ca {
    pub(crate) fn new() -> Self {
        let (root_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let root = authority("root").self_signed(&root_key).expect("signed");
        let root_issuer = Issuer::new(authority("root"), root_key);
        let intermediate = authority("intermediate").signed_by(&key, &root_issuer).expect("signed");
        Self { root, intermediate, issuer: Issuer::new(authority("intermediate"), key) }
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let found = ring::digest::digest(&ring::digest::SHA256, self.root.der());
        found.as_ref().try_into().expect("32 bytes")
    }

    pub(crate) fn server(&self, identity: &str, dns_name: &str) -> Server {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        leaf(&mut params, identity, Duration::from_secs(3600));
        params.subject_alt_names.push(SanType::DnsName(dns_name.try_into().expect("ASCII")));
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        Server {
            chain: vec![signed.der().clone(), self.intermediate.der().clone(), self.root_der()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// Certifies the key of a request for `identity`, to be renewed at half of `lifetime`.
    pub(crate) fn sign(&self, csr: &[u8], identity: &str, lifetime: Duration) -> Certificate {
        let der = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&der).expect("a request");
        leaf(&mut request.params, identity, lifetime);
        let signed = request.signed_by(&self.issuer).expect("signed");
        let now = SystemTime::now();
        Certificate {
            chain_pem: format!("{}{}", signed.pem(), self.intermediate.pem()),
            bundle_pem: self.root_pem(),
            renew_at_ms: since_1970_ms(now + lifetime / 2),
            not_after_ms: since_1970_ms(now + lifetime),
        }
    }
}
