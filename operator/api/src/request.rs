//! What requests are told apart by, as texts: methods and paths.

use crate::shape::{Misshapen, Shape, written_as};
use airlane_core::policy::{PathPattern, RetryMethods};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

pub(crate) const SHAPES: [&Shape; 3] = [&RETRY_METHOD, &METHOD, &PATH];

const RETRY_METHOD: Shape = Shape {
    pattern: "^(Idempotent|All|[A-Z][A-Z-]{0,19})$",
    length_max: 20,
    description: "Idempotent, All, or an HTTP method.",
    wanted: "write Idempotent, All, or an HTTP method",
    check: |text| text.parse::<RetryMethod>().map(drop),
};

const METHOD: Shape = Shape {
    pattern: "^[A-Z][A-Z-]{0,19}$",
    length_max: 20,
    description: "An HTTP method, in upper case.",
    wanted: "write an HTTP method such as GET",
    check: |text| text.parse::<MethodText>().map(drop),
};

const PATH: Shape = Shape {
    // No segment is `.` or `..`: each begins otherwise, or goes on otherwise.
    pattern: concat!(
        r"^/(([A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]{0,62}",
        r"|\.[A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]{0,61}",
        r"|\.\.[A-Za-z0-9._~!$&'()+,=:@-]{1,61})/){0,15}",
        r"([A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]{0,62}",
        r"|\.[A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]{0,61}",
        r"|\.\.[A-Za-z0-9._~!$&'()+,=:@-]{1,61})?\*?$",
    ),
    length_max: 1025,
    description: "A path: /charge, or /v1/* for all that begin with /v1/.",
    wanted: "write a path such as /charge or /v1/*",
    check: |text| text.parse::<PathText>().map(drop),
};

/// Which requests get the full retry policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetryMethod(pub RetryMethods);
written_as!(RetryMethod, RETRY_METHOD);

impl FromStr for RetryMethod {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        match text {
            "Idempotent" => Ok(RetryMethod(RetryMethods::Idempotent)),
            "All" => Ok(RetryMethod(RetryMethods::All)),
            method if is_method(method) => Ok(RetryMethod(RetryMethods::Method(method.into()))),
            _ => Err(Misshapen::new(
                text,
                "names no requests",
                "write Idempotent, All, or an HTTP method such as POST",
            )),
        }
    }
}

impl fmt::Display for RetryMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            RetryMethods::Idempotent => "Idempotent",
            RetryMethods::All => "All",
            RetryMethods::Method(method) => method,
        })
    }
}

/// An HTTP method.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MethodText(pub String);
written_as!(MethodText, METHOD);

impl FromStr for MethodText {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        if is_method(text) {
            Ok(MethodText(text.to_owned()))
        } else {
            Err(Misshapen::new(text, "is not an HTTP method", "write GET, POST or another, in upper case"))
        }
    }
}

impl fmt::Display for MethodText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_method(text: &str) -> bool {
    text.len() <= 20
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
}

/// Paths that an access rule means.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PathText(pub PathPattern);
written_as!(PathText, PATH);

impl FromStr for PathText {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        const MEND: &str = "write /charge, or /v1/* for all that begin with /v1/";
        let (path, all) = text.strip_suffix('*').map_or((text, false), |path| (path, true));
        let known = |b: u8| b.is_ascii_alphanumeric() || b"._~!$&'()+,=:@-".contains(&b);
        let Some(segments) = path.strip_prefix('/').map(|rest| rest.split('/').collect::<Vec<_>>()) else {
            return Err(Misshapen::new(text, "does not begin with /", MEND));
        };
        let inner = segments.split_last().map_or(&[][..], |(_, inner)| inner);
        if !segments.iter().all(|segment| segment.bytes().all(known)) {
            return Err(Misshapen::new(text, "has characters that no rule can mean", MEND));
        }
        if inner.iter().any(|segment| segment.is_empty())
            || [".", ".."].iter().any(|dots| segments.contains(dots))
        {
            return Err(Misshapen::new(
                text,
                "is not how a request's path is compared",
                "write it without //, . and ..",
            ));
        }
        if inner.len() > 15 || segments.iter().any(|segment| segment.len() > 63) {
            return Err(Misshapen::new(text, "is too long", "write at most 16 segments of 63 characters"));
        }
        let path = path.to_owned();
        Ok(PathText(if all { PathPattern::Prefix(path) } else { PathPattern::Exact(path) }))
    }
}

impl fmt::Display for PathText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::check;

    #[test]
    fn methods_to_retry() {
        check::<RetryMethod>("POST", "POST");
        check::<RetryMethod>(
            "post",
            "\"post\" names no requests; write Idempotent, All, or an HTTP method such as POST",
        );
    }

    #[test]
    fn paths() {
        for good in [
            "/",
            "/*",
            "/charge",
            "/charge/",
            "/v1/*",
            "/v1/char*",
            "/a.b/~c",
            "/.well-known/x",
            "/...",
            "/..a/.b*",
        ] {
            check::<PathText>(good, good);
        }
        for (bad, wrong) in [
            ("charge", "does not begin with /"),
            ("/a*b", "has characters that no rule can mean"),
            ("/a%2Fb", "has characters that no rule can mean"),
            ("/a;b", "has characters that no rule can mean"),
        ] {
            let mend = "write /charge, or /v1/* for all that begin with /v1/";
            check::<PathText>(bad, &format!("{bad:?} {wrong}; {mend}"));
        }
        for bad in ["//a", "/a//b", "/./a", "/a/..", "/../*"] {
            let said = "is not how a request's path is compared; write it without //, . and ..";
            check::<PathText>(bad, &format!("{bad:?} {said}"));
        }
    }
}
