//! Certificates: when to renew them, and which requests for one are granted.

pub mod rotation;

use crate::id::Identity;
use jiff::{SignedDuration, Timestamp};

/// How far before the moment of issue a certificate's validity starts, so that a peer whose clock is behind by no
/// more than this can use it at once.
pub const BACK_DATED: SignedDuration = SignedDuration::from_mins(10);

/// The longest life of a workload's leaf.
pub const LONGEST_LEAF: SignedDuration = SignedDuration::from_hours(24);

/// The longest certificate request that is looked at, in bytes of DER. One for a P-256 key and one URI has about
/// 300.
pub const LONGEST_REQUEST: usize = 4096;

/// The longest URI SAN, in bytes (SPIFFE-ID, section 2.3).
pub const LONGEST_URI: usize = 2048;

/// A certificate that the operator holds for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Certificate {
    /// Signs the leaves; signed by the root.
    Intermediate,
    /// What the operator shows to sidecars.
    Server,
}

/// The life of a certificate that the operator holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Held {
    /// Which one.
    pub certificate: Certificate,
    /// When it was issued: the start of its validity plus [`BACK_DATED`].
    pub issued_at: Timestamp,
    /// When its validity ends.
    pub not_after: Timestamp,
}

impl Held {
    /// When to renew it.
    pub fn renew_at(&self) -> Timestamp {
        renew_at(self.issued_at, self.not_after, "airlane")
    }
}

/// A certificate to renew now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Renewal {
    /// Which one.
    pub certificate: Certificate,
    /// Why.
    pub because: Because,
}

/// Why a certificate is renewed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Because {
    /// About half of its life is over.
    HalfLife,
    /// Its validity lies in the future: the clock went back since it was issued.
    NotYetValid,
}

/// Which of the operator's own certificates to renew now, issuers before what they sign.
pub fn due(held: &[Held], now: Timestamp) -> Vec<Renewal> {
    let mut renewals: Vec<Renewal> = held
        .iter()
        .filter_map(|held| {
            let because = if now >= held.renew_at() {
                Because::HalfLife
            } else if now < held.issued_at.saturating_sub(BACK_DATED).unwrap_or(Timestamp::MIN) {
                Because::NotYetValid
            } else {
                return None;
            };
            Some(Renewal { certificate: held.certificate, because })
        })
        .collect();
    renewals.sort_by_key(|renewal| renewal.certificate);
    renewals
}

/// When to ask for the next certificate: at half of the lifetime, moved by up to a twentieth of it either way by a
/// hash of the holder's name, so that workloads that started together do not renew together.
///
/// The lifetime counts from the moment of issue, not from the back-dated start of the validity: a leaf shorter than
/// [`BACK_DATED`] would be due before it exists.
pub fn renew_at(issued_at: Timestamp, not_after: Timestamp, holder: &str) -> Timestamp {
    let lifetime_ms = not_after.duration_since(issued_at).as_millis().max(0);
    // 0.45 … 0.55 of the lifetime.
    let parts = 4500 + i128::from(fnv1a(holder.as_bytes()) % 1001);
    let wait_ms = i64::try_from(lifetime_ms * parts / 10_000).unwrap_or(i64::MAX);
    issued_at.saturating_add(SignedDuration::from_millis(wait_ms)).unwrap_or(not_after)
}

/// FNV-1a, 64 bits, as published by its authors: stable across versions and machines, unlike the standard
/// library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What a certificate request says, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Whether its key is ECDSA on P-256.
    pub p256: bool,
    /// Whether its signature was made with its own key.
    pub self_signed: bool,
    /// Every subject alternative name, of every extension request in it.
    pub names: Vec<AskedName>,
    /// Whether it asks for a certificate that may sign others.
    pub authority: bool,
    /// Whether it asks for anything else that a leaf of ours does not have.
    pub more: bool,
}

/// A subject alternative name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AskedName {
    /// A URI.
    Uri(String),
    /// A name of any other type.
    Other,
}

