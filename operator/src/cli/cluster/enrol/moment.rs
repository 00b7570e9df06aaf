//! The cluster at one moment, and what is decided about who is in the mesh: as the operator decides it, but for what a
//! person may dare.

use super::{
    plan::{Plan, Step},
    target::Target,
};
use crate::{
    enrol::{
        decide::{Left, by_shape},
        record::{Record, Way},
        ties::{Judged, MEND, Tie, Ties, Why},
    },
    marks::asks,
    observe::kubernetes::{
        NamespaceLabels,
        owner::{Kind, Workload},
        pod::workload_name,
        workload::{Crew, Workloads},
    },
};
use airlane_core::id::Namespace;
use anyhow::{Context as _, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The cluster at one moment.
pub(super) struct Moment {
    pub(super) workloads: Arc<Workloads>,
    pub(super) namespaces: Arc<NamespaceLabels>,
    pub(super) ties: Ties,
    pub(super) judged: Judged,
    pub(super) system: Namespace,
}

impl Moment {
    pub(super) fn asks(&self, namespace: &Namespace) -> anyhow::Result<bool> {
        let labels =
            self.namespaces.get(namespace).with_context(|| format!("there is no namespace {namespace}"))?;
        if *namespace == self.system || namespace.as_str() == "kube-system" {
            bail!("pods of {namespace} are never in the mesh: the cluster must be able to start without it");
        }
        Ok(asks(labels))
    }

    /// The workloads of a target with such pods.
    pub(super) fn crews(
        &self,
        target: &Target,
        which: impl Fn(&Crew) -> bool,
    ) -> anyhow::Result<BTreeMap<Workload, Crew>> {
        let crews = self.workloads.crews.get(target.namespace.as_str()).cloned().unwrap_or_default();
        let Some(only) = &target.workload else {
            return Ok(crews.into_iter().filter(|(it, crew)| it.kind != Kind::Job && which(crew)).collect());
        };
        match crews.get(only) {
            None => bail!("{only} of {} has no running pods", target.namespace),
            Some(crew) if which(crew) => Ok(BTreeMap::from([(only.clone(), *crew)])),
            Some(_) => Ok(BTreeMap::new()),
        }
    }

    /// What the operator would not dare about a workload.
    pub(super) fn cautions(&self, namespace: &Namespace, workload: &Workload, way: Way) -> Vec<String> {
        let deployment = self.workloads.deployment(namespace.as_str(), &workload.name);
        let deployment = deployment.filter(|_| workload.kind == Kind::Deployment);
        let shape = match workload.kind {
            Kind::Deployment => deployment.and_then(by_shape),
            Kind::StatefulSet | Kind::DaemonSet => Some(Left::NotADeployment),
            Kind::Job | Kind::Pod | Kind::Other => None,
        };
        let record = deployment.and_then(|it| Record::of(it).ok()?).filter(|record| record.to == way);
        let put_back = record.and_then(|record| record.failed).map(|failed| Left::PutBack(failed.because));
        let doors = self.ties_of(namespace, workload).into_iter().flatten();
        let doors: BTreeSet<_> = doors.filter(|tie| tie.why != Why::Caller).cloned().collect();
        let doors = (way == Way::Join && !doors.is_empty()).then_some(Left::Tied(way, doors));
        let judged = workload_name(&workload.name)
            .and_then(|name| self.judged.get(&(namespace.clone(), name)))
            .map(|canary| Left::Judged(canary.clone()));
        let cautions = shape.into_iter().chain(put_back).chain(doors).chain(judged);
        cautions.map(|left| left.to_string()).collect()
    }

    fn ties_of(&self, namespace: &Namespace, workload: &Workload) -> Option<&BTreeSet<Tie>> {
        self.ties.get(&(namespace.clone(), workload_name(&workload.name)?))
    }

    /// Namespaces that ask for the mesh, or have pods in it.
    pub(super) fn with_mesh(&self) -> BTreeSet<Namespace> {
        let asking = self.namespaces.iter().filter(|(_, labels)| asks(labels)).map(|(name, _)| name.clone());
        let inside = self.workloads.crews.iter();
        let inside = inside.filter(|(_, crews)| crews.values().any(|crew| crew.meshed > 0));
        asking
            .chain(inside.filter_map(|(name, _)| Namespace::parse(name).ok()))
            .filter(|name| *name != self.system && name.as_str() != "kube-system")
            .collect()
    }

    /// How a target leaves the mesh.
    ///
    /// # Errors
    /// What ties it to the mesh.
    pub(super) fn plan_to_leave(&self, target: &Target) -> anyhow::Result<Plan> {
        let namespace = &target.namespace;
        let labelled = self.asks(namespace)?;
        let mut steps = Vec::new();
        let mut tied: BTreeSet<String> = BTreeSet::new();
        for (workload, crew) in self.crews(target, |crew| crew.meshed > 0)? {
            let ties = self.ties_of(namespace, &workload).into_iter().flatten();
            tied.extend(ties.map(|tie| format!("{workload}: {tie}")));
            let own = self
                .workloads
                .deployment(namespace.as_str(), &workload.name)
                .and_then(|it| it.inject.clone());
            let own = own.filter(|_| workload.kind == Kind::Deployment);
            let by_label = own.is_some() || labelled && target.workload.is_some();
            let blocked = match workload.kind {
                Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => None,
                Kind::Pod => Some(format!("{}: delete it", Left::NoController)),
                Kind::Job | Kind::Other => Some("its pods are replaced by whatever controls it".to_owned()),
            };
            let cautions = self.cautions(namespace, &workload, Way::Leave);
            steps.push(Step { workload, crew, blocked, cautions, by_label });
        }
        if !tied.is_empty() {
            let tied: Vec<String> = tied.into_iter().collect();
            bail!(
                "{namespace} cannot leave the mesh while only its sidecars keep what policies say: {}; {MEND}",
                tied.join("; ")
            );
        }
        let label = (labelled && target.workload.is_none()).then_some(None);
        Ok(Plan { namespace: namespace.clone(), way: Way::Leave, label, steps })
    }
}
