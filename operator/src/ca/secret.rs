//! A root kept in a Secret of the operator's namespace. All replicas share it; each has an intermediate of its own,
//! in memory.

use super::{
    authority::{Pair, Place, cert_pem},
    error::CaError,
};
use airlane_core::id::{Namespace, TrustDomain};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use std::collections::BTreeMap;
use zeroize::{Zeroize as _, Zeroizing};

/// The Secret's name, and its keys.
const NAME: &str = "airlane-root";
const CERT: &str = "root.crt";
const KEY: &str = "root.key";

/// The Secret with the root.
#[derive(Debug)]
pub(super) struct RootSecret {
    secrets: Api<Secret>,
    /// The Secret, for people.
    name: String,
    place: Place,
}

impl RootSecret {
    /// The Secret in this namespace.
    pub(super) fn new(client: Client, namespace: &Namespace) -> RootSecret {
        let name = format!("Secret {namespace}/{NAME}");
        let place = Place {
            cert: format!("{CERT} of {name}"),
            key: format!("{KEY} of {name}"),
            mend: ", or delete the Secret for a new root and start the operator and every workload anew",
            other_domain: "start the operator with the trust domain of that root, or delete the Secret for a new one",
        };
        RootSecret { secrets: Api::namespaced(client, namespace.as_str()), name, place }
    }

    /// Where the root is.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The root; a new one if there is none, which is told. Whoever comes first makes it, and the others read it.
    pub(super) async fn root(
        &self,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<(Pair, bool), CaError> {
        if let Some(pair) = self.load().await? {
            return Ok((pair, false));
        }
        let mut pair = Pair::make_root(trust_domain, now)?;
        let mut secret = self.secret_of(&pair);
        let created = self.secrets.create(&PostParams::default(), &secret).await;
        wipe(&mut secret);
        pair.key.zeroize();
        match created {
            Ok(mut created) => {
                wipe(&mut created);
                Ok((pair, true))
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                Ok((self.root_again().await?, false))
            }
            Err(source) => Err(self.failed("create", source)),
        }
    }

    /// The root's key again.
    pub(super) async fn root_again(&self) -> Result<Pair, CaError> {
        let Place { cert, mend, .. } = self.place();
        self.load().await?.ok_or_else(|| CaError::Missing { place: cert.clone(), mend })
    }

    async fn load(&self) -> Result<Option<Pair>, CaError> {
        let found = self.secrets.get_opt(NAME).await.map_err(|source| self.failed("get", source))?;
        let Some(mut secret) = found else { return Ok(None) };
        let pair = self.pair_in(&secret);
        wipe(&mut secret);
        pair.map(Some)
    }

    /// The pair in the Secret. What is damaged is never replaced: somebody may have a backup, and every certificate in
    /// the mesh hangs on it.
    fn pair_in(&self, secret: &Secret) -> Result<Pair, CaError> {
        let value = |key: &str, place: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value
                .map(|ByteString(bytes)| bytes)
                .ok_or_else(|| CaError::Missing { place: place.to_owned(), mend: self.place.mend })
        };
        let (cert, key) = (value(CERT, &self.place.cert)?, value(KEY, &self.place.key)?);
        let not_text = |_| self.place.content(&self.place.key, "an ECDSA P-256 key in PKCS#8 PEM");
        Pair::read(cert, std::str::from_utf8(key).map_err(not_text)?, &self.place)
    }

    fn secret_of(&self, pair: &Pair) -> Secret {
        let key = Zeroizing::new(pair.key.serialize_pem());
        let data = [(CERT, cert_pem(&pair.cert).into_bytes()), (KEY, key.as_bytes().to_vec())];
        let labels = [("app.kubernetes.io/part-of", "airlane"), ("app.kubernetes.io/managed-by", "airlane")];
        Secret {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                labels: Some(BTreeMap::from(labels.map(|(key, value)| (key.to_owned(), value.to_owned())))),
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
