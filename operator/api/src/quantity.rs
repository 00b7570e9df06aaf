//! Quantities, as texts: durations, shares, ratios.

use crate::shape::{Misshapen, Shape, written_as};
use airlane_core::{mesh::FULL_SHARE, policy::Millis};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

pub(crate) const SHAPES: [&Shape; 3] = [&DURATION, &SHARE, &RATIO];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::check;

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
    fn ratios() {
        check::<Ratio>("2x", "2x");
        check::<Ratio>("1.50x", "1.5x");
        for bad in ["0.5x", "2", "x", "1000x", "0x", "02x"] {
            check::<Ratio>(
                bad,
                &format!("{bad:?} is not a ratio of at least one; write 1x, 1.5x or 2x, below 1000x"),
            );
        }
    }
}
