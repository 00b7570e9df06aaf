//! The certificates that sign others: what a root and an intermediate are, wherever they are kept.

use super::{
    error::{CaError, SignError},
    hex,
};
use airlane_core::{
    id::TrustDomain,
    pki::{BACK_DATED, Certificate, Held},
};
use jiff::{SignedDuration, Timestamp};
use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};
use zeroize::Zeroize as _;

const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
const INTERMEDIATE_LIFETIME: SignedDuration = SignedDuration::from_hours(365 * 24);

/// Where a root is kept, and what can be done besides restoring it.
#[derive(Debug)]
pub(super) struct Place {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// What else can be done when either is damaged.
    pub mend: &'static str,
    /// What can be done when it is for another trust domain.
    pub other_domain: &'static str,
}

impl Place {
    pub(super) fn content(&self, place: &str, expected: &'static str) -> CaError {
        CaError::Content { place: place.to_owned(), expected, mend: self.mend }
    }
}

/// A certificate and its key.
pub(super) struct Pair {
    pub cert: CertificateDer<'static>,
    pub key: KeyPair,
}

impl Pair {
    /// The pair in these texts.
    pub(super) fn read(cert: &[u8], key: &str, place: &Place) -> Result<Pair, CaError> {
        let cert = read_cert(cert, place)?;
        let mut key = read_key(key, place)?;
        if !fits(&cert, &key) {
            let Place { cert, key, mend, .. } = place;
            return Err(CaError::Mismatch { cert: cert.clone(), key: key.clone(), mend });
        }
        // The key is where it came from; the copy for writing it there is not needed.
        key.zeroize();
        Ok(Pair { cert, key })
    }

    /// A new root of this trust domain; its key can still be written.
    pub(super) fn make_root(trust_domain: &TrustDomain, now: Timestamp) -> Result<Pair, CaError> {
        let not_after = now.saturating_add(ROOT_LIFETIME).unwrap_or(Timestamp::MAX);
        let mut params = authority(trust_domain, "root", 1, not_after, now)?;
        params.subject_alt_names = vec![SanType::URI(root_uri(trust_domain).try_into()?)];
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?;
        Ok(Pair { cert: cert.into(), key })
    }

    /// A new intermediate of this root; its key can still be written.
    pub(super) fn make_intermediate(
        &self,
        trust_domain: &TrustDomain,
        root: &Root,
        now: Timestamp,
    ) -> Result<Pair, CaError> {
        let not_after =
            now.saturating_add(INTERMEDIATE_LIFETIME).unwrap_or(Timestamp::MAX).min(root.not_after);
        let mut params = authority(trust_domain, "intermediate", 0, not_after, now)?;
        params.subject_alt_names = vec![SanType::URI(root_uri(trust_domain).try_into()?)];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &Issuer::from_ca_cert_der(&self.cert, &self.key)?)?;
        Ok(Pair { cert: cert.into(), key })
    }
}

/// A root that is trusted: its certificate alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub cert: CertificateDer<'static>,
    pub not_after: Timestamp,
}

impl Root {
    /// The root in this certificate, if it is one of this trust domain and valid now.
    pub(super) fn of(
        cert: CertificateDer<'static>,
        trust_domain: &TrustDomain,
        now: Timestamp,
        place: &Place,
    ) -> Result<Root, CaError> {
        let parsed = parse(&cert).ok_or_else(|| place.content(&place.cert, "a certificate"))?;
        if !is_root_of(&parsed, trust_domain) {
            let (expected, mend) = (trust_domain.clone(), place.other_domain);
            return Err(CaError::TrustDomain { place: place.cert.clone(), expected, mend });
        }
        let (not_before, not_after) = validity(&parsed);
        if now < not_before || now >= not_after {
            let (place, mend) = (place.cert.clone(), place.mend);
            return Err(CaError::RootNotValid { place, not_before, not_after, now, mend });
        }
        Ok(Root { cert, not_after })
    }

    /// SHA-256 of its DER: what a join string pins.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &self.cert).as_ref());
        fingerprint
    }
}

/// What signs the leaves.
pub(super) struct Intermediate {
    pub cert: CertificateDer<'static>,
    /// Who signed it, who signed that one, and so on; not the root.
    pub above: Vec<CertificateDer<'static>>,
    /// The root that this ends in.
    pub root: CertificateDer<'static>,
    pub issuer: Issuer<'static, KeyPair>,
    pub held: Held,
}

/// A certificate that an intermediate signed.
pub(super) struct Leaf {
    pub cert: CertificateDer<'static>,
    pub not_after: Timestamp,
    pub serial: String,
}

