//! The join string: how a sidecar finds its operator, recognises it, and is let in.
//!
//! Text form: `airlane1.` and the base64url, without padding, of a protobuf. It holds a secret: it is handed over
//! in a file of mode 0600 or an environment variable, and never logged.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;
use std::{fmt, str::FromStr};

/// The DNS SAN of the operator's certificate, and the server name to ask for.
pub const OPERATOR_DNS_NAME: &str = "airlane";

/// How every join string starts.
pub const PREFIX: &str = "airlane1.";

/// Longer texts are refused unread, in bytes.
const LENGTH_MAX: usize = 4096;

/// The URI SAN of the operator's certificate.
pub fn operator_identity(trust_domain: &str) -> String {
    workload_identity(trust_domain, "airlane-system", "airlane")
}

/// The URI SAN of a workload's certificate.
pub fn workload_identity(trust_domain: &str, namespace: &str, service: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service}")
}

/// What a join string says.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinInfo {
    /// Where the operator listens, `host:port`.
    pub address: String,
    /// SHA-256 of the root certificate's DER: what makes the operator the right one.
    pub root_fingerprint: [u8; 32],
    /// The trust domain that the root signs for.
    pub trust_domain: String,
    /// The secret part: what lets the sidecar in.
    pub secret: String,
}

/// The protobuf inside the text.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
struct Encoded {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(bytes = "vec", tag = "2")]
    root_fingerprint: Vec<u8>,
    #[prost(string, tag = "3")]
    trust_domain: String,
    #[prost(string, tag = "4")]
    secret: String,
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").finish_non_exhaustive()
    }
}

/// Why a text is no join string. No variant repeats the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadJoinString {
    /// It does not start as one.
    #[error(
        "this is not a join string: it must start with \"{PREFIX}\"; use the whole output of `airlane token create`"
    )]
    Prefix,
    /// It is longer than any join string.
    #[error(
        "the join string is longer than {LENGTH_MAX} bytes; use only the output of `airlane token create`"
    )]
    Length,
    /// It does not decode: most often a part was cut off.
    #[error(
        "the join string is damaged, perhaps cut off; copy it again, or make a new one with `airlane token create`"
    )]
    Damaged,
    /// A field holds what no operator writes there.
    #[error("the join string's {0} is not valid; make a new one with `airlane token create`")]
    Field(&'static str),
}

impl fmt::Display for JoinInfo {
    /// The text form, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = Encoded {
            address: self.address.clone(),
            root_fingerprint: self.root_fingerprint.to_vec(),
            trust_domain: self.trust_domain.clone(),
            secret: self.secret.clone(),
        };
        write!(f, "{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(encoded.encode_to_vec()))
    }
}

impl fmt::Debug for JoinInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinInfo")
            .field("address", &self.address)
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinInfo {
    type Err = BadJoinString;

    fn from_str(text: &str) -> Result<Self, BadJoinString> {
        let text = text.trim();
        if text.len() > LENGTH_MAX {
            return Err(BadJoinString::Length);
        }
        let body = text.strip_prefix(PREFIX).ok_or(BadJoinString::Prefix)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(body).map_err(|_| BadJoinString::Damaged)?;
        let encoded = Encoded::decode(&bytes[..]).map_err(|_| BadJoinString::Damaged)?;
        let root_fingerprint =
            encoded.root_fingerprint.try_into().map_err(|_| BadJoinString::Field("root fingerprint"))?;
        if !is_host_and_port(&encoded.address) {
            return Err(BadJoinString::Field("address"));
        }
        if !is_trust_domain(&encoded.trust_domain) {
            return Err(BadJoinString::Field("trust domain"));
        }
        if encoded.secret.is_empty() || !encoded.secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BadJoinString::Field("secret"));
        }
        Ok(JoinInfo {
            address: encoded.address,
            root_fingerprint,
            trust_domain: encoded.trust_domain,
            secret: encoded.secret,
        })
    }
}

/// `host:port` or `[v6]:port`, with nothing that could change the meaning of a URL it is put in.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_is_good = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
    };
    host_is_good && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_trust_domain(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty() && text.len() <= 255 && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> JoinInfo {
        JoinInfo {
            address: "127.0.0.1:15010".into(),
            root_fingerprint: [7; 32],
            trust_domain: "airlane.local".into(),
            secret: "s3cr3t".into(),
        }
    }

    fn check(change: impl FnOnce(&mut JoinInfo), expected: Result<(), BadJoinString>) {
        let mut info = info();
        change(&mut info);
        let read = info.to_string().parse::<JoinInfo>();
        assert_eq!(read, expected.map(|()| info));
    }

    #[test]
    fn reads_back_what_it_prints() {
        check(|_| {}, Ok(()));
        check(|i| i.address = "[::1]:15010".into(), Ok(()));
        check(|i| i.address = "mesh.example:1".into(), Ok(()));
        let spaced = format!(" {}\n", info());
        assert_eq!(spaced.parse::<JoinInfo>(), Ok(info()));
    }

    #[test]
    fn refuses_fields_no_operator_writes() {
        for address in ["", "localhost", "h:0", "h:70000", "u@h:1", "h/p:1", "::1:80", "[x]:1"] {
            check(|i| i.address = address.into(), Err(BadJoinString::Field("address")));
        }
        for domain in ["", "A", "a/b", "a b"] {
            check(|i| i.trust_domain = domain.into(), Err(BadJoinString::Field("trust domain")));
        }
        check(|i| i.secret = String::new(), Err(BadJoinString::Field("secret")));
    }

    #[test]
    fn names_what_is_wrong_with_the_text() {
        let text = info().to_string();
        let cases = [
            ("", BadJoinString::Prefix),
            ("airlane2.abc", BadJoinString::Prefix),
            (&text[..text.len() - 3], BadJoinString::Damaged),
            ("airlane1.!!", BadJoinString::Damaged),
            ("airlane1.", BadJoinString::Field("root fingerprint")),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<JoinInfo>(), Err(expected), "{text}");
        }
        assert_eq!("x".repeat(5000).parse::<JoinInfo>(), Err(BadJoinString::Length));
    }

    #[test]
    fn debug_keeps_the_secret() {
        assert!(!format!("{:?}", info()).contains("s3cr3t"));
    }
}
