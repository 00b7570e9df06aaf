//! `airlane join`, `airlane eject`, `airlane uninstall --eject`: what the operator leaves to people, by their rights.
//!
//! The cluster is seen as the operator sees it, and the same things are decided about it; but a person may dare what
//! the operator does not. Nothing is changed before it was said and agreed to.

mod carry_out;
mod moment;
mod plan;
mod target;
mod watched;

use crate::{
    args::{Enrol, How, Where},
    cli::{cluster::check, say},
    enrol::record::Way,
    marks::{ENABLED, INJECT},
};
use anyhow::{Context as _, bail};
use plan::{Plan, Step};
use std::{
    io::{BufRead as _, IsTerminal as _},
    time::{Duration, Instant},
};
use target::Target;
use tokio::time::sleep;
use watched::Watched;

/// How long pods may take to stop.
const GONE: Duration = Duration::from_secs(120);

/// `airlane join`.
pub(crate) async fn join(place: &Where, what: &Enrol) -> anyhow::Result<()> {
    let what = Target::parse(&what.what).map(|target| (target, what.how))?;
    let (target, how) = what;
    let watched = Watched::begin(place).await?;
    let moment = watched.moment()?;
    let labelled = moment.asks(&target.namespace)?;
    if let (Some(workload), false) = (&target.workload, labelled) {
        bail!(
            "namespace {0} does not ask for the mesh, so new pods of {workload} would get no sidecar: `airlane join {0}`, \
             or label its template {INJECT}: {ENABLED}",
            target.namespace
        );
    }
    let mut steps = Vec::new();
    for (workload, crew) in moment.crews(&target, |crew| crew.bare > 0)? {
        let blocked = watched.try_joining(&target.namespace, &workload, !labelled).await?;
        let cautions = moment.cautions(&target.namespace, &workload, Way::Join);
        steps.push(Step { workload, crew, blocked, cautions, by_label: false });
    }
    let label = (!labelled).then_some(Some(ENABLED));
    if steps.is_empty() && label.is_none() {
        say(&format!(
            "{}: all pods are in the mesh, or keep out of it by their own labels\n",
            target.namespace
        ));
        return Ok(());
    }
    let plan = Plan { namespace: target.namespace, way: Way::Join, label, steps };
    plan.show();
    if !agreed(how)? {
        return Ok(());
    }
    watched.carry_out(&plan, how).await
}

/// `airlane eject`.
pub(crate) async fn eject(place: &Where, what: &Enrol) -> anyhow::Result<()> {
    let target = Target::parse(&what.what)?;
    let watched = Watched::begin(place).await?;
    let plan = watched.moment()?.plan_to_leave(&target)?;
    if plan.steps.is_empty() && plan.label.is_none() {
        say(&format!("{}: no pod is in the mesh\n", what.what));
        return Ok(());
    }
    plan.show();
    if !agreed(what.how)? {
        return Ok(());
    }
    watched.wait_for_acknowledgements().await?;
    watched.carry_out(&plan, what.how).await
}

/// `airlane uninstall --eject`.
pub(crate) async fn eject_all(place: &Where, how: How) -> anyhow::Result<()> {
    let watched = Watched::begin(place).await?;
    let moment = watched.moment()?;
    let mut plans = Vec::new();
    let mut refused = Vec::new();
    for namespace in moment.with_mesh() {
        match moment.plan_to_leave(&Target { namespace, workload: None }) {
            Ok(plan) => plans.push(plan),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    if !refused.is_empty() {
        bail!("nothing was changed: {}", refused.join("; "));
    }
    plans.iter().for_each(Plan::show);
    if !plans.is_empty() {
        if !agreed(how)? {
            return Ok(());
        }
        watched.wait_for_acknowledgements().await?;
        for plan in &plans {
            watched.carry_out(plan, how).await?;
        }
    }
    // Pods that are on their way out still have their sidecars.
    let deadline = Instant::now() + GONE;
    loop {
        match check::uninstall(place).await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_secs(1)).await,
            checked => return checked,
        }
    }
}

/// Asks, unless the answer was given.
fn agreed(how: How) -> anyhow::Result<bool> {
    if how.dry_run {
        say("nothing was changed (--dry-run)\n");
        return Ok(false);
    }
    if how.yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed: nobody is there to agree; say --yes to go on");
    }
    say("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
    let agreed = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !agreed {
        say("nothing was changed\n");
    }
    Ok(agreed)
}