/// Why a certificate request is refused. A request is never mended: what it asks for is what is signed, or nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is no PKCS#10 request.
    #[error("the certificate request is not a PKCS#10 request in DER; make a new one")]
    Malformed,
    /// It is longer than [`LONGEST_REQUEST`].
    #[error(
        "the certificate request is longer than {LONGEST_REQUEST} bytes; ask for one URI SAN and nothing else"
    )]
    TooLong,
    /// The key is of another kind.
    #[error("the certificate request's key is not ECDSA on P-256; make a key of that kind")]
    Key,
    /// Whoever sent it does not hold the key.
    #[error("the certificate request is not signed with its own key; sign it with the key it is for")]
    Signature,
    /// It asks to be an authority.
    #[error(
        "the certificate request asks for an authority (CA:TRUE, keyCertSign or cRLSign); ask for a leaf"
    )]
    Authority,
    /// It asks for an extension that a leaf does not have.
    #[error(
        "the certificate request asks for an extension that a leaf does not have; ask for one URI SAN only"
    )]
    Extension,
    /// It asks for no name, or more than one, or for one that is no URI.
    #[error("the certificate request must ask for exactly one subject alternative name, the URI {expected}")]
    Names {
        /// The identity it would have been signed for.
        expected: Identity,
    },
    /// Its URI is longer than [`LONGEST_URI`].
    #[error("the certificate request's URI SAN is longer than {LONGEST_URI} bytes")]
    LongUri,
    /// Whoever asks has the operator's own identity.
    #[error(
        "{identity} is the operator itself; run the workload under another service account, or in another namespace"
    )]
    Operator {
        /// The identity.
        identity: Identity,
    },
    /// It asks for somebody else's identity, or writes this one in another form.
    #[error(
        "the certificate request asks for another URI SAN than {expected}; write it in exactly this form"
    )]
    OtherIdentity {
        /// The identity it would have been signed for.
        expected: Identity,
    },
}

