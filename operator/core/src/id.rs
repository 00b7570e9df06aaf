//! Names: of namespaces, services, workloads, proxies and of what identifies them on the wire.
//!
//! Every name is validated once, where it enters; a value of these types is well-formed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc};

/// A name that is not a DNS label (RFC 1123): lower-case letters, digits and `-`, at most 63 characters,
/// starting and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a valid name: use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
)]
pub struct BadName {
    /// What was given, cut to 80 characters.
    pub name: String,
}

fn dns_label(s: &str) -> Result<Arc<str>, BadName> {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let bytes = s.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    if bytes.len() <= 63 && bytes.iter().all(inner) && ends_well(bytes.first()) && ends_well(bytes.last()) {
        Ok(s.into())
    } else {
        Err(BadName { name: s.chars().take(80).collect() })
    }
}

/// Dot-separated DNS labels.
fn dns_labels(s: &str) -> Result<Arc<str>, BadName> {
    if s.len() > 255 {
        return Err(BadName { name: s.chars().take(80).collect() });
    }
    s.split('.').try_for_each(|part| dns_label(part).map(drop))?;
    Ok(s.into())
}

/// A name that is no DNS subdomain, as Kubernetes names most of its objects: lower-case letters, digits, `-` and `.`, at
/// most 253 characters, each part between dots starting and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a valid name: use at most 253 lower-case letters, digits, '-' and '.', each part starting and ending with a letter or digit"
)]
pub struct BadSubdomain {
    /// What was given, cut to 80 characters.
    pub name: String,
}

/// Unlike in DNS itself only the whole is bounded (Kubernetes, `IsDNS1123Subdomain`).
fn dns_subdomain(s: &str) -> Result<Arc<str>, BadSubdomain> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    if s.len() <= 253 && s.split('.').all(is_part) {
        Ok(s.into())
    } else {
        Err(BadSubdomain { name: s.chars().take(80).collect() })
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        checked!($(#[$doc])* $name, dns_label, BadName, "a DNS label");
    };
}

macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $check:ident, $error:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("The name if it is ", $what, ".")]
            ///
            /// # Errors
            #[doc = concat!("[`", stringify!($error), "`] if it is not.")]
            pub fn parse(s: &str) -> Result<Self, $error> {
                $check(s).map(Self)
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = $error;
            fn from_str(s: &str) -> Result<Self, $error> {
                Self::parse(s)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = String::deserialize(d)?;
                Self::parse(&s).map_err(serde::de::Error::custom)
            }
        }
    };
}

label!(
    /// A namespace: the unit of ownership and of short names.
    Namespace
);
label!(
    /// The name of a service, a workload or an object inside its namespace.
    Name
);
checked!(
    /// The name of a service account in its namespace.
    ServiceAccount,
    dns_subdomain,
    BadSubdomain,
    "a DNS subdomain"
);

impl From<Name> for ServiceAccount {
    fn from(name: Name) -> Self {
        Self(name.0)
    }
}

label!(
    /// A version of a workload (`v2`, a pod template hash).
    Revision
);
label!(
    /// One running copy of a workload with its proxy; unique in the mesh, the proxy's xDS node id, and the DNS
    /// SAN of its leaf certificate.
    InstanceId
);

impl InstanceId {
    /// The name of a copy that has one in its namespace alone, and something that is unique (a pod's name and UID):
    /// as much of the name as fits, and the first eight characters of the other.
    ///
    /// # Errors
    /// [`BadName`] if that is no DNS label, as it is if either is empty.
    pub fn of_copy(name: &str, unique: &str) -> Result<Self, BadName> {
        let unique: String = unique.chars().take(8).collect();
        // A pod's name may be a DNS subdomain, with dots.
        let name: String = name.chars().take(54).map(|c| if c == '.' { '-' } else { c }).collect();
        Self::parse(&format!("{}-{unique}", name.trim_end_matches('-')))
    }
}

/// A service: what callers name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServiceId {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its name there.
    pub name: Name,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of a service: the unit of routing (one virtual host, one or more clusters).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// The service.
    pub service: ServiceId,
    /// The port callers name.
    pub port: u16,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// The name of a cluster, for ever: `port|service|namespace` or `port|service|namespace|revision`.
///
/// A name always means the same selector, so evidence needs no alignment in time and a promotion moves weights
/// only. It holds no dot: Envoy's statistics split names at dots.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterName {
    /// The service's port.
    pub port: ServicePort,
    /// `None` while no canary has ever targeted the service.
    pub revision: Option<Revision>,
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServicePort { service, port } = &self.port;
        write!(f, "{port}|{}|{}", service.name, service.namespace)?;
        match &self.revision {
            Some(revision) => write!(f, "|{revision}"),
            None => Ok(()),
        }
    }
}

/// A text that is no cluster name of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cluster name of this mesh")]
pub struct NotOurs;

impl FromStr for ClusterName {
    type Err = NotOurs;
    fn from_str(s: &str) -> Result<Self, NotOurs> {
        let mut parts = s.split('|');
        let (Some(port), Some(name), Some(namespace)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NotOurs);
        };
        let revision = parts.next().map(Revision::parse).transpose().map_err(|_| NotOurs)?;
        if parts.next().is_some() {
            return Err(NotOurs);
        }
        Ok(ClusterName {
            port: ServicePort {
                service: ServiceId {
                    namespace: Namespace::parse(namespace).map_err(|_| NotOurs)?,
                    name: Name::parse(name).map_err(|_| NotOurs)?,
                },
                port: port.parse().map_err(|_| NotOurs)?,
            },
            revision,
        })
    }
}

