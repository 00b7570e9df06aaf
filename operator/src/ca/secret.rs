//! A root kept in a Secret of the operator's namespace. All replicas share it; each has an intermediate of its own,
//! in memory. While the root is replaced, the other root of the two is beside it: whichever keys the Secret has, says
//! how far that is.

use super::{
    authority::{Pair, Place, cert_pem, read_cert},
    error::CaError,
};
use crate::marks::{ROOT, of_ours};
use airlane_core::{
    id::{Namespace, TrustDomain},
    pki::rotation::Rotation,
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams, core::PartialObjectMeta};
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use zeroize::{Zeroize as _, Zeroizing};

/// The root that signs.
const CERT: &str = "root.crt";
const KEY: &str = "root.key";
/// The one that will.
const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// The one that did. Its key is gone.
const OLD_CERT: &str = "old.crt";
/// Since when one of these two is there.
const SINCE: &str = "since";

type Data = BTreeMap<String, ByteString>;

/// The roots in the Secret.
pub(super) struct Ring {
    /// The one that signs.
    pub(super) signer: Pair,
    /// The other one that is trusted, while there is one.
    other: Option<CertificateDer<'static>>,
    /// How far its replacement is.
    pub(super) rotation: Rotation,
}

impl Ring {
    /// The roots to trust, the one that signs first.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        [&self.signer.cert].into_iter().chain(&self.other)
    }
}

/// The Secret with the root.
#[derive(Debug)]
pub(super) struct RootSecret {
    secrets: Api<Secret>,
    outline: Api<PartialObjectMeta<Secret>>,
    /// The Secret, for people.
    name: String,
    place: Place,
}

impl RootSecret {
    /// The Secret in this namespace.
    pub(super) fn new(client: Client, namespace: &Namespace) -> RootSecret {
        let name = format!("Secret {namespace}/{ROOT}");
        let place = Place {
            cert: format!("{CERT} of {name}"),
            key: format!("{KEY} of {name}"),
            mend: ", or delete the Secret for a new root and start the operator and every workload anew",
            other_domain: "start the operator with the trust domain of that root, or delete the Secret for a new one",
        };
        let outline = Api::namespaced(client.clone(), namespace.as_str());
        RootSecret { secrets: Api::namespaced(client, namespace.as_str()), outline, name, place }
    }

    /// Where the root is.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Where to hear that it changed, and not to what.
    pub(super) fn outline(&self) -> Api<PartialObjectMeta<Secret>> {
        self.outline.clone()
    }

