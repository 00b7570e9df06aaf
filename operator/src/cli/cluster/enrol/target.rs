//! What a command is about: a namespace, or one workload in it.

use crate::{
    cli::Misspelt,
    observe::kubernetes::owner::{Kind, Workload},
};
use airlane_core::id::Namespace;

/// What a command is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) namespace: Namespace,
    /// The one workload; all of the namespace if not said.
    pub(super) workload: Option<Workload>,
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Target, Misspelt> {
        let misspelt = || {
            Misspelt(format!(
                "{text:?} is neither NAMESPACE nor NAMESPACE/KIND/NAME, such as shop/deployment/pay"
            ))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, workload) = match parts[..] {
            [namespace] => (namespace, None),
            [namespace, kind, name] if !name.is_empty() => {
                let kind = match kind.to_ascii_lowercase().as_str() {
                    "deployment" | "deployments" | "deploy" => Kind::Deployment,
                    "statefulset" | "statefulsets" | "sts" => Kind::StatefulSet,
                    "daemonset" | "daemonsets" | "ds" => Kind::DaemonSet,
                    _ => {
                        return Err(Misspelt(format!(
                            "{kind:?} is no kind whose pods can be replaced: deployment, statefulset or daemonset"
                        )));
                    }
                };
                (namespace, Some(Workload { kind, name: name.to_owned() }))
            }
            _ => return Err(misspelt()),
        };
        Ok(Target { namespace: Namespace::parse(namespace).map_err(|_| misspelt())?, workload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match Target::parse(text) {
            Ok(Target { namespace, workload: Some(workload) }) => format!("{namespace} {workload}"),
            Ok(Target { namespace, workload: None }) => namespace.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(shown.starts_with(expected), "{shown}");
    }

    #[test]
    fn a_target_is_a_namespace_or_a_workload_in_one() {
        check("shop", "shop");
        check("shop/Deployment/pay", "shop Deployment/pay");
        check("shop/sts/db", "shop StatefulSet/db");
        check("shop/job/once", "\"job\" is no kind");
        check("shop/pay", "\"shop/pay\" is neither");
        check("Shop", "\"Shop\" is neither");
        check("shop/deploy/", "\"shop/deploy/\" is neither");
    }
}
