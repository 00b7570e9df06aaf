//! The texts with a grammar of their own: durations, shares, ratios, names.
//!
//! Each has one [`Shape`]: the pattern the schema publishes and the function that reads the text. The API server
//! checks the pattern; we check with the function, which also says what is wrong and what to write.

use crate::text;
use airlane_core::{
    id::{Name, Namespace, Revision, ServiceAccount},
    mesh::FULL_SHARE,
    policy::{Millis, PathPattern, RetryMethods},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

/// A text that does not have its field's grammar.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}; {mend}")]
pub struct Misshapen {
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub mend: &'static str,
}

impl Misshapen {
    pub(crate) fn new(text: &str, wrong: &str, mend: &'static str) -> Self {
        let shown: String = text.chars().take(80).collect();
        Misshapen { message: format!("{shown:?} {wrong}"), mend }
    }
}

/// The grammar of a text.
pub(crate) struct Shape {
    /// For the schema: RE2, anchored.
    pub(crate) pattern: &'static str,
    /// For the schema, in characters.
    pub(crate) length_max: u32,
    /// For the schema.
    pub(crate) description: &'static str,
    /// For people who left it out.
    pub(crate) wanted: &'static str,
    /// Whether a text has the shape.
    pub(crate) check: fn(&str) -> Result<(), Misshapen>,
}

impl Shape {
    /// Every shape there is.
    fn all() -> impl Iterator<Item = &'static Shape> {
        SHAPES.into_iter().chain(text::SHAPES)
    }

    /// The shape a schema's pattern belongs to.
    pub(crate) fn of(pattern: &str) -> Option<&'static Shape> {
        Shape::all().find(|shape| shape.pattern == pattern)
    }

    pub(crate) fn schema(&self) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": self.pattern,
            "maxLength": self.length_max,
            "description": self.description,
        })
    }
}

const SHAPES: [&Shape; 8] = [&DURATION, &SHARE, &RATIO, &LABEL, &SUBDOMAIN, &RETRY_METHOD, &METHOD, &PATH];

const DURATION: Shape = Shape {
    pattern: "^[1-9][0-9]{0,7}(ms|s|m|h)$",
    length_max: 10,
    description: "A duration: 250ms, 10s, 5m, 24h; at most a year.",
    wanted: "write a duration such as 10s",
    check: |text| text.parse::<Duration>().map(drop),
};

const SHARE: Shape = Shape {
    pattern: r"^(100(\.0{1,4})?|(0|[1-9][0-9]?)(\.[0-9]{1,4})?)%$",
    length_max: 9,
    description: "A share: 5%, 0.1%, 100%.",
    wanted: "write a share such as 5%",
    check: |text| text.parse::<Share>().map(drop),
};

const RATIO: Shape = Shape {
    pattern: r"^[1-9][0-9]{0,2}(\.[0-9]{1,3})?x$",
    length_max: 8,
    description: "A ratio of at least one: 1x, 1.5x, 2x.",
    wanted: "write a ratio such as 2x",
    check: |text| text.parse::<Ratio>().map(drop),
};

const LABEL: Shape = Shape {
    pattern: "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    length_max: 63,
    description: "A DNS label: at most 63 lower-case letters, digits and '-'.",
    wanted: "write a name",
    check: |text| text.parse::<NameText>().map(drop),
};

const SUBDOMAIN: Shape = Shape {
    pattern: r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    length_max: 253,
    description: "A DNS subdomain: at most 253 lower-case letters, digits, '-' and '.'.",
    wanted: "write a name",
    check: |text| text.parse::<AccountText>().map(drop),
};

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

/// Serde and schema of a type that is written as a text with a shape.
macro_rules! written_as {
    ($type:ident, $shape:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $shape.schema()
            }
        }
    };
}

pub(crate) use written_as;

/// A duration, 1 ms to 365 days.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Duration(pub Millis);
written_as!(Duration, DURATION);

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

