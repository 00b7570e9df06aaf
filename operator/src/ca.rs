//! The certificate authority: root → intermediate → leaf.
//!
//! The root signs intermediates and nothing else; its key is read from where it is kept for that, and not held. What an
//! intermediate signs is decided by [`pki::admit`]; of a request only the public key is taken. In a cluster the root may
//! be replaced while everybody goes on ([`rotation`]), or somebody else's intermediate may sign ([`external`]).

mod authority;
mod error;
mod external;
mod files;
pub(crate) mod keeping;
mod request;
mod secret;

use airlane_core::{
    id::{Identity, InstanceId, Namespace, TrustDomain},
    pki::{
        self, Certificate, Held, LONGEST_LEAF, Refusal,
        rotation::{self, Rotation, Step},
    },
};
use airlane_wire::join::operator_identity;
use arc_swap::ArcSwap;
pub(crate) use authority::Root;
use authority::{Intermediate, Pair, cert_pem};
pub(crate) use error::{CaError, SignError};
use external::External;
use files::Folder;
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, SubjectPublicKeyInfo};
use request::read_request;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secret::{Ring, RootSecret};
use std::{fmt::Write as _, path::Path, sync::Arc};
use tokio::sync::watch;
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
    is_new: bool,
    keys: ArcSwap<Keys>,
    /// The trusted roots, PEM.
    bundle: watch::Sender<String>,
    /// What is wrong with what signs.
    trouble: watch::Sender<Option<String>>,
}

/// What is trusted, and what signs: always of one of the trusted.
struct Keys {
    roots: Arc<[Root]>,
    signs: Intermediate,
}