/// Whether a leaf for `identity` may be signed on this request.
///
/// # Errors
/// A [`Refusal`] unless the request asks, with a P-256 key that its sender holds, for exactly the canonical URI of
/// the identity.
pub fn admit(asked: &Asked, identity: &Identity) -> Result<(), Refusal> {
    if !asked.p256 {
        return Err(Refusal::Key);
    }
    if !asked.self_signed {
        return Err(Refusal::Signature);
    }
    if asked.authority {
        return Err(Refusal::Authority);
    }
    let [AskedName::Uri(uri)] = &asked.names[..] else {
        return Err(Refusal::Names { expected: identity.clone() });
    };
    if uri.len() > LONGEST_URI {
        return Err(Refusal::LongUri);
    }
    // Two texts may name one identity to a lax reader; only ours is signed, so bytes are compared.
    if *uri != identity.to_string() {
        return Err(Refusal::OtherIdentity { expected: identity.clone() });
    }
    if asked.more {
        return Err(Refusal::Extension);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).expect("in range")
    }

    fn identity() -> Identity {
        "spiffe://airlane.local/ns/shop/sa/pay".parse().expect("canonical")
    }

    fn good() -> Asked {
        Asked {
            p256: true,
            self_signed: true,
            names: vec![AskedName::Uri(identity().to_string())],
            authority: false,
            more: false,
        }
    }

    fn check(asked: &Asked, expected: &Result<(), Refusal>) {
        assert_eq!(admit(asked, &identity()), *expected, "{asked:?}");
    }

    #[test]
    fn the_identity_itself_is_admitted_and_nothing_else() {
        let expected = identity();
        check(&good(), &Ok(()));
        check(&Asked { p256: false, ..good() }, &Err(Refusal::Key));
        check(&Asked { self_signed: false, ..good() }, &Err(Refusal::Signature));
        check(&Asked { authority: true, ..good() }, &Err(Refusal::Authority));
        check(&Asked { more: true, ..good() }, &Err(Refusal::Extension));
        let names = || Err(Refusal::Names { expected: expected.clone() });
        check(&Asked { names: vec![], ..good() }, &names());
        check(&Asked { names: vec![AskedName::Other], ..good() }, &names());
        let twice = vec![AskedName::Uri(identity().to_string()); 2];
        check(&Asked { names: twice, ..good() }, &names());
        let with_dns = vec![AskedName::Uri(identity().to_string()), AskedName::Other];
        check(&Asked { names: with_dns, ..good() }, &names());
        let long = format!("spiffe://airlane.local/ns/shop/sa/{}", "x".repeat(LONGEST_URI));
        check(&Asked { names: vec![AskedName::Uri(long)], ..good() }, &Err(Refusal::LongUri));
    }

    #[test]
    fn another_writing_of_the_identity_is_refused_not_mended() {
        for uri in [
            "",
            "spiffe://airlane.local/ns/shop/sa/orders",
            "spiffe://airlane.local/ns/other/sa/pay",
            "spiffe://elsewhere/ns/shop/sa/pay",
            "spiffe://airlane.local/ns/shop/sa/pay/",
            "spiffe://airlane.local/ns/shop/sa//pay",
            "spiffe://airlane.local/ns/shop/sa/x/../pay",
            "spiffe://airlane.local/ns/shop/sa/%70ay",
            "spiffe://airlane.local/ns/shop%2Fsa/pay",
            "spiffe://airlane.local/ns/shop/sa/*",
            "spiffe://airlane.local/ns/shop/sa/pay\0",
            "spiffe://airlane.local/ns/shop/sa/pay\0.evil",
            "spiffe://airlane.local/ns/shop/sa/p\u{0430}y",
            "spiffe://Airlane.local/ns/shop/sa/pay",
            "SPIFFE://airlane.local/ns/shop/sa/pay",
            "spiffe://airlane.local:443/ns/shop/sa/pay",
            "spiffe://u@airlane.local/ns/shop/sa/pay",
            "spiffe://airlane.local/ns/shop/sa/pay?a",
            "spiffe://airlane.local/ns/shop/sa/pay#a",
            " spiffe://airlane.local/ns/shop/sa/pay",
        ] {
            let asked = Asked { names: vec![AskedName::Uri(uri.into())], ..good() };
            check(&asked, &Err(Refusal::OtherIdentity { expected: identity() }));
        }
    }

    #[test]
    fn renewal_is_near_half_life_and_spread() {
        let (issued, day) = (at(1_000_000), 86_400);
        let times: std::collections::BTreeSet<Timestamp> =
            (0..200).map(|n| renew_at(issued, at(1_000_000 + day), &format!("pay-v1-{n}"))).collect();
        let share = |t: &Timestamp| t.duration_since(issued).as_secs_f64() / day as f64;
        assert!(times.iter().all(|t| (0.45..=0.55).contains(&share(t))), "{times:?}");
        assert!(times.len() > 150, "only {} different times of 200", times.len());
        let width = share(times.last().expect("some")) - share(times.first().expect("some"));
        assert!(width > 0.08, "spread over {width} of the lifetime");
        assert_eq!(renew_at(issued, at(1_000_060), "a"), renew_at(issued, at(1_000_060), "a"));
    }

    #[test]
    fn a_leaf_shorter_than_the_back_dating_is_still_renewed_in_its_second_half() {
        let renew = renew_at(at(1000), at(1060), "pay-v1-x");
        assert!(renew >= at(1027) && renew <= at(1033), "{renew}");
        assert_eq!(renew_at(at(1000), at(900), "x"), at(1000), "an ended life is due at once");
    }

    #[test]
    fn the_operators_own_certificates_are_due_at_half_life_issuer_first() {
        let held = |certificate, until| Held { certificate, issued_at: at(0), not_after: at(until) };
        let both = [held(Certificate::Server, 1000), held(Certificate::Intermediate, 2000)];
        assert_eq!(due(&both, at(440)), []);
        let half = |certificate| Renewal { certificate, because: Because::HalfLife };
        assert_eq!(due(&both, at(560)), [half(Certificate::Server)]);
        assert_eq!(due(&both, at(5000)), [half(Certificate::Intermediate), half(Certificate::Server)]);
    }

    #[test]
    fn a_clock_that_went_back_makes_a_certificate_due() {
        let held = Held { certificate: Certificate::Server, issued_at: at(10_000), not_after: at(90_000) };
        assert_eq!(due(&[held], at(9_500)), [], "within the back-dating it is valid");
        let expected = Renewal { certificate: Certificate::Server, because: Because::NotYetValid };
        assert_eq!(due(&[held], at(9_000)), [expected]);
    }
}
