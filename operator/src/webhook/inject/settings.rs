//! What a pod's annotations say about its proxy.

use super::Mistake;
use crate::marks::{
    BY_ENVIRONMENT, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, INJECTED,
    INTERCEPTION, NOT_INJECTED, OURS, OWN_PRE_STOP, PROXY_CPU, PROXY_MEMORY, RESTART,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

/// What a pod may be annotated with; [`RESTART`] is about the workload it belongs to.
const KNOWN: [&str; 10] = [
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_CIDRS,
    INJECTED,
    INTERCEPTION,
    NOT_INJECTED,
    OWN_PRE_STOP,
    PROXY_CPU,
    PROXY_MEMORY,
    RESTART,
];
/// A name as near as this (Damerau-Levenshtein) was meant.
const TYPOS_MAX: usize = 3;

/// Enough for the agent and an idle Envoy.
const CPU_DEFAULT: &str = "50m";
const MEMORY_DEFAULT: &str = "64Mi";
/// In thousandths of a core: below, an Envoy cannot keep up with its own health checks; above is a typing error.
const CPU_RANGE: RangeInclusive<f64> = 5.0..=64_000.0;
/// What an amount of CPU may be followed by, in thousandths of a core.
const CPU_UNITS: [(&str, f64); 2] = [("", 1000.0), ("m", 1.0)];
/// In bytes: below, Envoy does not start; above is a typing error.
const MEMORY_RANGE: RangeInclusive<f64> = 33_554_432.0..=68_719_476_736.0;
/// Ranges and ports in one annotation: the kernel goes through them for every connection.
const LIST_MAX: usize = 64;

/// How the application's traffic reaches the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interception {
    /// The kernel redirects it; an init container says so to the kernel.
    Init,
    /// The application is told by its environment.
    Env,
}

impl Interception {
    /// As annotations have it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Interception::Init => "Init",
            Interception::Env => BY_ENVIRONMENT,
        }
    }
}

/// The ports that a pod's annotations keep from its proxy; none if they cannot be read, since no such pod was injected.
pub(crate) fn excluded_inbound_ports(annotations: &BTreeMap<String, String>) -> BTreeSet<u16> {
    annotations.get(EXCLUDE_INBOUND_PORTS).and_then(|text| ports(text.trim()).ok()).unwrap_or_default()
}

/// What a team chose for a pod's proxy. Texts are in the grammar of their annotation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub(super) interception: Interception,
    /// Ports of the pod that are reached past the proxy.
    pub(super) exclude_inbound_ports: BTreeSet<u16>,
    /// Ports that are called past the proxy.
    pub(super) exclude_outbound_ports: BTreeSet<u16>,
    /// Addresses that are called past the proxy.
    pub(super) exclude_outbound_cidrs: Vec<String>,
    /// What is requested for the proxy.
    pub(super) cpu: String,
    pub(super) memory: String,
}

impl Settings {
    /// How many cores were requested, rounded up: as many threads are worth their memory.
    pub(super) fn cores(&self) -> u32 {
        let cores = quantity(&self.cpu, &CPU_UNITS).map_or(1.0, |thousandths| (thousandths / 1000.0).ceil());
        // At most 64: `CPU_RANGE`.
        (1..=64).rev().find(|count| f64::from(*count) <= cores).unwrap_or(1)
    }

    /// The settings of a pod with these annotations, and what is odd about them.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(super) fn read(
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Settings, Vec<String>), Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let settings = {
            let mut read = Reader { annotations, mistakes: &mut mistakes };
            Settings {
                interception: read.value(INTERCEPTION, interception).unwrap_or(Interception::Init),
                exclude_inbound_ports: read.value(EXCLUDE_INBOUND_PORTS, ports).unwrap_or_default(),
                exclude_outbound_ports: read.value(EXCLUDE_OUTBOUND_PORTS, ports).unwrap_or_default(),
                exclude_outbound_cidrs: read.value(EXCLUDE_OUTBOUND_CIDRS, cidrs).unwrap_or_default(),
                cpu: read.value(PROXY_CPU, cpu).unwrap_or_else(|| CPU_DEFAULT.into()),
                memory: read.value(PROXY_MEMORY, memory).unwrap_or_else(|| MEMORY_DEFAULT.into()),
            }
        };
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let ours = annotations.keys().filter(|key| key.starts_with(OURS));
        let unknown = ours.filter(|key| !KNOWN.contains(&key.as_str()));
        Ok((settings, unknown.map(|key| unknown_annotation(key)).collect()))
    }
}