impl FromStr for Duration {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        const MEND: &str = "write 2s, 250ms, 5m or 1h";
        const YEAR_MS: u64 = 365 * 24 * 3_600_000;
        let refused = || Misshapen::new(text, "is not a duration", MEND);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refused)?.1;
        if number.is_empty() || (number.len() > 1 && number.starts_with('0')) {
            return Err(refused());
        }
        if number.len() > 8 {
            return Err(Misshapen::new(text, "has too many digits", "use a larger unit, as in 5m or 1h"));
        }
        let too_long = || Misshapen::new(text, "is longer than a year", "write at most 8760h");
        let number: u64 = number.parse().map_err(|_| too_long())?;
        match number.checked_mul(unit_ms) {
            Some(0) => {
                Err(Misshapen::new(text, "is too short", "write at least 1ms, or leave the field out"))
            }
            Some(ms) if ms <= YEAR_MS => Ok(Duration(Millis(ms))),
            _ => Err(too_long()),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A share from 0 % to 100 %, in parts per million.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Share {
    ppm: u32,
}
written_as!(Share, SHARE);

const WHOLE_PPM: u32 = 1_000_000;

impl Share {
    /// As a fraction of one.
    pub fn fraction(self) -> f64 {
        f64::from(self.ppm) / f64::from(WHOLE_PPM)
    }

    /// In parts of [`FULL_SHARE`], or `None` if it is finer than one part.
    pub fn parts(self) -> Option<u32> {
        let ppm_per_part = WHOLE_PPM / FULL_SHARE;
        self.ppm.is_multiple_of(ppm_per_part).then_some(self.ppm / ppm_per_part)
    }

    /// The share of so many parts of [`FULL_SHARE`], at most all of them.
    pub fn from_parts(parts: u32) -> Self {
        Share { ppm: parts.min(FULL_SHARE) * (WHOLE_PPM / FULL_SHARE) }
    }
}

impl FromStr for Share {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        const MEND: &str = "write 5%, 0.1% or 100%, with at most 4 decimals";
        let refused = || Misshapen::new(text, "is not a share", MEND);
        let ppm = text.strip_suffix('%').and_then(|number| fixed(number, 4)).ok_or_else(refused)?;
        if ppm > WHOLE_PPM {
            return Err(Misshapen::new(text, "is more than everything", "write at most 100%"));
        }
        Ok(Share { ppm })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fixed(f, self.ppm, 4)?;
        f.write_str("%")
    }
}

/// A ratio from 1 to below 1000, in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ratio {
    thousandths: u32,
}
written_as!(Ratio, RATIO);

impl Ratio {
    /// As a number.
    pub fn factor(self) -> f64 {
        f64::from(self.thousandths) / 1000.0
    }
}

impl FromStr for Ratio {
    type Err = Misshapen;
    fn from_str(text: &str) -> Result<Self, Misshapen> {
        const MEND: &str = "write 1x, 1.5x or 2x, below 1000x";
        let refused = || Misshapen::new(text, "is not a ratio of at least one", MEND);
        let thousandths = text.strip_suffix('x').and_then(|number| fixed(number, 3)).ok_or_else(refused)?;
        if (1000..1_000_000).contains(&thousandths) { Ok(Ratio { thousandths }) } else { Err(refused()) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fixed(f, self.thousandths, 3)?;
        f.write_str("x")
    }
}

/// Reads `12` or `12.5` as a multiple of 10^-`decimals`; at most three digits before the point.
fn fixed(text: &str, decimals: usize) -> Option<u32> {
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (text, ""),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    let fits = (1..=3).contains(&whole.len()) && !leading_zero && fraction.len() <= decimals;
    if !fits || !digits(whole) || !digits(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<decimals$}").parse().ok()
}

fn write_fixed(f: &mut fmt::Formatter<'_>, value: u32, decimals: usize) -> fmt::Result {
    let scale = [1, 10, 100, 1_000, 10_000][decimals];
    let fraction = format!("{:0decimals$}", value % scale);
    match fraction.trim_end_matches('0') {
        "" => write!(f, "{}", value / scale),
        fraction => write!(f, "{}.{fraction}", value / scale),
    }
}

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

/// The names of core, as texts with their shape.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $core:ty, $shape:ident, $mend:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $type(pub $core);
        written_as!($type, $shape);

