//! `airlane check`: files without a mesh, or a running mesh.

use super::{cluster, mesh::Mesh, say, table::plain};
use crate::{
    app::system_namespace,
    args::Where,
    local::server::Summary,
    observe::standalone::{files_below, read_bounded},
};
use airlane_api::{Parsed, merge, read_bytes};
use airlane_core::{
    id::Namespace,
    problem::{Problem, Reason},
};
use anyhow::bail;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Reads files as the operator would and prints what is wrong with them, each and together.
pub(crate) fn check_files(paths: &[PathBuf]) -> anyhow::Result<()> {
    let system_namespace = system_namespace()?;
    let mut seen = BTreeSet::new();
    let mut read = Vec::new();
    for path in paths {
        let files = if path.is_dir() { files_below(path)? } else { BTreeSet::from([path.clone()]) };
        for file in files {
            // A file may be named twice, by itself and by its directory.
            if file.canonicalize().is_ok_and(|file| !seen.insert(file)) {
                continue;
            }
            read.push(read_one(&file, &system_namespace));
        }
    }
    let all: usize = read.iter().map(|file| file.objects.len() + file.refused.len()).sum();
    let Parsed { objects, errors, passed_over, .. } = merge(read);
    let mut wrong: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let mut warnings = Vec::new();
    let mut right = 0;
    for object in &objects {
        let place = |problem: &Problem| {
            format!("{}:{}: {problem}", object.file, object.lines.locate(&problem.field).line)
        };
        // Whatever is not supported yet is accepted, unless nothing of the object can be used without it.
        let (unsupported, others): (Vec<&Problem>, Vec<&Problem>) = object
            .problems
            .iter()
            .partition(|problem| problem.reason == Reason::NotYetSupported && object.value.is_some());
        right += usize::from(others.is_empty());
        wrong.extend(others.into_iter().map(place));
        warnings.extend(unsupported.into_iter().map(place));
    }
    for line in &wrong {
        say(&format!("{}\n", plain(line)));
    }
    for line in &warnings {
        say(&format!("warning: {}\n", plain(line)));
    }
    if passed_over > 0 {
        say(&format!("{} of other kinds passed over\n", counted(passed_over, "object")));
    }
    if !wrong.is_empty() {
        bail!("{}; {right} of {} right", counted(wrong.len(), "mistake"), counted(all, "object"));
    }
    let warned = match warnings.len() {
        0 => String::new(),
        count => format!("; {}", counted(count, "warning")),
    };
    say(&format!("{}, nothing wrong{warned}\n", counted(all, "object")));
    Ok(())
}

/// A number of things.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn read_one(file: &Path, system_namespace: &Namespace) -> Parsed {
    let shown = file.display().to_string();
    match read_bounded(file) {
        Ok(content) => read_bytes(&shown, &content, system_namespace),
        Err(unreadable) => Parsed { errors: vec![unreadable.told(&shown)], ..Parsed::default() },
    }
}

/// Asks the running mesh how it is.
pub(crate) async fn check_mesh(place: &Where, state: &Path) -> anyhow::Result<()> {
    let client = match Mesh::find(place, state).await? {
        Mesh::Host(client) => client,
        Mesh::Cluster(mesh) => return cluster::check::installed(&mesh.cluster).await,
    };
    let summary: Summary = client.get("/v1/summary").await?;
    say(&format!(
        "{} services; {} of {} proxies connected, {} run everything published\n",
        summary.services, summary.connected, summary.proxies, summary.current
    ));
    for error in &summary.errors {
        say(&format!("{}\n", plain(&error.text)));
    }
    for problem in &summary.problems {
        say(&format!("{}\n", plain(problem)));
    }
    for warning in &summary.warnings {
        say(&format!("warning: {}\n", plain(warning)));
    }
    if summary.dropped_reports > 0 {
        say(&format!("{} reports of proxies were dropped\n", summary.dropped_reports));
    }
    let wrong = summary.errors.len() + summary.problems.len() + summary.proxies - summary.current;
    if wrong > 0 {
        bail!("the mesh is not as it should be");
    }
    Ok(())
}