/// Where the root's key is: it is read for an intermediate, and not kept.
#[derive(Debug)]
enum Origin {
    Folder(Folder),
    Secret(RootSecret),
    External(External),
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
        let keys = Keys { roots: [root].into(), signs: intermediate };
        Ok(Ca::new(Origin::Folder(folder), trust_domain, leaf_lifetime, keys, is_new))
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
        let (ring, is_new) = secret.open(&trust_domain, now).await?;
        let keys = keys_of(&ring, &secret, &trust_domain, now)?;
        Ok(Ca::new(Origin::Secret(secret), trust_domain, leaf_lifetime, keys, is_new))
    }

    /// The authority whose intermediate somebody else keeps in a Secret of this namespace, as cert-manager does:
    /// `tls.crt`, `tls.key`, and the roots in `ca.crt`.
    ///
    /// # Errors
    /// If the Secret cannot be read, or no leaf that it signs would be trusted.
    pub(crate) async fn external(
        client: kube::Client,
        namespace: &Namespace,
        secret: &str,
        trust_domain: TrustDomain,
        leaf_lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Ca, CaError> {
        check_leaf_lifetime(leaf_lifetime)?;
        let external = External::new(client, namespace, secret, operator_of(&trust_domain));
        let keys = external.load(now).await?;
        Ok(Ca::new(Origin::External(external), trust_domain, leaf_lifetime, keys, false))
    }

    fn new(
        origin: Origin,
        trust_domain: TrustDomain,
        leaf_lifetime: SignedDuration,
        keys: Keys,
        is_new: bool,
    ) -> Ca {
        let operator = operator_of(&trust_domain);
        let bundle = watch::Sender::new(pem_of(&keys.roots));
        let (keys, trouble) = (ArcSwap::from_pointee(keys), watch::Sender::new(None));
        Ca { origin, trust_domain, operator, leaf_lifetime, is_new, keys, bundle, trouble }
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
        self.bundle.borrow().clone()
    }

    /// The same, and what they become.
    pub(crate) fn bundle(&self) -> watch::Receiver<String> {
        self.bundle.subscribe()
    }

    /// The roots to trust. The same allocation as long as they are the same.
    pub(crate) fn roots(&self) -> Arc<[Root]> {
        Arc::clone(&self.keys.load().roots)
    }

    /// The root of what signs.
    #[cfg(test)]
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.keys.load().signs.root.clone()
    }

    /// SHA-256 of the root's DER: what a join string pins.
    pub(crate) fn root_fingerprint(&self) -> [u8; 32] {
        self.roots()[0].fingerprint()
    }

    /// The same of every root to trust: what a pod pins.
    pub(crate) fn fingerprints(&self) -> Vec<[u8; 32]> {
        self.roots().iter().map(Root::fingerprint).collect()
    }

    /// What is wrong with what signs, for people; nothing while all is well.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// The life of the intermediate.
    pub(crate) fn intermediate(&self) -> Held {
        self.keys.load().signs.held
    }

    /// Whether the intermediate is renewed here, and not by whoever keeps it.
    pub(crate) fn renews_itself(&self) -> bool {
        !matches!(self.origin, Origin::External(_))
    }

    /// Replaces the intermediate. Leaves of the old one stay valid.
    ///
    /// # Errors
    /// If the root's key cannot be read, or the new pair not written.
    pub(crate) async fn renew_intermediate(&self, now: Timestamp) -> Result<(), CaError> {
        let next = match &self.origin {
            Origin::Folder(folder) => {
                let root = self.keys.load().roots[0].clone();
                let pair = folder.root_again()?;
                if pair.cert != root.cert {
                    return Err(CaError::Replaced { place: folder.place().cert.clone() });
                }
                let made = folder.keep(pair.make_intermediate(&self.trust_domain, &root, now)?)?;
                let signs = Intermediate::of(made, &root)?.ok_or(CaError::Unsigned)?;
                Keys { roots: self.roots(), signs }
            }
            Origin::Secret(secret) => self.keys_of_mine(&secret.again().await?, secret, now)?,
            Origin::External(external) => external.load(now).await?,
        };
        self.take(next);
        Ok(())
    }

    /// Takes over what the Secret holds now. True if that is something else than before.
    ///
    /// # Errors
    /// If it cannot be read, or cannot be taken over; what was in force stays.
    pub(crate) async fn follow(&self, now: Timestamp) -> Result<bool, CaError> {
        let next = match &self.origin {
            Origin::Folder(_) => return Ok(false),
            Origin::Secret(secret) => {
                let ring = secret.again().await?;
                let present = self.keys.load();
                if present.signs.root == ring.signer.cert && same(&present.roots, ring.trusted()) {
                    return Ok(false);
                }
                self.keys_of_mine(&ring, secret, now)?
            }
            Origin::External(external) => {
                let next = external.load(now).await?;
                let present = self.keys.load();
                if present.signs.cert == next.signs.cert && present.roots == next.roots {
                    return Ok(false);
                }
                // What others do not trust yet, must not sign.
                if !present.roots.iter().any(|root| root.cert == next.signs.root) {
                    return Err(external.unknown_root());
                }
                next
            }
        };
        self.take(next);
        Ok(true)
    }

    fn take(&self, keys: Keys) {
        let pem = pem_of(&keys.roots);
        self.keys.store(Arc::new(keys));
        self.bundle.send_if_modified(|before| {
            let news = *before != pem;
            *before = pem;
            news
        });
    }

    /// What a ring gives, if it goes on from what is in force: a root that is trusted still is.
    fn keys_of_mine(&self, ring: &Ring, secret: &RootSecret, now: Timestamp) -> Result<Keys, CaError> {
        let present = self.roots();
        if !ring.trusted().any(|cert| present.iter().any(|root| root.cert == *cert)) {
            return Err(CaError::Replaced { place: secret.place().cert.clone() });
        }
        keys_of(ring, secret, &self.trust_domain, now)
    }

    /// Begins to replace the root: a new one is trusted from now on.
    ///
    /// # Errors
    /// If the root is not ours to replace, is being replaced already, or the Secret cannot be written.
    pub(crate) async fn begin_rotation(&self, now: Timestamp) -> Result<(), CaError> {
        let Origin::Secret(secret) = &self.origin else { return Err(CaError::NotOurs) };
        secret.introduce(&Pair::make_root(&self.trust_domain, now)?, now).await?;
        self.follow(now).await.map(drop)
    }

    /// How far the replacement of the root is.
    ///
    /// # Errors
    /// If the Secret cannot be read.
    pub(crate) async fn rotation(&self) -> Result<Rotation, CaError> {
        match &self.origin {
            Origin::Secret(secret) => Ok(secret.again().await?.rotation),
            Origin::Folder(_) | Origin::External(_) => Ok(Rotation::Settled),
        }
    }

    /// Does the next step of a replacement that is under way, if it is time for it; for the leader. `behind` counts
    /// the proxies that have not acknowledged the new root.
    ///
    /// # Errors
    /// If the Secret cannot be read or written, or somebody else wrote it first: the next look finds what they wrote.
    pub(crate) async fn advance_rotation(
        &self,
        overlap: SignedDuration,
        behind: usize,
        now: Timestamp,
    ) -> Result<Step, CaError> {
        let Origin::Secret(secret) = &self.origin else { return Ok(Step::Rest) };
        let rotation = secret.again().await?.rotation;
        let step = rotation::next(rotation, overlap, behind, now);
        match step {
            Step::Rest | Step::Wait { .. } | Step::Behind { .. } => return Ok(step),
            Step::HandOver => secret.hand_over(rotation, now).await?,
            Step::Forget => secret.forget(rotation).await?,
        }
        self.follow(now).await?;
        Ok(step)
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
        let keys = self.keys.load();
        let uri = admitted.identity.to_string();
        let leaf = keys.signs.leaf(&admitted.key, uri, instance.as_str(), self.leaf_lifetime, now)?;
        Ok(Issued {
            chain_pem: keys.signs.chain().fold(cert_pem(&leaf.cert), |chain, cert| chain + &cert_pem(cert)),
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
        let signs = &self.keys.load().signs;
        let leaf = signs.leaf(&key, self.operator.to_string(), dns, self.leaf_lifetime, now)?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        let chain = [&leaf.cert].into_iter().chain(signs.chain()).chain([&signs.root]);
        Ok(ServerLeaf {
            chain: chain.cloned().collect(),
            key: der.into(),
            held: Held { certificate: Certificate::Server, issued_at: now, not_after: leaf.not_after },
        })
    }
}

fn operator_of(trust_domain: &TrustDomain) -> Identity {
    #[expect(clippy::expect_used, reason = "whatever the trust domain, the text is canonical")]
    operator_identity(trust_domain.as_str()).parse().expect("an identity")
}

/// What a ring of roots gives: all are trusted, and a new intermediate of the one that signs.
fn keys_of(
    ring: &Ring,
    secret: &RootSecret,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<Keys, CaError> {
    let root = |cert: &CertificateDer<'static>| Root::of(cert.clone(), trust_domain, now, secret.place());
    let roots: Arc<[Root]> = ring.trusted().map(root).collect::<Result<_, _>>()?;
    let made = ring.signer.make_intermediate(trust_domain, &roots[0], now)?;
    let signs = Intermediate::of(made, &roots[0])?.ok_or(CaError::Unsigned)?;
    Ok(Keys { roots, signs })
}

fn same<'a>(roots: &[Root], certs: impl Iterator<Item = &'a CertificateDer<'static>>) -> bool {
    roots.iter().map(|root| &root.cert).eq(certs)
}

fn pem_of(roots: &[Root]) -> String {
    roots.iter().map(|root| cert_pem(&root.cert)).collect()
}

fn check_leaf_lifetime(given: SignedDuration) -> Result<(), CaError> {
    let in_range = given >= SignedDuration::from_secs(10) && given <= LONGEST_LEAF;
    if in_range { Ok(()) } else { Err(CaError::LeafLifetime { given }) }
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