        impl FromStr for $type {
            type Err = Misshapen;
            fn from_str(text: &str) -> Result<Self, Misshapen> {
                text.parse().map($type).map_err(|_| Misshapen::new(text, "is not a valid name", $mend))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident, $core:ty) => {
        name!(
            $(#[$doc])* $type, $core, LABEL,
            "use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
        );
    };
}

label!(
    /// The name of a service, a workload or an object.
    NameText,
    Name
);
label!(
    /// The name of a namespace.
    NamespaceText,
    Namespace
);
label!(
    /// A version of a workload.
    RevisionText,
    Revision
);
name!(
    /// The name of a service account, or of something else that a policy is about.
    AccountText,
    ServiceAccount,
    SUBDOMAIN,
    "use at most 253 lower-case letters, digits, '-' and '.', each part starting and ending with a letter or digit"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, string::string_regex};

    fn check<T: FromStr<Err = Misshapen> + fmt::Display>(text: &str, expected: &str) {
        let said = text.parse::<T>().map_or_else(|refusal| refusal.to_string(), |value| value.to_string());
        assert_eq!(said, expected, "{text}");
    }

    #[test]
    fn durations() {
        check::<Duration>("250ms", "250ms");
        check::<Duration>("2000ms", "2s");
        check::<Duration>("90s", "90s");
        check::<Duration>("3600s", "1h");
        check::<Duration>("8760h", "8760h");
        check::<Duration>("8761h", "\"8761h\" is longer than a year; write at most 8760h");
        check::<Duration>("0s", "\"0s\" is too short; write at least 1ms, or leave the field out");
        for bad in ["", "s", "2 sec", "2sec", "1h30m", "1.5s", "-1s", "05s", "10", "2S", "٣s"] {
            check::<Duration>(bad, &format!("{bad:?} is not a duration; write 2s, 250ms, 5m or 1h"));
        }
        check::<Duration>(
            "100000000ms",
            "\"100000000ms\" has too many digits; use a larger unit, as in 5m or 1h",
        );
    }

    #[test]
    fn shares() {
        check::<Share>("0.1%", "0.1%");
        check::<Share>("5.50%", "5.5%");
        check::<Share>("100%", "100%");
        check::<Share>("0%", "0%");
        check::<Share>("101%", "\"101%\" is more than everything; write at most 100%");
        for bad in ["", "%", "5", "0.05", ".5%", "5.%", "1e1%", "-1%", "5 %", "0.00001%", "05%"] {
            check::<Share>(
                bad,
                &format!("{bad:?} is not a share; write 5%, 0.1% or 100%, with at most 4 decimals"),
            );
        }
        let parts = |text: &str| text.parse::<Share>().ok().and_then(Share::parts);
        assert_eq!((parts("25%"), parts("0.01%"), parts("0.001%")), (Some(2_500), Some(1), None));
        assert_eq!(Share::from_parts(2_500).to_string(), "25%");
        assert_eq!("0.1%".parse::<Share>().map(Share::fraction), Ok(0.001));
    }

    #[test]
    fn ratios_and_methods() {
        check::<Ratio>("2x", "2x");
        check::<Ratio>("1.50x", "1.5x");
        for bad in ["0.5x", "2", "x", "1000x", "0x", "02x"] {
            check::<Ratio>(
                bad,
                &format!("{bad:?} is not a ratio of at least one; write 1x, 1.5x or 2x, below 1000x"),
            );
        }
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

    /// The API server checks the pattern, we the function: what one lets in the other must know. A year's and a
    /// hundred per cent's bound are ours alone; no pattern can say them.
    #[test]
    fn patterns_and_functions_agree() {
        let beyond_patterns = |refusal: &Misshapen| {
            ["is longer than a year", "is more than everything"]
                .iter()
                .any(|text| refusal.message.ends_with(text))
        };
        for shape in Shape::all() {
            let texts =
                string_regex(shape.pattern.trim_start_matches('^').trim_end_matches('$')).expect("a pattern");
            let fits = |text: &String| text.len() <= shape.length_max as usize;
            proptest!(|(text in texts.prop_filter("the length is a bound of its own", fits))| {
                if let Err(refusal) = (shape.check)(&text) {
                    prop_assert!(beyond_patterns(&refusal), "{}: {refusal}", shape.pattern);
                }
            });
        }
    }
}
