//! What a `Canary` means.

use super::{
    Remarks,
    rules::{matches, one_of},
};
use crate::{
    canary as shape,
    field::FieldPath,
    name::{NameText, RevisionText},
    quantity::Share,
};
use airlane_core::{
    id::{ObjectId, Revision, ServiceId},
    mesh::FULL_SHARE,
    rollout::{Asked, Canary, Rollout, StepPlan},
    slo::Objective,
};
use std::collections::BTreeMap;

/// The steps of a plan that names none, in percent.
const DEFAULT_STEPS_PERCENT: [u32; 4] = [5, 25, 50, 100];
/// The objective of a plan that names none: at most this rate of errors.
const DEFAULT_MAX: f64 = 0.01;
/// α of a plan that names none.
const DEFAULT_FALSE_ROLLBACK: f64 = 0.001;
/// β of a plan that names none.
const DEFAULT_WRONG_PROMOTION: f64 = 0.01;

/// The canary; `None` if it cannot be run, for a reason that is among the remarks.
pub(crate) fn canary(
    id: &ObjectId,
    annotations: Option<&BTreeMap<String, String>>,
    spec: &shape::CanarySpec,
    remarks: &mut Remarks,
) -> Option<Canary> {
    let held = hold_back(spec, remarks);
    audience(spec, remarks);
    let steps = steps(spec.steps.as_deref(), remarks);
    let objectives = objectives(&spec.objectives, remarks);
    let judgement = spec.judgement.clone().unwrap_or_default();
    let false_rollback = judgement.false_rollback;
    let wrong_promotion = judgement.wrong_promotion;
    let false_rollback =
        probability("falseRollback", false_rollback, remarks).unwrap_or(DEFAULT_FALSE_ROLLBACK);
    let wrong_promotion =
        probability("wrongPromotion", wrong_promotion, remarks).unwrap_or(DEFAULT_WRONG_PROMOTION);
    let Parties { service, stable, canary } = parties(spec, remarks)?;
    Some(Canary {
        id: id.clone(),
        generation: 0,
        age_rank: 0,
        asked: asked(annotations, &canary),
        progress: None,
        plan: Rollout {
            service: ServiceId { namespace: id.namespace.clone(), name: service.0 },
            stable,
            canary,
            steps,
            objectives,
            false_rollback,
            wrong_promotion,
            suspend: spec.suspend == Some(true),
            held,
        },
    })
}

struct Parties {
    service: NameText,
    stable: Revision,
    canary: Revision,
}

/// Who shares the traffic of what.
fn parties(spec: &shape::CanarySpec, remarks: &mut Remarks) -> Option<Parties> {
    const MEND: &str = "write service: NAME, stable: { version: v1 } and canary: { version: v2 }";
    let spec_path = FieldPath::of("spec");
    if let Some(target) = &spec.target_ref {
        let path = spec_path.key("targetRef");
        if spec.service.is_some() || spec.stable.is_some() || spec.canary.is_some() {
            let message = "a canary has targetRef, or service with stable and canary";
            remarks.refuse(path, message, "remove one of the two");
        } else {
            let consequence = format!("to release a {:?} by itself is not possible yet; {MEND}", target.kind);
            remarks.not_yet(&path, &consequence);
        }
        return None;
    }
    let version = |version: &Option<shape::Version>| {
        version.clone().map(|shape::Version { version: RevisionText(v) }| v)
    };
    let (service, stable, canary) = (spec.service.clone(), version(&spec.stable), version(&spec.canary));
    let present =
        [("service", service.is_some()), ("stable", stable.is_some()), ("canary", canary.is_some())];
    for (name, _) in present.into_iter().filter(|(_, present)| !present) {
        remarks.refuse(spec_path.key(name), "is missing", MEND);
    }
    let parties = Parties { service: service?, stable: stable?, canary: canary? };
    if parties.stable == parties.canary {
        let message = format!("{} is the stable version too", parties.canary);
        remarks.refuse(FieldPath::of("spec.canary.version"), message, "name the version on trial");
    }
    Some(parties)
}

/// Who is to see the canary must be said in one way.
fn audience(spec: &shape::CanarySpec, remarks: &mut Remarks) {
    let path = FieldPath::of("spec.match");
    match &spec.matches {
        Some(wanted) => matches(&wanted.0, &path, remarks),
        None if spec.strategy == Some(shape::Strategy::AB) => {
            remarks.refuse(path, "AB goes by what requests say", "write match");
        }
        None => {}
    }
}