fn unknown_annotation(key: &str) -> String {
    let nearest = KNOWN.iter().map(|known| (strsim::damerau_levenshtein(key, known), known)).min();
    let meant = nearest.filter(|(typos, _)| *typos <= TYPOS_MAX);
    let mend = meant.map_or_else(String::new, |(_, known)| format!("; {known} was meant?"));
    format!("metadata.annotations[{key}]: is not known and changes nothing{mend}")
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reader<'_> {
    /// The value of an annotation that is there and right. `parse` says what is wrong and what to write.
    fn value<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, (String, &'static str)>,
    ) -> Option<T> {
        let text = self.annotations.get(key)?.trim();
        match parse(text) {
            Ok(value) => Some(value),
            Err((message, mend)) => {
                let field = format!("metadata.annotations[{key}]");
                self.mistakes.push(Mistake { field, message, mend: mend.into() });
                None
            }
        }
    }
}

/// The text as it is told: cut, and without control characters.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

fn interception(text: &str) -> Result<Interception, (String, &'static str)> {
    match text {
        "Init" => Ok(Interception::Init),
        BY_ENVIRONMENT => Ok(Interception::Env),
        _ => Err((format!("{} is not known", shown(text)), "write Init or Env")),
    }
}

fn items<'a>(text: &'a str, mend: &'static str) -> Result<Vec<&'a str>, (String, &'static str)> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.len() > LIST_MAX {
        return Err((format!("has {} items, and at most {LIST_MAX} are looked at", items.len()), mend));
    }
    Ok(items)
}

fn ports(text: &str) -> Result<BTreeSet<u16>, (String, &'static str)> {
    const MEND: &str = "write ports from 1 to 65535 with commas between them: 9090,9091";
    let port = |item: &str| {
        item.parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| (format!("{} is not a port", shown(item)), MEND))
    };
    items(text, MEND)?.into_iter().map(port).collect()
}

fn cidrs(text: &str) -> Result<Vec<String>, (String, &'static str)> {
    const MEND: &str = "write networks with commas between them: 10.0.0.0/8,fd00::/8";
    let cidr = |item: &str| {
        network(item).ok_or_else(|| (format!("{} is not a network", shown(item)), MEND)).and_then(|network| {
            let wrong = || (format!("{} has bits beyond its prefix", shown(item)), MEND);
            if network.1 { Ok(network.0) } else { Err(wrong()) }
        })
    };
    items(text, MEND)?.into_iter().map(cidr).collect()
}

/// A network in canonical form, and whether the address has no bit beyond the prefix. A single address is a network.
fn network(text: &str) -> Option<(String, bool)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let prefix =
        prefix.map_or(Some(width), |prefix| prefix.parse().ok()).filter(|prefix| *prefix <= width)?;
    let beyond = bits.checked_shl(prefix).unwrap_or(0);
    Some((format!("{address}/{prefix}"), beyond == 0))
}

fn cpu(text: &str) -> Result<String, (String, &'static str)> {
    const MEND: &str = "write a request from 5m to 64: 250m or 1";
    let thousandths = quantity(text, &CPU_UNITS);
    match thousandths {
        None => Err((format!("{} is not an amount of CPU", shown(text)), MEND)),
        Some(value) if CPU_RANGE.contains(&value) => Ok(text.into()),
        Some(_) => Err((format!("{} is out of range", shown(text)), MEND)),
    }
}

fn memory(text: &str) -> Result<String, (String, &'static str)> {
    const MEND: &str = "write a request from 32Mi to 64Gi: 128Mi or 1Gi";
    const UNITS: [(&str, f64); 7] = [
        ("", 1.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
    ];
    match quantity(text, &UNITS) {
        None => Err((format!("{} is not an amount of memory", shown(text)), MEND)),
        Some(value) if MEMORY_RANGE.contains(&value) => Ok(text.into()),
        Some(_) => Err((format!("{} is out of range", shown(text)), MEND)),
    }
}

/// A quantity as Kubernetes writes it (`0.5`, `250m`, `64Mi`), without exponents.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return None;
    }
    Some(number.parse::<f64>().ok()? * factor)
}
