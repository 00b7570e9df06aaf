//! The certificate authority: root → intermediate → leaf.
//!
//! The root signs intermediates and nothing else; its key is read from its file for that and not kept. What an
//! intermediate signs is decided by [`pki::admit`]; of a request only the public key is taken.

mod files;
mod request;

use crate::private_file::{PrivateFileError, private_dir};
use airlane_core::{
    id::{Identity, InstanceId, TrustDomain},
    pki::{self, BACK_DATED, Certificate, Held, LONGEST_LEAF, Refusal},
};
use airlane_wire::join::{OPERATOR_DNS_NAME, operator_identity};
use arc_swap::ArcSwap;
use files::{INTERMEDIATE, Pair, ROOT, cert_pem};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use request::read_request;
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use time::OffsetDateTime;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};
use zeroize::Zeroize as _;

const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
const INTERMEDIATE_LIFETIME: SignedDuration = SignedDuration::from_hours(365 * 24);

/// The authority could not be opened or renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// A file could not be kept private, read or written.
    #[error("the certificate authority's files are unusable")]
    File(#[from] PrivateFileError),
    /// A certificate could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} does not hold {expected}: restore it from a backup{mend}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// One of a pair of files is gone.
    #[error("{} is missing although its partner is there: restore it from a backup{mend}", path.display())]
    Missing {
        /// The file that is gone.
        path: PathBuf,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// A certificate is for another key than the one beside it.
    #[error("{} is not the certificate of {}: restore the pair from a backup{mend}", cert.display(), key.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What else can be done, or nothing.
        mend: &'static str,
    },
    /// The intermediate was signed by somebody else.
    #[error("{} is not signed by the root beside it: restore it from a backup, or remove intermediate.pem and intermediate.key for a new one", path.display())]
    ForeignIntermediate {
        /// The intermediate's file.
        path: PathBuf,
    },
    /// The state was made for another trust domain.
    #[error("{} is the root of another trust domain than {expected}: use the state folder of {expected}, or an empty one", path.display())]
    TrustDomain {
        /// The root's file.
        path: PathBuf,
        /// What was asked for.
        expected: TrustDomain,
    },
    /// The root's validity is over, or lies in the future.
    #[error("the root in {} is valid from {not_before} to {not_after} and it is {now}: set the clock, or remove the folder for a new root and join every workload again", path.display())]
    RootNotValid {
        /// The root's file.
        path: PathBuf,
        /// From when it is valid.
        not_before: Timestamp,
        /// Until when.
        not_after: Timestamp,
        /// The time now.
        now: Timestamp,
    },
    /// The setting for the leaves' lifetime is outside its range.
    #[error("a leaf lifetime of {given:#} is outside 10s to 24h")]
    LeafLifetime {
        /// The setting.
        given: SignedDuration,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// A leaf was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The intermediate is not valid now; it is renewed as soon as the clock allows.
    #[error(
        "no certificate can be signed now: the operator's intermediate is not valid at {now}; check its clock"
    )]
    IntermediateNotValid {
        /// The time now.
        now: Timestamp,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// A key whose holder asked, in due form, for an identity.
#[derive(Debug)]
pub(crate) struct Admitted {
    identity: Identity,
    key: SubjectPublicKeyInfo,
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// The leaf, then the intermediate; PEM.
    pub chain_pem: String,
    /// When the leaf ends.
    pub not_after: Timestamp,
    /// When its holder should ask for the next one.
    pub renew_at: Timestamp,
    /// The leaf's serial number, in hex.
    pub serial: String,
}

/// The operator's own leaf, its key, and the chain up to and with the root: a sidecar that joins knows the root only
/// by its fingerprint.
pub(crate) struct ServerLeaf {
    /// Leaf, intermediate, root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key; wiped by rustls' types when dropped.
    pub key: PrivateKeyDer<'static>,
    /// The leaf's life.
    pub held: Held,
}

/// The certificate authority of a trust domain.
pub(crate) struct Ca {
    dir: PathBuf,
    trust_domain: TrustDomain,
    operator: Identity,
    leaf_lifetime: SignedDuration,
    root: CertificateDer<'static>,
    root_not_after: Timestamp,
    is_new: bool,
    intermediate: ArcSwap<Intermediate>,
}

struct Intermediate {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    held: Held,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Ca {
    /// Opens the authority in `state_dir/ca`, or makes it there. A root lives for 10 years, an intermediate for one;
    /// leaves live for `leaf_lifetime`, 10 s to 24 h.
    ///
    /// # Errors
    /// If a file is not private, is damaged, does not fit its partner or the trust domain, or cannot be written.
    pub(crate) fn open(
        state_dir: &Path,
        trust_domain: TrustDomain,
        leaf_lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Ca, CaError> {
        if leaf_lifetime < SignedDuration::from_secs(10) || leaf_lifetime > LONGEST_LEAF {
            return Err(CaError::LeafLifetime { given: leaf_lifetime });
        }
        let dir = state_dir.join("ca");
        private_dir(&dir)?;
        let (root, is_new) = match Pair::load(&dir, &ROOT)? {
            Some(pair) => (pair, false),
            None => (make_root(&dir, &trust_domain, now)?, true),
        };
        let path = dir.join("root.pem");
        let cert = parse(&root.cert).ok_or(ROOT.content(path.clone(), "a certificate"))?;
        if !is_root_of(&cert, &trust_domain) {
            return Err(CaError::TrustDomain { path, expected: trust_domain });
        }
        let (not_before, not_after) = validity(&cert);
        if now < not_before || now >= not_after {
            return Err(CaError::RootNotValid { path, not_before, not_after, now });
        }
        let intermediate = match Pair::load(&dir, &INTERMEDIATE)? {
            Some(pair) => Intermediate::of(pair, &cert, &dir)?,
            None => make_intermediate(&dir, &trust_domain, &root, not_after, now)?,
        };
        let root = root.cert;
        #[expect(clippy::expect_used, reason = "whatever the trust domain, the text is canonical")]
        let operator = operator_identity(trust_domain.as_str()).parse().expect("an identity");
        let ca = Ca {
            dir,
            trust_domain,
            operator,
            leaf_lifetime,
            root,
            root_not_after: not_after,
            is_new,
            intermediate: ArcSwap::from_pointee(intermediate),
        };
        if !pki::due(&[ca.intermediate()], now).is_empty() {
            ca.renew_intermediate(now)?;
        }
        Ok(ca)
    }

    /// Whether the root was made when it was opened: nobody has a certificate of it from before.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// The trust domain.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who the operator is: the identity of [`Ca::server_leaf`].
    pub(crate) fn operator(&self) -> &Identity {
        &self.operator
    }

    /// The roots to trust, PEM.
    pub(crate) fn bundle_pem(&self) -> String {
        cert_pem(&self.root)
    }

    /// The root.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// SHA-256 of the root's DER: what a join string pins.
    pub(crate) fn root_fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &self.root).as_ref());
        fingerprint
    }

    /// The life of the intermediate.
    pub(crate) fn intermediate(&self) -> Held {
        self.intermediate.load().held
    }

    /// Replaces the intermediate. Leaves of the old one stay valid.
    ///
    /// # Errors
    /// If the root's key cannot be read, or the new pair not written.
    pub(crate) fn renew_intermediate(&self, now: Timestamp) -> Result<(), CaError> {
        let missing = || CaError::Missing { path: self.dir.join("root.pem"), mend: "" };
        let root = Pair::load(&self.dir, &ROOT)?.ok_or_else(missing)?;
        let next = make_intermediate(&self.dir, &self.trust_domain, &root, self.root_not_after, now)?;
        self.intermediate.store(Arc::new(next));
        Ok(())
    }

    /// The key of a PKCS#10 request in DER that asks for exactly this identity.
    ///
    /// # Errors
    /// If it asks for anything else.
    pub(crate) fn admit(request: &[u8], identity: Identity) -> Result<Admitted, Refusal> {
        let (asked, key) = read_request(request)?;
        pki::admit(&asked, &identity)?;
        // P-256 alone is admitted, so that there is a key.
        Ok(Admitted { identity, key: key.ok_or(Refusal::Key)? })
    }

    /// Signs a leaf for an admitted key.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn sign(
        &self,
        admitted: &Admitted,
        instance: &InstanceId,
        now: Timestamp,
    ) -> Result<Issued, SignError> {
        let intermediate = self.intermediate.load();
        let uri = admitted.identity.to_string();
        let leaf = self.leaf(&intermediate, &admitted.key, uri, instance.as_str(), now)?;
        Ok(Issued {
            chain_pem: cert_pem(&leaf.cert) + &cert_pem(&intermediate.cert),
            not_after: leaf.not_after,
            renew_at: pki::renew_at(now, leaf.not_after, instance.as_str()),
            serial: leaf.serial,
        })
    }

    /// A new leaf, with a new key, for the operator itself.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn server_leaf(&self, now: Timestamp) -> Result<ServerLeaf, SignError> {
        let mut key = KeyPair::generate()?;
        let intermediate = self.intermediate.load();
        let leaf = self.leaf(&intermediate, &key, self.operator.to_string(), OPERATOR_DNS_NAME, now)?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        Ok(ServerLeaf {
            chain: vec![leaf.cert, intermediate.cert.clone(), self.root.clone()],
            key: der.into(),
            held: Held { certificate: Certificate::Server, issued_at: now, not_after: leaf.not_after },
        })
    }

    fn leaf(
        &self,
        intermediate: &Intermediate,
        key: &impl PublicKeyData,
        uri: String,
        dns: &str,
        now: Timestamp,
    ) -> Result<Leaf, SignError> {
        let not_after = whole_seconds(now.saturating_add(self.leaf_lifetime).unwrap_or(Timestamp::MAX))
            .min(intermediate.held.not_after);
        let not_before = intermediate.held.issued_at.saturating_sub(BACK_DATED).unwrap_or(Timestamp::MIN);
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
        let cert = params.signed_by(key, &intermediate.issuer)?;
        Ok(Leaf { cert: cert.into(), not_after, serial: text })
    }
}

