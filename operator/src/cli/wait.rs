//! `airlane wait`: until something is so, or never can be.

use super::{Mesh, Misspelt, Wanted, canary, client::ClientError, policy, service};
use crate::args::Where;
use airlane_core::rollout::Phase;
use anyhow::bail;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Waits until `condition` holds of `what`.
pub(crate) async fn wait(
    place: &Where,
    state: &Path,
    what: &str,
    condition: Option<&str>,
    timeout: Duration,
) -> anyhow::Result<()> {
    let goal = Goal::parse(what, condition)?;
    let mut mesh = Mesh::find(place, state).await?;
    let deadline = Instant::now() + timeout;
    loop {
        let why = match goal.reached(&mesh).await {
            Ok(Standing::Reached) => return Ok(()),
            Ok(Standing::Never(why)) => bail!("waiting for {what} is in vain: {why}"),
            Ok(Standing::NotYet(why)) => why,
            // It may come into being, as the mesh itself may.
            Err(error) => {
                if error.downcast_ref().is_some_and(ClientError::is_of_the_way) {
                    mesh.look_again();
                }
                format!("{error:#}")
            }
        };
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} for {what}: {why}");
        }
        tokio::time::sleep(mesh.pause()).await;
    }
}

/// What is waited for.
#[derive(Debug)]
enum Goal {
    Mesh,
    Service(Wanted),
    Policy(String),
    Canary(String, Phase),
}

/// How far it is, and why not there.
enum Standing {
    Reached,
    NotYet(String),
    Never(String),
}

impl Standing {
    fn unless(not_yet: Option<String>) -> Self {
        not_yet.map_or(Standing::Reached, Standing::NotYet)
    }
}

const PHASES: [Phase; 8] = [
    Phase::Idle,
    Phase::Progressing,
    Phase::Holding,
    Phase::Paused,
    Phase::Promoting,
    Phase::Succeeded,
    Phase::RollingBack,
    Phase::RolledBack,
];

impl Goal {
    fn parse(what: &str, condition: Option<&str>) -> Result<Goal, Misspelt> {
        let only = |known: &str| match condition {
            Some(other) if other != known => Err(Misspelt(format!("{what} cannot be {other}: {known}"))),
            _ => Ok(()),
        };
        match what.split_once('/') {
            None if what == "mesh" => only("Ready").map(|()| Goal::Mesh),
            Some(("service", name)) => only("Ready").map(|()| Goal::Service(Wanted::parse(name))),
            Some(("policy", name)) => only("Programmed").map(|()| Goal::Policy(name.to_owned())),
            Some(("canary", name)) => {
                let wanted = condition.unwrap_or("Succeeded");
                let phase = PHASES.into_iter().find(|phase| format!("{phase:?}") == wanted);
                let known = || {
                    Misspelt(format!(
                        "no phase {wanted}: {}",
                        PHASES.map(|phase| format!("{phase:?}")).join(", ")
                    ))
                };
                Ok(Goal::Canary(name.to_owned(), phase.ok_or_else(known)?))
            }
            _ => Err(Misspelt(format!(
                "cannot wait for {what:?}: mesh, service/NAME, policy/NAME or canary/NAME"
            ))),
        }
    }

    async fn reached(&self, mesh: &Mesh) -> anyhow::Result<Standing> {
        match self {
            Goal::Mesh => {
                let proxies = mesh.proxies().await?;
                let behind: Vec<&str> = proxies
                    .iter()
                    .filter(|proxy| !proxy.current)
                    .map(|proxy| proxy.instance.as_str())
                    .collect();
                let behind =
                    (!behind.is_empty()).then(|| format!("not yet acknowledged by {}", behind.join(", ")));
                Ok(Standing::unless(behind))
            }
            Goal::Service(wanted) => {
                let service = service(mesh, wanted).await?;
                Ok(Standing::unless((service.ready == 0).then(|| "no instance is ready".to_owned())))
            }
            Goal::Policy(name) => {
                let programmed = policy(mesh, name).await?.programmed;
                let behind = (programmed.acknowledged < programmed.targeted).then(|| {
                    format!("{} of {} proxies acknowledged it", programmed.acknowledged, programmed.targeted)
                });
                Ok(Standing::unless(behind))
            }
            Goal::Canary(name, wanted) => {
                let canary = canary(mesh, name).await?;
                let why = format!("it is {:?}: {}", canary.phase, canary.because);
                Ok(match (*wanted, canary.phase) {
                    (wanted, phase) if wanted == phase => Standing::Reached,
                    (Phase::Succeeded, Phase::RolledBack) | (Phase::RolledBack, Phase::Succeeded) => {
                        Standing::Never(why)
                    }
                    _ => Standing::NotYet(why),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: &str, condition: Option<&str>, mend: Option<&str>) {
        match (Goal::parse(what, condition), mend) {
            (Ok(_), None) => {}
            (Err(error), Some(mend)) => assert!(error.to_string().contains(mend), "{what}: {error}"),
            (parsed, _) => panic!("{what} {condition:?}: {parsed:?}"),
        }
    }

    #[test]
    fn what_can_never_be_is_not_waited_for() {
        check("mesh", None, None);
        check("mesh", Some("Ready"), None);
        check("canary/shop/pay", Some("RolledBack"), None);
        check("policy/pay", Some("Programmed"), None);
        check("mesh", Some("Programmed"), Some("Ready"));
        check("service/pay", Some("ready"), Some("Ready"));
        check("policy/pay", Some("Ready"), Some("Programmed"));
        check("canary/pay", Some("Finished"), Some("RolledBack"));
        check("pay", None, Some("service/NAME"));
        check("pod/pay", None, Some("service/NAME"));
    }
}
