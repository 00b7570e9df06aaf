//! `airlane install`: the chart is within this program, so that the two are of one version; Helm does the rest, and
//! upgrades and uninstalls what it installed.

use crate::args::Where;
use anyhow::{Context, bail};
use std::{io, path::Path, process::Stdio};

macro_rules! files_of_the_chart {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/airlane/", $path)))),*]
    };
}

/// Every file of the chart: where it is in it, and its text.
const CHART: [(&str, &str); 16] = files_of_the_chart![
    ".helmignore",
    "Chart.yaml",
    "files/crds/canaries.airlane.dev.yaml",
    "files/crds/meshpolicies.airlane.dev.yaml",
    "templates/NOTES.txt",
    "templates/_names.tpl",
    "templates/admission.yaml",
    "templates/crds.yaml",
    "templates/deployment.yaml",
    "templates/hooks/test.yaml",
    "templates/hooks/uninstall.yaml",
    "templates/rbac.yaml",
    "templates/services.yaml",
    "templates/webhooks.yaml",
    "values.schema.json",
    "values.yaml",
];

/// The name of the release.
const RELEASE: &str = "airlane";

/// Writes the chart into a directory.
pub(crate) fn write_chart(directory: &Path) -> anyhow::Result<()> {
    for (path, text) in CHART {
        let file = directory.join(path);
        let write = || {
            file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&file, text)
        };
        write().with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Installs or upgrades the release with Helm.
pub(crate) async fn install(place: &Where, more: &[String]) -> anyhow::Result<()> {
    let chart = tempfile::tempdir().context("cannot make a temporary directory")?;
    write_chart(chart.path())?;
    let mut helm = tokio::process::Command::new("helm");
    helm.args(["upgrade", RELEASE]).arg(chart.path());
    helm.args(["--install", "--create-namespace", "--namespace", place.operator_namespace.as_str()]);
    helm.args(place.context.iter().flat_map(|context| ["--kube-context", context]));
    let status = helm.args(more).stdin(Stdio::null()).status().await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("helm failed ({status})"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "helm is not in your PATH: install it (https://helm.sh), or write the chart with `airlane install --write \
             DIR` for whatever applies charts for you"
        ),
        Err(error) => Err(error).context("cannot run helm"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::PathBuf};

    fn files(directory: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => files(&path, found),
                false => found.extend([path]),
            }
        }
    }

    #[test]
    fn the_whole_chart_is_within() {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/airlane");
        let mut found = BTreeSet::new();
        files(&chart, &mut found);
        let within: BTreeSet<PathBuf> = CHART.iter().map(|(path, _)| chart.join(path)).collect();
        assert_eq!(found, within);
    }

    #[test]
    fn the_chart_is_of_this_version() {
        let (_, manifest) = CHART[1];
        for field in ["version", "appVersion"] {
            let line = format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"));
            assert!(manifest.contains(&line), "Chart.yaml must say {}", line.trim());
        }
    }
}
