//! What the leader among the replicas does, and it alone.

use super::{Replica, process::overlap};
use crate::{
    app::Tasks,
    apply::kubernetes::{Teller, Writer, recorder},
    args::Operator,
    bundle::Bundle,
    ca,
    enrol::{decide::Patience, hands::Hands, run::Enrolment},
    lease::{self, Lead},
    rollouts::Rollouts,
    webhook,
};
use jiff::SignedDuration;
use std::sync::Arc;
use tokio::sync::watch;

/// Starts it, to begin and to end with the lead. `judging` says whether the books of this replica are open as well, as
/// long as it leads; whatever reads them waits for that. `me` is what no other process is called.
pub(super) fn spawn(
    replica: &Replica,
    args: &Operator,
    judging: watch::Receiver<bool>,
    me: String,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    outfit_namespaces(replica, args, tasks);
    if args.restarts {
        restart_workloads(replica, args, &me, tasks)?;
    }
    let lead = Lead { mine: judging, ..replica.lead.clone() };
    write_and_judge(replica, &lead, me, tasks);
    replace_the_root(replica, lead, overlap(args)?, tasks);
    Ok(())
}

/// The roots that pods are to trust, and the webhook's registration.
fn outfit_namespaces(replica: &Replica, args: &Operator, tasks: &mut Tasks) {
    let Replica { client, ca, observed, lead, .. } = replica.clone();
    let bundle = Bundle::new(client.clone(), ca.bundle(), args.namespace.clone(), observed.joined);
    let (leads, ending) = (lead.clone(), tasks.shutdown());
    tasks.spawn_sure("the ConfigMaps with the roots", async move {
        lease::while_leading(&leads, ending, |ending| bundle.clone().run(ending)).await;
    });
    let (home, roots, ending) = (args.namespace.clone(), ca.bundle(), tasks.shutdown());
    tasks.spawn_sure("the webhook's registration", async move {
        let register =
            |ending| webhook::registration::keep(client.clone(), home.clone(), roots.clone(), ending);
        lease::while_leading(&lead, ending, register).await;
    });
}

fn restart_workloads(replica: &Replica, args: &Operator, me: &str, tasks: &mut Tasks) -> anyhow::Result<()> {
    let Replica { client, observed, picture, fleet, clock, lead, .. } = replica.clone();
    let enrolment = Enrolment {
        hands: Hands::new(client.clone(), args.namespace.clone()),
        observed,
        picture,
        fleet,
        clock,
        patience: Patience {
            progress: args.restart_deadline.map(SignedDuration::try_from).transpose()?,
            eject_after: SignedDuration::try_from(args.eject_after)?,
        },
        events: recorder(client, me),
        system: args.namespace.clone(),
    };
    let ending = tasks.shutdown();
    tasks.spawn_sure("the restarts of workloads", async move {
        lease::while_leading(&lead, ending, |ending| enrolment.clone().run(ending)).await;
    });
    Ok(())
}

/// Statuses and rollouts: a canary's memory is its status, so that both have one writer.
fn write_and_judge(replica: &Replica, lead: &Lead, me: String, tasks: &mut Tasks) {
    let Replica { client, observed, picture, fleet, signals, clock, .. } = replica.clone();
    let writer = Writer::new(client, observed, picture.clone(), fleet.clone(), clock.clone(), me);
    let (leads, told, ending) = (lead.clone(), writer.clone(), tasks.shutdown());
    tasks.spawn_sure("the statuses", async move {
        let tell = |ending| Teller { writer: told.clone() }.run(ending);
        lease::while_leading(&leads, ending, tell).await;
    });
    let (leads, ending) = (lead.clone(), tasks.shutdown());
    tasks.spawn_sure("the rollouts", async move {
        let judge = |ending| {
            let rollouts = Rollouts {
                picture: picture.clone(),
                signals: signals.clone(),
                fleet: fleet.clone(),
                memory: Arc::new(writer.clone()),
                clock: clock.clone(),
            };
            rollouts.run(ending)
        };
        lease::while_leading(&leads, ending, judge).await;
    });
}

fn replace_the_root(replica: &Replica, lead: Lead, overlap: SignedDuration, tasks: &mut Tasks) {
    let Replica { ca, picture, fleet, clock, .. } = replica.clone();
    let ending = tasks.shutdown();
    tasks.spawn_sure("the replacement of the root", async move {
        let rotate = |ending| {
            let (picture, fleet) = (picture.clone(), fleet.clone());
            ca::keeping::rotate(ca.clone(), overlap, picture, fleet, clock.clone(), ending)
        };
        lease::while_leading(&lead, ending, rotate).await;
    });
}
