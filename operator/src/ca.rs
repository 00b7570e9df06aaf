//! The certificate authority: root → intermediate → leaf.
//!
//! The root signs intermediates and nothing else; its key is read from where it is kept for that, and not held. What an
//! intermediate signs is decided by [`pki::admit`]; of a request only the public key is taken.

mod authority;
mod error;
mod files;
mod request;
mod secret;

use airlane_core::{
    id::{Identity, InstanceId, Namespace, TrustDomain},
    pki::{self, BACK_DATED, Certificate, Held, LONGEST_LEAF, Refusal},
};
use airlane_wire::join::operator_identity;
use arc_swap::ArcSwap;
use authority::{Intermediate, Root, cert_pem, params, serial};
pub(crate) use error::{CaError, SignError};
use files::Folder;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use request::read_request;
use ring::digest;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secret::RootSecret;
use std::{fmt::Write as _, path::Path, sync::Arc};
use zeroize::Zeroize as _;

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
    origin: Origin,
    trust_domain: TrustDomain,
    operator: Identity,
    leaf_lifetime: SignedDuration,
    root: Root,
    is_new: bool,
    intermediate: ArcSwap<Intermediate>,
}

/// Where the root's key is: it is read for an intermediate, and not kept.
#[derive(Debug)]
enum Origin {
    Folder(Folder),
    Secret(RootSecret),
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
        check_leaf_lifetime(leaf_lifetime)?;
        let folder = Folder::open(&state_dir.join("ca"))?;
        let (pair, is_new) = folder.root(&trust_domain, now)?;
        let root = Root::of(pair.cert.clone(), &trust_domain, now, folder.place())?;
        let kept = folder.intermediate(&root)?.filter(|kept| pki::due(&[kept.held], now).is_empty());
        let intermediate = match kept {
            Some(kept) => kept,
            None => {
                let made = folder.keep(pair.make_intermediate(&trust_domain, &root, now)?)?;
                Intermediate::of(made, &root)?.ok_or(CaError::Unsigned)?
            }
        };
        let origin = Origin::Folder(folder);
        Ok(Ca::new(origin, trust_domain, leaf_lifetime, root, is_new, intermediate))
    }

    /// The authority whose root is in the Secret `airlane-root` of this namespace, made there if it is not. The
    /// intermediate is this process's own and lives in memory.
    ///
    /// # Errors
    /// If the Secret cannot be read or created, is damaged, or is of another trust domain.
    pub(crate) async fn in_cluster(
        client: kube::Client,
        namespace: &Namespace,
        trust_domain: TrustDomain,
        leaf_lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Ca, CaError> {
        check_leaf_lifetime(leaf_lifetime)?;
        let secret = RootSecret::new(client, namespace);
        let (pair, is_new) = secret.root(&trust_domain, now).await?;
        let root = Root::of(pair.cert.clone(), &trust_domain, now, secret.place())?;
        let made = pair.make_intermediate(&trust_domain, &root, now)?;
        let intermediate = Intermediate::of(made, &root)?.ok_or(CaError::Unsigned)?;
        let origin = Origin::Secret(secret);
        Ok(Ca::new(origin, trust_domain, leaf_lifetime, root, is_new, intermediate))
    }

    fn new(
        origin: Origin,
        trust_domain: TrustDomain,
        leaf_lifetime: SignedDuration,
        root: Root,
        is_new: bool,
        intermediate: Intermediate,
    ) -> Ca {
        #[expect(clippy::expect_used, reason = "whatever the trust domain, the text is canonical")]
        let operator = operator_identity(trust_domain.as_str()).parse().expect("an identity");
        let intermediate = ArcSwap::from_pointee(intermediate);
        Ca { origin, trust_domain, operator, leaf_lifetime, root, is_new, intermediate }
    }

    /// Whether the root was made when it was opened: nobody has a certificate of it from before.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// The trust domain.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who the operator is: the identity of [`Ca::leaf_named`].
    pub(crate) fn operator(&self) -> &Identity {
        &self.operator
    }

    /// The roots to trust, PEM.
    pub(crate) fn bundle_pem(&self) -> String {
        cert_pem(&self.root.cert)
    }

    /// The root.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root.cert
    }

    /// SHA-256 of the root's DER: what a join string pins.
    pub(crate) fn root_fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &self.root.cert).as_ref());
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
    pub(crate) async fn renew_intermediate(&self, now: Timestamp) -> Result<(), CaError> {
        let next = match &self.origin {
            Origin::Folder(folder) => {
                let pair = folder.root_again()?;
                self.root.check_same(&pair, folder.place())?;
                folder.keep(pair.make_intermediate(&self.trust_domain, &self.root, now)?)?
            }
            Origin::Secret(secret) => {
                let pair = secret.root_again().await?;
                self.root.check_same(&pair, secret.place())?;
                pair.make_intermediate(&self.trust_domain, &self.root, now)?
            }
        };
        let next = Intermediate::of(next, &self.root)?.ok_or(CaError::Unsigned)?;
        self.intermediate.store(Arc::new(next));
        Ok(())
    }

    /// The key of a PKCS#10 request in DER that asks for exactly this identity, which is not the operator's: whoever
    /// had that could speak to proxies as the operator, and to the leader as another replica.
    ///
    /// # Errors
    /// If it asks for anything else.
    pub(crate) fn admit(request: &[u8], identity: Identity) -> Result<Admitted, Refusal> {
        let (asked, key) = read_request(request)?;
        pki::admit(&asked, &identity)?;
        if identity.to_string() == operator_identity(identity.trust_domain.as_str()) {
            return Err(Refusal::Operator { identity });
        }
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

    /// A new leaf, with a new key, for the operator itself, under a name that clients know it by
    /// ([`airlane_wire::join::OPERATOR_DNS_NAME`], or one with a dot, which no workload has).
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn leaf_named(&self, dns: &str, now: Timestamp) -> Result<ServerLeaf, SignError> {
        let mut key = KeyPair::generate()?;
        let intermediate = self.intermediate.load();
        let leaf = self.leaf(&intermediate, &key, self.operator.to_string(), dns, now)?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        Ok(ServerLeaf {
            chain: vec![leaf.cert, intermediate.cert.clone(), self.root.cert.clone()],
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

fn check_leaf_lifetime(given: SignedDuration) -> Result<(), CaError> {
    let in_range = given >= SignedDuration::from_secs(10) && given <= LONGEST_LEAF;
    if in_range { Ok(()) } else { Err(CaError::LeafLifetime { given }) }
}

/// X.509 counts whole seconds.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