/// A workload at one revision: what shares one [`crate::mesh::Inbound`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct WorkloadRevision {
    /// Where the workload lives.
    pub namespace: Namespace,
    /// The workload's name (standalone: the service's).
    pub workload: Name,
    /// Its revision.
    pub revision: Revision,
}

impl fmt::Display for WorkloadRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.namespace, self.workload, self.revision)
    }
}

/// Who a workload is: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
/// (SPIFFE-ID, standalone: the service account is the service's name).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    /// The authority whose root signs for it.
    pub trust_domain: TrustDomain,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its account.
    pub service_account: ServiceAccount,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = NotOurs;
    /// Only the canonical form is accepted: a text that differs from what [`Identity`] prints is refused, not mended.
    fn from_str(s: &str) -> Result<Self, NotOurs> {
        let rest = s.strip_prefix("spiffe://").ok_or(NotOurs)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", account] = parts[..] else { return Err(NotOurs) };
        Ok(Identity {
            trust_domain: TrustDomain::parse(trust_domain).map_err(|_| NotOurs)?,
            namespace: Namespace::parse(namespace).map_err(|_| NotOurs)?,
            service_account: ServiceAccount::parse(account).map_err(|_| NotOurs)?,
        })
    }
}

/// A SPIFFE trust domain: dot-separated DNS labels, at most 255 characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain if every part is a DNS label.
    ///
    /// # Errors
    /// [`BadName`] if it is not.
    pub fn parse(s: &str) -> Result<Self, BadName> {
        dns_labels(s).map(Self)
    }
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The DNS suffix of a cluster's services (`cluster.local`): dot-separated DNS labels, at most 255 characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterDomain(Arc<str>);

impl ClusterDomain {
    /// The domain if every part is a DNS label.
    ///
    /// # Errors
    /// [`BadName`] if it is not.
    pub fn parse(s: &str) -> Result<Self, BadName> {
        dns_labels(s).map(Self)
    }
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterDomain {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        Self::parse(s)
    }
}

/// An object a user wrote: what problems and origins point at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// `MeshPolicy`, `Canary`, `Service`.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The kinds of objects users write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ObjectKind {
    /// How calls are made and doors are kept.
    MeshPolicy,
    /// A release that proves itself.
    Canary,
    /// Ports and virtual names of a service.
    Service,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::MeshPolicy => "MeshPolicy",
            ObjectKind::Canary => "Canary",
            ObjectKind::Service => "Service",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "payment-svc", "v2", "7f3a", &"x".repeat(63)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "a\0", "ä", &"x".repeat(64)] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn service_accounts_may_have_dots() {
        for good in ["pay", "pay.v2", "a.b.c", &"x".repeat(253)] {
            assert!(ServiceAccount::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a.", ".a", "a..b", "a.-b", "a-.b", "A", "a/b", "a\0", &"x".repeat(254)] {
            assert!(ServiceAccount::parse(bad).is_err(), "{bad:?}");
        }
        let identity = "spiffe://airlane.local/ns/shop/sa/pay.v2";
        assert_eq!(identity.parse::<Identity>().expect("canonical").to_string(), identity);
    }

    #[test]
    fn a_copy_is_named_by_what_tells_it_apart() {
        let uid = "0f4c8e2a-7d51-4b6e-9b57-2f0d1c3a8e77";
        let named = |name: &str| InstanceId::of_copy(name, uid).map(|id| id.to_string());
        assert_eq!(named("pay-7c9f6d-abcde").as_deref(), Ok("pay-7c9f6d-abcde-0f4c8e2a"));
        assert_eq!(named("pay.0").as_deref(), Ok("pay-0-0f4c8e2a"));
        let long = named(&format!("{}-x", "y".repeat(53)));
        assert_eq!(long.map(|id| id.len()), Ok(62), "no dash is doubled where it was cut");
        assert!(named("").is_err());
        assert!(InstanceId::of_copy("pay", "").is_err());
    }

    #[test]
    fn cluster_names_read_back() {
        for text in ["8080|pay|shop", "8080|pay|shop|v2"] {
            let name: ClusterName = text.parse().expect("a cluster name");
            assert_eq!(name.to_string(), text);
        }
        for bad in ["", "8080|pay", "x|pay|shop", "8080|pay|shop|v2|x", "8080|p.y|shop", "70000|pay|shop"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_canonical_identities_are_identities() {
        let good = "spiffe://airlane.local/ns/shop/sa/pay";
        assert_eq!(good.parse::<Identity>().expect("canonical").to_string(), good);
        for bad in [
            "spiffe://airlane.local/ns/shop/sa/pay/",
            "spiffe://airlane.local//ns/shop/sa/pay",
            "spiffe://airlane.local/ns/../sa/pay",
            "spiffe://airlane.local/ns/shop/sa/p%2Fay",
            "spiffe://Airlane.local/ns/shop/sa/pay",
            "spiffe://airlane.local:80/ns/shop/sa/pay",
            "spiffe://airlane.local/ns/shop/sa/pay?x",
            "SPIFFE://airlane.local/ns/shop/sa/pay",
            "spiffe://airlane.local/ns/shop/sa/*",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