impl Intermediate {
    /// The intermediate in this pair; `None` if the root did not sign it.
    pub(super) fn of(mut pair: Pair, root: &Root) -> Result<Option<Intermediate>, CaError> {
        pair.key.zeroize();
        let (Some(cert), Some(signer)) = (parse(&pair.cert), parse(&root.cert)) else { return Ok(None) };
        if !cert.is_ca() || cert.verify_signature(Some(signer.public_key())).is_err() {
            return Ok(None);
        }
        let (not_before, not_after) = validity(&cert);
        let issued_at = not_before.saturating_add(BACK_DATED).unwrap_or(Timestamp::MAX);
        Ok(Some(Intermediate {
            issuer: Issuer::from_ca_cert_der(&pair.cert, pair.key)?,
            cert: pair.cert,
            above: Vec::new(),
            root: root.cert.clone(),
            held: Held { certificate: Certificate::Intermediate, issued_at, not_after },
        }))
    }
}

impl Intermediate {
    /// The certificates that whoever shows a leaf shows with it.
    pub(super) fn chain(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.cert).chain(&self.above)
    }

    /// Signs a leaf.
    pub(super) fn leaf(
        &self,
        key: &impl PublicKeyData,
        uri: String,
        dns: &str,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Leaf, SignError> {
        let not_after =
            whole_seconds(now.saturating_add(lifetime).unwrap_or(Timestamp::MAX)).min(self.held.not_after);
        let not_before = self.held.issued_at.saturating_sub(BACK_DATED).unwrap_or(Timestamp::MIN);
        if now < not_before || now >= not_after {
            return Err(SignError::IntermediateNotValid { now });
        }
        let serial = serial().ok_or(SignError::Random)?;
        let text = hex(serial.as_ref());
        let mut params = params(not_after, serial, now);
        // SPIFFE puts the name into the URI SAN; an empty subject makes that extension critical.
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into()?), SanType::DnsName(dns.to_owned().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(key, &self.issuer)?;
        Ok(Leaf { cert: cert.into(), not_after, serial: text })
    }
}

/// X.509 counts whole seconds.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The certificate in a text.
pub(super) fn read_cert(text: &[u8], place: &Place) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(text).map_err(|_| place.content(&place.cert, "a certificate in PEM"))
}

/// The key in a text.
pub(super) fn read_key(text: &str, place: &Place) -> Result<KeyPair, CaError> {
    KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| place.content(&place.key, "an ECDSA P-256 key in PKCS#8 PEM"))
}

/// Whether the certificate is for this key.
pub(super) fn fits(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    parse(cert).is_some_and(|cert| cert.public_key().raw == key.subject_public_key_info())
}

/// A certificate in PEM.
pub(super) fn cert_pem(cert: &CertificateDer<'_>) -> String {
    pem::encode(&Pem::new("CERTIFICATE", cert.to_vec()))
}

fn authority(
    trust_domain: &TrustDomain,
    what: &str,
    below: u8,
    not_after: Timestamp,
    now: Timestamp,
) -> Result<CertificateParams, CaError> {
    let mut params = params(not_after, serial().ok_or(CaError::Random)?, now);
    params.distinguished_name.push(DnType::CommonName, format!("Airlane {what} of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What every certificate of ours has.
pub(super) fn params(not_after: Timestamp, serial: SerialNumber, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now.saturating_sub(BACK_DATED).unwrap_or(Timestamp::MIN));
    params.not_after = date(not_after);
    params.serial_number = Some(serial);
    params.use_authority_key_identifier_extension = true;
    params
}

/// A positive serial number with 126 random bits (RFC 5280, 4.1.2.2 allows up to 20 bytes).
pub(super) fn serial() -> Option<SerialNumber> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    // The first bit is the sign, and a number that starts with a zero byte is written shorter.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Some(SerialNumber::from_slice(&bytes))
}

/// The certificate in these bytes, if they hold nothing else.
pub(super) fn parse<'a>(cert: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(cert).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, cert)| cert)
}

/// From when until when a certificate is valid.
pub(super) fn validity(cert: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let at = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).unwrap_or(Timestamp::MIN);
    (at(cert.validity().not_before), at(cert.validity().not_after))
}

fn is_root_of(cert: &X509Certificate<'_>, trust_domain: &TrustDomain) -> bool {
    let names = cert.subject_alternative_name().ok().flatten().map(|san| &san.value.general_names[..]);
    cert.is_ca() && matches!(names, Some([GeneralName::URI(uri)]) if *uri == root_uri(trust_domain))
}

fn root_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
