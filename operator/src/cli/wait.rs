//! `airlane wait`: until something is so, or never can be.

use super::{Mesh, Misspelt, Wanted, canary, client::ClientError, policy, service};
use crate::{
    args::Where,
    local::view::{CanaryView, ErrorView, PolicyView},
};
use airlane_core::{
    id::ObjectKind,
    problem::{Problem, Reason},
    rollout::Phase,
};
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
    Policy(Wanted),
    Canary(Wanted, Phase),
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
            Some(other) if other != known => {
                Err(Misspelt(format!("{what} cannot be {other}: write --for {known}")))
            }
            _ => Ok(()),
        };
        match what.split_once('/') {
            None if what == "mesh" => only("Ready").map(|()| Goal::Mesh),
            Some(("service", name)) => only("Ready").and_then(|()| Ok(Goal::Service(Wanted::parse(name)?))),
            Some(("policy", name)) => {
                only("Programmed").and_then(|()| Ok(Goal::Policy(Wanted::parse(name)?)))
            }
            Some(("canary", name)) => {
                let wanted = condition.unwrap_or("Succeeded");
                let phase = PHASES.into_iter().find(|phase| format!("{phase:?}") == wanted);
                let known = || {
                    Misspelt(format!(
                        "no phase {wanted}: {}",
                        PHASES.map(|phase| format!("{phase:?}")).join(", ")
                    ))
                };
                Ok(Goal::Canary(Wanted::parse(name)?, phase.ok_or_else(known)?))
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
            Goal::Policy(wanted) => {
                let refused = refusal(&mesh.errors().await?, ObjectKind::MeshPolicy, wanted);
                match (refused, policy(mesh, wanted).await) {
                    (Some(why), _) => Ok(Standing::Never(why)),
                    (None, row) => Ok(of_policy(&row?)),
                }
            }
            Goal::Canary(wanted, phase) => {
                let refused = refusal(&mesh.errors().await?, ObjectKind::Canary, wanted);
                match (refused, canary(mesh, wanted).await) {
                    (Some(why), _) => Ok(Standing::Never(why)),
                    (None, row) => Ok(of_canary(&row?, *phase)),
                }
            }
        }
    }
}

/// Why what stands in a file is not what is in force.
fn refusal(errors: &[ErrorView], kind: ObjectKind, wanted: &Wanted) -> Option<String> {
    let about = |error: &&ErrorView| {
        error.object.as_ref().is_some_and(|object| {
            object.kind == kind && wanted.matches(object.namespace.as_str(), object.name.as_str())
        })
    };
    errors.iter().find(about).map(|error| error.text.clone())
}

/// A problem that waiting does not mend: what was written is not what holds.
fn is_final(problem: &&Problem) -> bool {
    matches!(problem.reason, Reason::Invalid | Reason::TargetNotFound | Reason::Conflicted)
}

fn of_policy(policy: &PolicyView) -> Standing {
    if policy.outdated {
        return Standing::Never(format!("{} is in error, and an earlier version is in force", policy.file));
    }
    if let Some(problem) = policy.problems.iter().find(is_final) {
        return Standing::Never(problem.to_string());
    }
    let programmed = policy.programmed;
    let behind = (programmed.acknowledged < programmed.targeted)
        .then(|| format!("{} of {} proxies acknowledged it", programmed.acknowledged, programmed.targeted));
    Standing::unless(behind.map(|behind| with_problems(behind, &policy.problems)))
}

fn of_canary(canary: &CanaryView, wanted: Phase) -> Standing {
    let why = with_problems(format!("it is {:?}: {}", canary.phase, canary.because), &canary.problems);
    match (wanted, canary.phase) {
        _ if canary.outdated => {
            Standing::Never("its file is in error, and an earlier version is in force".to_owned())
        }
        (wanted, phase) if wanted == phase => Standing::Reached,
        (Phase::Succeeded, Phase::RolledBack) | (Phase::RolledBack, Phase::Succeeded) => Standing::Never(why),
        _ => Standing::NotYet(why),
    }
}

fn with_problems(why: String, problems: &[Problem]) -> String {
    problems.iter().fold(why, |why, problem| format!("{why}; {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::view::Programmed;
    use airlane_core::id::ObjectId;

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
        check("canary/x/y/z", None, Some("NAMESPACE/NAME"));
        check("policy/", None, Some("NAMESPACE/NAME"));
    }

    fn id(kind: ObjectKind) -> ObjectId {
        let name = "pay".parse().expect("a name");
        ObjectId { kind, namespace: "shop".parse().expect("a namespace"), name }
    }

    fn problem(kind: ObjectKind, reason: Reason) -> Problem {
        Problem { subject: id(kind), field: "spec".into(), reason, message: "so it is".into() }
    }

    fn acknowledged_policy(problems: Vec<Problem>) -> PolicyView {
        PolicyView {
            namespace: "shop".into(),
            name: "pay".into(),
            target: String::new(),
            file: "pay.yaml".into(),
            generation: 1,
            accepted: true,
            programmed: Programmed { acknowledged: 2, targeted: 2 },
            problems,
            outdated: false,
        }
    }

    #[test]
    fn a_policy_that_is_not_in_force_is_not_programmed() {
        assert!(matches!(of_policy(&acknowledged_policy(vec![])), Standing::Reached));
        for reason in [Reason::Invalid, Reason::TargetNotFound, Reason::Conflicted] {
            let standing = of_policy(&acknowledged_policy(vec![problem(ObjectKind::MeshPolicy, reason)]));
            assert!(matches!(standing, Standing::Never(why) if why.ends_with("so it is")), "{reason}");
        }
        for reason in [Reason::NotYetSupported, Reason::NoEffect, Reason::BelowFloor] {
            let standing = of_policy(&acknowledged_policy(vec![problem(ObjectKind::MeshPolicy, reason)]));
            assert!(matches!(standing, Standing::Reached), "{reason}");
        }
        let outdated = PolicyView { outdated: true, ..acknowledged_policy(vec![]) };
        assert!(matches!(of_policy(&outdated), Standing::Never(why) if why.contains("pay.yaml")));
    }

    #[test]
    fn a_canary_that_is_held_says_why() {
        let canary = CanaryView {
            namespace: "shop".into(),
            name: "pay".into(),
            service: "shop/pay".into(),
            stable: "v1".into(),
            canary: "v2".into(),
            phase: Phase::Holding,
            step: "1/3".into(),
            share_percent: 0.0,
            because: "waiting".into(),
            needs: None,
            progress: None,
            problems: vec![problem(ObjectKind::Canary, Reason::NotYetSupported)],
            outdated: false,
        };
        let standing = of_canary(&canary, Phase::Succeeded);
        assert!(matches!(standing, Standing::NotYet(why) if why.ends_with("spec: so it is")));
    }

    #[test]
    fn what_its_file_says_wrong_of_an_object_is_found_by_its_name() {
        let error = |object| ErrorView { file: "a.yaml".into(), object, text: "a.yaml:4: wrong".into() };
        let errors = [error(None), error(Some(id(ObjectKind::MeshPolicy)))];
        let found =
            |kind, name: &str| refusal(&errors, kind, &Wanted::parse(name).expect("a name")).is_some();
        assert!(found(ObjectKind::MeshPolicy, "pay") && found(ObjectKind::MeshPolicy, "shop/pay"));
        assert!(!found(ObjectKind::MeshPolicy, "bank/pay") && !found(ObjectKind::Canary, "pay"));
    }
}
