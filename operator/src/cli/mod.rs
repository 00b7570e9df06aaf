//! The commands that ask or tell a running mesh.
//!
//! Exit codes: 0 it is so; 1 it is not (a check failed, a wait ran out, the mesh refused); 2 the command was
//! misspelt (says the argument parser, or a [`Misspelt`]).

mod answer;
mod check;
mod client;
mod cluster;
mod crds;
mod inject;
mod install;
mod mesh;
mod show;
mod socket;
mod table;
mod wait;

use crate::{
    args::{CanaryVerb, CertsVerb, Describable, Listing, Output, ProxyVerb, TokenVerb, Where},
    local::{
        host::{StoredTokenView, TokenRequest, TokenView},
        server::RotateRequest,
        view::{CanaryView, PolicyView, ProxyView, ServiceView},
    },
};
use airlane_core::rollout::Asked;
use answer::say;
use anyhow::{Context, bail};
use jiff::Timestamp;
use mesh::Mesh;
use serde::Serialize;
use std::{fmt, path::Path};

pub(crate) use answer::{heard, tell};
pub(crate) use check::{check_files, check_mesh};
pub(crate) use client::Client;
pub(crate) use cluster::{
    check::{before as check_before, uninstall as check_uninstall},
    enrol::{eject, eject_all, join},
};
pub(crate) use crds::crds;
pub(crate) use inject::inject;
pub(crate) use install::{install, write_chart};
pub(crate) use socket::carry;
pub(crate) use wait::wait;

/// A command that means nothing, in a way that the argument parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misspelt(String);

fn show<T: Serialize>(output: Output, value: &T, table: impl FnOnce() -> String) -> anyhow::Result<()> {
    match output {
        Output::Table => say(&table()),
        Output::Json => say(&format!("{}\n", serde_json::to_string_pretty(value)?)),
        Output::Yaml => say(&serde_saphyr::to_string(value)?),
    }
    Ok(())
}

/// `NAME` or `NAMESPACE/NAME`; a bare name is looked for in every namespace.
#[derive(Clone, Debug)]
struct Wanted {
    namespace: Option<String>,
    name: String,
}

