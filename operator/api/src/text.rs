//! The texts whose grammar HTTP, DNS or Kubernetes decided: names of headers and hosts, paths, addresses.

use crate::shape::{Misshapen, Shape, written_as};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

pub(crate) const SHAPES: [&Shape; 7] =
    [&HEADER_NAME, &COOKIE_NAME, &URL_PATH, &HOST, &URL, &STATUS, &SECRET_NAME];

/// A type that is written as a text of one shape and kept as it is written.
macro_rules! text {
    (
        $(#[$doc:meta])* $type:ident, $shape:ident: $pattern:literal, $length_max:literal,
        $description:literal, wrong $wrong:literal, wanted $wanted:literal, $has_shape:expr
    ) => {
        const $shape: Shape = Shape {
            pattern: $pattern,
            length_max: $length_max,
            description: $description,
            wanted: $wanted,
            check: |text| {
                let has_shape: fn(&str) -> bool = $has_shape;
                if text.len() <= $length_max && has_shape(text) {
                    Ok(())
                } else {
                    Err(Misshapen::new(text, $wrong, $wanted))
                }
            },
        };

        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $type(pub String);
        written_as!($type, $shape);

        impl FromStr for $type {
            type Err = Misshapen;
            fn from_str(text: &str) -> Result<Self, Misshapen> {
                ($shape.check)(text).map(|()| $type(text.into()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// The name of a header.
    HeaderName, HEADER_NAME: "^[0-9a-z_-]{1,128}$", 128,
    "The name of a header, in lower case.",
    wrong "is not the name of a header", wanted "write it in lower case, as in x-user",
    |text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
);

text!(
    /// The name of a cookie.
    CookieName, COOKIE_NAME: "^[0-9A-Za-z_.-]{1,128}$", 128,
    "The name of a cookie.",
    wrong "is not the name of a cookie", wanted "use letters, digits, '-', '_' and '.'",
    |text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
);

text!(
    /// A path, or how one begins.
    UrlPath, URL_PATH: "^/[!-\"$->@-~]*$", 1024,
    "A path, as in /charge; without query and fragment.",
    wrong "is not a path", wanted "begin it with '/', and write no blanks, '?' or '#'",
    |text| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b))
);

text!(
    /// A host outside the mesh; `*.` in front stands for everything below it.
    HostText, HOST: r"^(\*\.)?([0-9a-z]([-0-9a-z]{0,61}[0-9a-z])?\.)*[0-9a-z]([-0-9a-z]{0,61}[0-9a-z])?$", 253,
    "A host, as in api.bank.example or *.bank.example.",
    wrong "is not a host", wanted "write a name such as api.bank.example, in lower case, without port and path",
    |text| is_domain(text.strip_prefix("*.").unwrap_or(text), 63)
);

text!(
    /// An address of HTTP.
    UrlText, URL: "^https?://[!-~]+$", 2048,
    "An address that begins with http:// or https://.",
    wrong "is not an address", wanted "begin it with https:// or http://, and write no blanks",
    |text| text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()))
);

text!(
    /// A status of HTTP, or all of one class.
    StatusText, STATUS: "^[1-5](xx|[0-9]{2})$", 3,
    "A status, as in 503, or a class of them, as in 5xx.",
    wrong "is not a status", wanted "write a status such as \"503\", or a class such as \"5xx\"",
    |text| matches!(text.as_bytes(), [b'1'..=b'5', rest @ ..]
        if rest == b"xx" || matches!(rest, [b'0'..=b'9', b'0'..=b'9']))
);

text!(
    /// The name of a Secret.
    SecretName, SECRET_NAME: r"^[0-9a-z]([-0-9a-z]*[0-9a-z])?(\.[0-9a-z]([-0-9a-z]*[0-9a-z])?)*$", 253,
    "The name of a Secret.",
    wrong "is not the name of a Secret", wanted "use lower-case letters, digits, '-' and '.'",
    |text| is_domain(text, 253)
);

/// Whether a text is labels of at most so many characters with dots between them.
fn is_domain(text: &str, label_max: usize) -> bool {
    text.split('.').all(|label| {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.len() <= label_max
            && label.bytes().all(legal)
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// A Secret in the object's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SecretRef {
    /// The Secret's name.
    pub name: SecretName,
    /// The key in it, where more than one would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr<Err = Misshapen>>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text}");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text}");
        }
    }

    #[test]
    fn texts_have_their_grammar() {
        check::<HeaderName>(
            &["x-user", ":authority".trim_start_matches(':'), "x_1"],
            &["", "X-User", ":path", "a b"],
        );
        check::<CookieName>(&["airlane-revision", "A.b"], &["", "a=b", "a;"]);
        check::<UrlPath>(&["/", "/charge", "/a/*"], &["", "charge", "/a?b", "/a#b", "/a b", "/ä"]);
        check::<HostText>(
            &["api.bank.example", "*.bank.example", "bank"],
            &["", "*", "a..b", "API.bank", "bank:443", "bank/x", "a.*.b", "-a.b", &"a.".repeat(127)],
        );
        check::<UrlText>(
            &["http://smoke.shop/check", "https://id.example"],
            &["", "https://", "ftp://x", "http://a b"],
        );
        check::<StatusText>(&["5xx", "503"], &["", "5x", "600", "5xxx", "xxx"]);
        check::<SecretName>(&["jwks", "a.b"], &["", ".a", "A", "a_b"]);
    }
}