    /// The roots; a new one if there is none, which is told. Whoever comes first makes it, and the others read it.
    pub(super) async fn open(
        &self,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<(Ring, bool), CaError> {
        if let Some(ring) = self.load().await? {
            return Ok((ring, false));
        }
        let mut pair = Pair::make_root(trust_domain, now)?;
        let mut secret = self.secret_of(&pair);
        let created = self.secrets.create(&PostParams::default(), &secret).await;
        wipe(&mut secret);
        pair.key.zeroize();
        match created {
            Ok(mut created) => {
                wipe(&mut created);
                Ok((Ring { signer: pair, other: None, rotation: Rotation::Settled }, true))
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok((self.again().await?, false)),
            Err(source) => Err(self.failed("create", source)),
        }
    }

    /// The roots again.
    pub(super) async fn again(&self) -> Result<Ring, CaError> {
        self.load().await?.ok_or_else(|| self.missing(&self.place.cert))
    }

    /// Puts a new root beside the one that signs.
    pub(super) async fn introduce(&self, next: &Pair, now: Timestamp) -> Result<(), CaError> {
        let key = Zeroizing::new(next.key.serialize_pem());
        let cert = cert_pem(&next.cert);
        self.edit(|data, rotation| match rotation {
            Rotation::Settled => {
                data.insert(NEXT_CERT.to_owned(), ByteString(cert.into_bytes()));
                data.insert(NEXT_KEY.to_owned(), ByteString(key.as_bytes().to_vec()));
                data.insert(SINCE.to_owned(), ByteString(now.to_string().into_bytes()));
                Ok(())
            }
            Rotation::Introduced { at } | Rotation::HandedOver { at } => Err(CaError::UnderWay { since: at }),
        })
        .await
    }

    /// Lets the new root sign, of a replacement that is as far as it was when this was decided; the key of the old one is
    /// gone with that.
    pub(super) async fn hand_over(&self, decided: Rotation, now: Timestamp) -> Result<(), CaError> {
        self.edit(|data, rotation| {
            if rotation != decided {
                return Err(CaError::Meanwhile);
            }
            if let (Some(cert), Some(key)) = (data.remove(NEXT_CERT), data.remove(NEXT_KEY)) {
                if let Some(mut old) = data.insert(KEY.to_owned(), key) {
                    old.0.zeroize();
                }
                let old = data.insert(CERT.to_owned(), cert);
                data.extend(old.map(|old| (OLD_CERT.to_owned(), old)));
                data.insert(SINCE.to_owned(), ByteString(now.to_string().into_bytes()));
            }
            Ok(())
        })
        .await
    }

    /// Forgets the old root, of a replacement that is as far as it was when this was decided.
    pub(super) async fn forget(&self, decided: Rotation) -> Result<(), CaError> {
        self.edit(|data, rotation| {
            if rotation != decided {
                return Err(CaError::Meanwhile);
            }
            for key in [OLD_CERT, SINCE] {
                data.remove(key);
            }
            Ok(())
        })
        .await
    }

    /// Changes the Secret, unless somebody else does at the same time.
    async fn edit(
        &self,
        edit: impl FnOnce(&mut Data, Rotation) -> Result<(), CaError>,
    ) -> Result<(), CaError> {
        let found = self.secrets.get_opt(ROOT).await.map_err(|source| self.failed("get", source))?;
        let mut secret = found.ok_or_else(|| self.missing(&self.place.cert))?;
        let rotation = self.ring_in(&secret).map(|ring| ring.rotation);
        let edited = rotation.and_then(|rotation| edit(secret.data.get_or_insert_default(), rotation));
        let written = match edited {
            // It carries the version that it was read with.
            Ok(()) => match self.secrets.replace(ROOT, &PostParams::default(), &secret).await {
                Ok(mut written) => {
                    wipe(&mut written);
                    Ok(())
                }
                Err(source) => Err(self.failed("update", source)),
            },
            Err(error) => Err(error),
        };
        wipe(&mut secret);
        written
    }

    async fn load(&self) -> Result<Option<Ring>, CaError> {
        let found = self.secrets.get_opt(ROOT).await.map_err(|source| self.failed("get", source))?;
        let Some(mut secret) = found else { return Ok(None) };
        let ring = self.ring_in(&secret);
        wipe(&mut secret);
        ring.map(Some)
    }

    fn missing(&self, place: &str) -> CaError {
        CaError::Missing { place: place.to_owned(), mend: self.place.mend }
    }

    /// What is in the Secret. What is damaged is never replaced: somebody may have a backup, and every certificate in
    /// the mesh hangs on it.
    fn ring_in(&self, secret: &Secret) -> Result<Ring, CaError> {
        let empty = Data::new();
        let data = secret.data.as_ref().unwrap_or(&empty);
        let signer = self.pair_in(data, CERT, KEY)?;
        let next = data.contains_key(NEXT_CERT) || data.contains_key(NEXT_KEY);
        let (other, rotation): (_, fn(Timestamp) -> Rotation) = match (next, data.get(OLD_CERT)) {
            (false, None) => return Ok(Ring { signer, other: None, rotation: Rotation::Settled }),
            (true, _) => (self.pair_in(data, NEXT_CERT, NEXT_KEY)?.cert, |at| Rotation::Introduced { at }),
            (false, Some(ByteString(old))) => {
                (read_cert(old, &self.place_of(OLD_CERT, OLD_CERT))?, |at| Rotation::HandedOver { at })
            }
        };
        let since = data.get(SINCE).and_then(|since| std::str::from_utf8(&since.0).ok()?.trim().parse().ok());
        let at = since.ok_or_else(|| {
            self.place.content(&format!("{SINCE} of {}", self.name), "a time such as 2026-01-31T12:00:00Z")
        })?;
        Ok(Ring { signer, other: Some(other), rotation: rotation(at) })
    }

    fn pair_in(&self, data: &Data, cert: &str, key: &str) -> Result<Pair, CaError> {
        let place = self.place_of(cert, key);
        let value = |name: &str, place: &str| {
            data.get(name).map(|ByteString(bytes)| bytes).ok_or_else(|| self.missing(place))
        };
        let (cert, key) = (value(cert, &place.cert)?, value(key, &place.key)?);
        let not_text = |_| place.content(&place.key, "an ECDSA P-256 key in PKCS#8 PEM");
        Pair::read(cert, std::str::from_utf8(key).map_err(not_text)?, &place)
    }

    fn place_of(&self, cert: &str, key: &str) -> Place {
        Place {
            cert: format!("{cert} of {}", self.name),
            key: format!("{key} of {}", self.name),
            mend: self.place.mend,
            other_domain: self.place.other_domain,
        }
    }

    fn secret_of(&self, pair: &Pair) -> Secret {
        let key = Zeroizing::new(pair.key.serialize_pem());
        let data = [(CERT, cert_pem(&pair.cert).into_bytes()), (KEY, key.as_bytes().to_vec())];
        Secret {
            metadata: ObjectMeta {
                name: Some(ROOT.to_owned()),
                labels: Some(of_ours()),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value))).collect()),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }

    fn failed(&self, verb: &'static str, source: kube::Error) -> CaError {
        CaError::Api { verb, place: self.name.clone(), source: Box::new(source) }
    }
}

fn wipe(secret: &mut Secret) {
    for ByteString(bytes) in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        bytes.zeroize();
    }
}

#[cfg(test)]
mod tests;