/// What in the plan restrains the release in a way we cannot follow yet. Going on without it would show the canary to
/// people its author kept it from, so such a canary is held: why, and the mend.
fn hold_back(spec: &shape::CanarySpec, remarks: &mut Remarks) -> Option<String> {
    const HELD: &str = "the canary is held as long as this is here";
    let mut restraints = Vec::new();
    let mut hold = |path: FieldPath| {
        remarks.not_yet(&path, HELD);
        restraints.push(path.to_string());
    };
    if spec.strategy.is_some_and(|strategy| strategy != shape::Strategy::Progressive) {
        hold(FieldPath::of("spec.strategy"));
    }
    for (index, step) in spec.steps.iter().flatten().enumerate() {
        if step.approve == Some(true) {
            hold(FieldPath::of("spec.steps").index(index).key("approve"));
        }
    }
    // Their problems are told with the other fields of their kind.
    let others = [("spec.match", spec.matches.is_some()), ("spec.gates", spec.gates.is_some())];
    restraints.extend(others.into_iter().filter(|(_, given)| *given).map(|(path, _)| path.to_owned()));
    match restraints.as_slice() {
        [] => None,
        [one] => Some(format!("{one} is not supported yet; remove it")),
        many => Some(format!("{} are not supported yet; remove them", many.join(", "))),
    }
}

fn steps(steps: Option<&[shape::Step]>, remarks: &mut Remarks) -> Vec<StepPlan> {
    let Some(steps) = steps else {
        let share = |percent| percent * FULL_SHARE / 100;
        return DEFAULT_STEPS_PERCENT
            .map(|percent| StepPlan { share: share(percent), at_least: None })
            .into();
    };
    let mut before: Option<Share> = None;
    let mut plan = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let path = FieldPath::of("spec.steps").index(index).key("weight");
        let weight = step.weight;
        match (weight.parts(), before) {
            (None, _) => remarks.refuse(
                path,
                format!("{weight} is too fine a weight"),
                "use at most two decimals, as in 0.01%",
            ),
            (Some(0), _) => remarks.refuse(path, "0% sends nothing to the canary", "write at least 0.01%"),
            (Some(_), Some(before)) if weight <= before => {
                let message = format!("{weight} is not more than the step before, {before}");
                remarks.refuse(path, message, "let each step be larger than the one before");
            }
            (Some(share), _) => {
                plan.push(StepPlan { share, at_least: step.at_least.map(|duration| duration.0) });
            }
        }
        before = Some(weight);
    }
    // Adding the last step ourselves would give the canary traffic its author did not write down.
    if let Some(last) = before.filter(|last| last.parts() != Some(FULL_SHARE)) {
        let path = FieldPath::of("spec.steps").index(steps.len() - 1).key("weight");
        remarks.refuse(
            path,
            format!("the last step is {last}"),
            "add a step { weight: 100% }: a release ends with all of the traffic",
        );
    }
    plan
}

fn objectives(objectives: &[shape::Objective], remarks: &mut Remarks) -> Vec<Objective> {
    let mut judged = Vec::new();
    for (index, objective) in objectives.iter().enumerate() {
        let path = FieldPath::of("spec.objectives").index(index);
        let shape::Objective { error_rate: rate, latency, metric, .. } = objective;
        if one_of([rate.is_some(), latency.is_some(), metric.is_some()]).is_err() {
            let mend = "give exactly one of errorRate, latency and metric";
            remarks.refuse(path.clone(), "an objective bounds one thing", mend);
        }
        if let Some(rate) = rate {
            judged.push(error_rate(&objective.name, rate, &path.key("errorRate"), remarks));
        }
    }
    if judged.is_empty() {
        judged.push(Objective {
            name: "errors".into(),
            max: DEFAULT_MAX,
            worse_than_stable: 1.0,
            ignore_below: DEFAULT_MAX / 10.0,
        });
    }
    judged
}

fn error_rate(
    name: &NameText,
    rate: &shape::ErrorRate,
    path: &FieldPath,
    remarks: &mut Remarks,
) -> Objective {
    let max = rate.max.fraction();
    if !(max > 0.0 && max < 1.0) {
        remarks.refuse(
            path.key("max"),
            format!("{} bounds nothing", rate.max),
            "write more than 0% and less than 100%",
        );
    }
    if let Some(floor) = rate.ignore_below.filter(|floor| *floor > rate.max) {
        let message = format!("{floor} is more than max, {}", rate.max);
        remarks.refuse(path.key("ignoreBelow"), message, "write at most max");
    }
    Objective {
        name: name.to_string(),
        max,
        worse_than_stable: rate.worse_than_stable.map_or(1.0, |ratio| ratio.factor()),
        ignore_below: rate.ignore_below.map_or(max / 10.0, Share::fraction),
    }
}

fn probability(name: &str, share: Option<Share>, remarks: &mut Remarks) -> Option<f64> {
    let share = share?;
    let probability = share.fraction();
    if !(probability > 0.0 && probability < 1.0) {
        let path = FieldPath::of("spec.judgement").key(name);
        remarks.refuse(path, format!("{share} cannot be kept"), "write more than 0% and less than 100%");
    }
    Some(probability)
}

/// The verb asked for by annotation. Each names the revision it is about, so that an old one does not act on the
/// next release; the careful one wins.
fn asked(annotations: Option<&BTreeMap<String, String>>, canary: &Revision) -> Option<Asked> {
    let annotations = annotations?;
    [(shape::ABORT, Asked::Abort), (shape::RETRY, Asked::Retry), (shape::PROMOTE, Asked::Promote)]
        .into_iter()
        .find(|(verb, _)| annotations.get(*verb).is_some_and(|revision| revision == canary.as_str()))
        .map(|(_, asked)| asked)
}