struct Leaf {
    cert: CertificateDer<'static>,
    not_after: Timestamp,
    serial: String,
}

impl Intermediate {
    fn of(pair: Pair, root: &X509Certificate<'_>, dir: &Path) -> Result<Intermediate, CaError> {
        let path = dir.join(INTERMEDIATE.cert);
        let cert = parse(&pair.cert).ok_or_else(|| INTERMEDIATE.content(path.clone(), "a certificate"))?;
        if !cert.is_ca() || cert.verify_signature(Some(root.public_key())).is_err() {
            return Err(CaError::ForeignIntermediate { path });
        }
        let (not_before, not_after) = validity(&cert);
        let issued_at = not_before.saturating_add(BACK_DATED).unwrap_or(Timestamp::MAX);
        Ok(Intermediate {
            issuer: Issuer::from_ca_cert_der(&pair.cert, pair.key)?,
            cert: pair.cert,
            held: Held { certificate: Certificate::Intermediate, issued_at, not_after },
        })
    }
}

fn make_root(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Pair, CaError> {
    let not_after = now.saturating_add(ROOT_LIFETIME).unwrap_or(Timestamp::MAX);
    let mut params = params(not_after, serial().ok_or(CaError::Random)?, now);
    params.distinguished_name.push(DnType::CommonName, format!("Airlane root of {trust_domain}"));
    params.subject_alt_names = vec![SanType::URI(root_uri(trust_domain).try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Pair::store(dir, &ROOT, cert.into(), key)
}

fn make_intermediate(
    dir: &Path,
    trust_domain: &TrustDomain,
    root: &Pair,
    root_not_after: Timestamp,
    now: Timestamp,
) -> Result<Intermediate, CaError> {
    let not_after = now.saturating_add(INTERMEDIATE_LIFETIME).unwrap_or(Timestamp::MAX).min(root_not_after);
    let mut params = params(not_after, serial().ok_or(CaError::Random)?, now);
    params.distinguished_name.push(DnType::CommonName, format!("Airlane intermediate of {trust_domain}"));
    params.subject_alt_names = vec![SanType::URI(root_uri(trust_domain).try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &Issuer::from_ca_cert_der(&root.cert, &root.key)?)?;
    let pair = Pair::store(dir, &INTERMEDIATE, cert.into(), key)?;
    let root = parse(&root.cert).ok_or_else(|| ROOT.content(dir.join(ROOT.cert), "a certificate"))?;
    Intermediate::of(pair, &root, dir)
}

fn params(not_after: Timestamp, serial: SerialNumber, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now.saturating_sub(BACK_DATED).unwrap_or(Timestamp::MIN));
    params.not_after = date(not_after);
    params.serial_number = Some(serial);
    params.use_authority_key_identifier_extension = true;
    params
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(cert).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, cert)| cert)
}

fn is_root_of(cert: &X509Certificate<'_>, trust_domain: &TrustDomain) -> bool {
    let names = cert.subject_alternative_name().ok().flatten().map(|san| &san.value.general_names[..]);
    cert.is_ca() && matches!(names, Some([GeneralName::URI(uri)]) if *uri == root_uri(trust_domain))
}

fn root_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

fn validity(cert: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let at = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).unwrap_or(Timestamp::MIN);
    (at(cert.validity().not_before), at(cert.validity().not_after))
}

/// A positive serial number with 126 random bits (RFC 5280, 4.1.2.2 allows up to 20 bytes).
fn serial() -> Option<SerialNumber> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    // The first bit is the sign, and a number that starts with a zero byte is written shorter.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Some(SerialNumber::from_slice(&bytes))
}

/// X.509 counts whole seconds.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