impl Wanted {
    fn parse(text: &str) -> Result<Self, Misspelt> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace.is_some_and(str::is_empty) {
            return Err(Misspelt(format!("{text:?} names nothing: write NAME or NAMESPACE/NAME")));
        }
        Ok(Wanted { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
    fn matches(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
    /// The only one that matches.
    fn only<T>(&self, kind: &str, found: Vec<T>, named: impl Fn(&T) -> String) -> anyhow::Result<T> {
        let mut found = found;
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (None, _) => bail!("no {kind} {self}; `airlane get {}` lists them", listing(kind)),
            (Some(last), false) => {
                found.push(last);
                let names: Vec<String> = found.iter().map(named).collect();
                bail!("{self} could be any of {}: say which", names.join(", "))
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// The listing that names what there is of a kind.
fn listing(kind: &str) -> &'static str {
    match kind {
        "endpoint" => "endpoints",
        "proxy" => "proxies",
        "policy" => "policies",
        "canary" => "canaries",
        _ => "services",
    }
}

/// `airlane get`.
pub(crate) async fn get(
    place: &Where,
    state: &Path,
    what: Listing,
    name: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let wanted = name.map(Wanted::parse).transpose()?;
    let mesh = Mesh::find(place, state).await?;
    let keep =
        |namespace: &str, name: &str| wanted.as_ref().is_none_or(|wanted| wanted.matches(namespace, name));
    match what {
        Listing::Services => {
            let mut rows = mesh.services().await?;
            rows.retain(|row| keep(&row.namespace, &row.name));
            some(&rows, "service", name)?;
            show(output, &rows, || show::services(&rows))
        }
        Listing::Endpoints => {
            let mut rows = mesh.endpoints().await?;
            rows.retain(|row| keep(&row.namespace, &row.service) || keep(&row.namespace, &row.instance));
            some(&rows, "endpoint", name)?;
            show(output, &rows, || show::endpoints(&rows))
        }
        Listing::Proxies => {
            let mut rows = mesh.proxies().await?;
            rows.retain(|row| keep(&row.namespace, &row.instance));
            some(&rows, "proxy", name)?;
            show(output, &rows, || show::proxies(&rows))
        }
        Listing::Policies => {
            let mut rows: Vec<PolicyView> = mesh.policies(wanted.as_ref()).await?;
            rows.retain(|row| keep(&row.namespace, &row.name));
            some(&rows, "policy", name)?;
            show(output, &rows, || show::policies(&rows))
        }
        Listing::Effective => {
            let which = || Misspelt("which service? `airlane get effective NAMESPACE/NAME`".to_owned());
            let wanted = wanted.ok_or_else(which)?;
            let rows = mesh.effective(&service(&mesh, &wanted).await?).await?;
            show(output, &rows, || show::effective(&rows))
        }
        Listing::Canaries => {
            let mut rows: Vec<CanaryView> = mesh.canaries(wanted.as_ref()).await?;
            rows.retain(|row| keep(&row.namespace, &row.name));
            some(&rows, "canary", name)?;
            show(output, &rows, || show::canaries(&rows))
        }
    }
}

/// A name that was asked for and is not there is an error; an empty list is not.
fn some<T>(rows: &[T], kind: &str, name: Option<&str>) -> anyhow::Result<()> {
    match name {
        Some(name) if rows.is_empty() => {
            bail!("no {kind} {name}; `airlane get {}` lists them", listing(kind))
        }
        _ => Ok(()),
    }
}

async fn service(mesh: &Mesh, wanted: &Wanted) -> anyhow::Result<ServiceView> {
    let mut rows = mesh.services().await?;
    rows.retain(|row| wanted.matches(&row.namespace, &row.name));
    wanted.only("service", rows, |row| format!("{}/{}", row.namespace, row.name))
}

async fn proxy(mesh: &Mesh, wanted: &Wanted) -> anyhow::Result<ProxyView> {
    let mut rows = mesh.proxies().await?;
    rows.retain(|row| wanted.matches(&row.namespace, &row.instance));
    wanted.only("proxy", rows, |row| format!("{}/{}", row.namespace, row.instance))
}

async fn canary(mesh: &Mesh, wanted: &Wanted) -> anyhow::Result<CanaryView> {
    let mut rows: Vec<CanaryView> = mesh.canaries(Some(wanted)).await?;
    rows.retain(|row| wanted.matches(&row.namespace, &row.name));
    wanted.only("canary", rows, |row| format!("{}/{}", row.namespace, row.name))
}

async fn policy(mesh: &Mesh, wanted: &Wanted) -> anyhow::Result<PolicyView> {
    let mut rows: Vec<PolicyView> = mesh.policies(Some(wanted)).await?;
    rows.retain(|row| wanted.matches(&row.namespace, &row.name));
    wanted.only("policy", rows, |row| format!("{}/{}", row.namespace, row.name))
}

/// `airlane describe`.
pub(crate) async fn describe(
    place: &Where,
    state: &Path,
    what: Describable,
    name: &str,
    output: Output,
) -> anyhow::Result<()> {
    let wanted = Wanted::parse(name)?;
    let mesh = Mesh::find(place, state).await?;
    match what {
        Describable::Service => {
            let service = service(&mesh, &wanted).await?;
            let mut endpoints = mesh.endpoints().await?;
            endpoints.retain(|row| row.namespace == service.namespace && row.service == service.name);
            let values = mesh.effective(&service).await?;
            let whole =
                serde_json::json!({ "service": service, "endpoints": endpoints, "effective": values });
            show(output, &whole, || show::service(&service, &endpoints, &values))
        }
        Describable::Policy => {
            let policy = policy(&mesh, &wanted).await?;
            show(output, &policy, || show::policy(&policy))
        }
        Describable::Canary => {
            let canary = canary(&mesh, &wanted).await?;
            show(output, &canary, || show::canary(&canary))
        }
        Describable::Proxy => {
            let proxy = proxy(&mesh, &wanted).await?;
            show(output, &proxy, || show::proxy(&proxy))
        }
    }
}

/// `airlane canary`.
pub(crate) async fn canary_verb(place: &Where, state: &Path, verb: &CanaryVerb) -> anyhow::Result<()> {
    let mesh = Mesh::find(place, state).await?;
    let (name, asked, done) = match verb {
        CanaryVerb::Status { name, output } => {
            let canary = canary(&mesh, &Wanted::parse(name)?).await?;
            return show(output.output, &canary, || show::canary(&canary));
        }
        CanaryVerb::Pause { name } => (name, Asked::Pause, "will pause"),
        CanaryVerb::Resume { name } => (name, Asked::Resume, "will go on"),
        CanaryVerb::Promote { name } => (name, Asked::Promote, "will be promoted"),
        CanaryVerb::Abort { name } => (name, Asked::Abort, "will be taken back"),
        CanaryVerb::Retry { name } => (name, Asked::Retry, "will be tried again"),
    };
    let canary = canary(&mesh, &Wanted::parse(name)?).await?;
    mesh.ask(&canary, asked).await?;
    say(&format!("canary {}/{} {done}\n", canary.namespace, canary.name));
    Ok(())
}

/// `airlane proxy`.
pub(crate) async fn proxy_verb(place: &Where, state: &Path, verb: &ProxyVerb) -> anyhow::Result<()> {
    let ProxyVerb::Config { name, output } = verb;
    let mesh = Mesh::find(place, state).await?;
    let rows = mesh.published_to(&proxy(&mesh, &Wanted::parse(name)?).await?).await?;
    show(output.output, &rows, || show::resources(&rows))
}

/// `airlane certs`.
pub(crate) async fn certs_verb(place: &Where, state: &Path, verb: &CertsVerb) -> anyhow::Result<()> {
    let mesh = Mesh::find(place, state).await?;
    match verb {
        CertsVerb::List { output } => {
            let rows = mesh.certificates().await?;
            let roots = mesh.roots().await?;
            match output.output {
                Output::Table => {
                    say(&(show::certificates(&rows) + &show::roots(&roots)));
                    Ok(())
                }
                whole => show(whole, &rows, String::new),
            }
        }
        CertsVerb::Rotate { instance } => {
            let instance = instance.as_deref().map(str::parse).transpose().context("the instance")?;
            let asked = mesh.rotate(&RotateRequest { instance }).await?;
            say(&format!("{asked} sidecars will renew with their next heartbeat\n"));
            Ok(())
        }
        CertsVerb::RotateRoot => {
            say(&show::replacement(mesh.rotate_root().await?.as_ref()));
            Ok(())
        }
    }
}

/// `airlane token`.
pub(crate) async fn token_verb(place: &Where, state: &Path, verb: &TokenVerb) -> anyhow::Result<()> {
    let mesh = Mesh::find(place, state).await?;
    let client = mesh.host("join tokens")?;
    let (service, namespace, ttl) = match verb {
        TokenVerb::Create { service, namespace, ttl } => (service.clone(), namespace.clone(), ttl),
        TokenVerb::List { output } => {
            let rows: Vec<StoredTokenView> = client.get("/v1/tokens").await?;
            return show(output.output, &rows, || show::tokens(&rows, Timestamp::now()));
        }
        TokenVerb::Revoke { id } => {
            if !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
                bail!("no token {id}; `airlane token list` lists them");
            }
            client.post::<()>(&format!("/v1/tokens/{id}/revoke"), &()).await?;
            say(&format!("token {id} is revoked\n"));
            return Ok(());
        }
    };
    let request = TokenRequest { namespace, service, ttl_s: ttl.map(|ttl| ttl.as_secs()) };
    let token: TokenView = client.post("/v1/tokens", &request).await?;
    say(&format!("{}\n", token.join));
    Ok(())
}
