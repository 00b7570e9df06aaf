//! `airlane check`: files without a mesh, or a running mesh.

use super::{client::Client, say, table::plain};
use crate::{app::system_namespace, local::server::Summary, observe::standalone::Directory};
use airlane_api::read_file;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// Reads files as the operator would and prints what is wrong with them.
pub(crate) fn check_files(paths: &[PathBuf]) -> anyhow::Result<()> {
    let (mut objects, mut errors) = (0, 0);
    let mut report = |text: String| {
        errors += 1;
        say(&format!("{}\n", plain(&text)));
    };
    for path in paths {
        if path.is_dir() {
            let directory = Directory::open(path, system_namespace()?)?;
            let declared = directory.declared();
            objects += declared.objects.len();
            declared.errors.values().flatten().for_each(|error| report(error.to_string()));
            declared
                .objects
                .values()
                .flat_map(|object| &object.problems)
                .for_each(|problem| report(problem.to_string()));
        } else {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let parsed = read_file(&path.display().to_string(), &text, &system_namespace()?);
            objects += parsed.objects.len();
            parsed.errors.iter().for_each(|error| report(error.to_string()));
            parsed
                .objects
                .iter()
                .flat_map(|object| &object.problems)
                .for_each(|problem| report(problem.to_string()));
        }
    }
    if errors > 0 {
        bail!("{errors} found, {objects} objects are right");
    }
    say(&format!("{objects} objects, nothing wrong\n"));
    Ok(())
}

/// Asks the running mesh how it is.
pub(crate) async fn check_mesh(state: &Path) -> anyhow::Result<()> {
    let summary: Summary = Client::new(state).get("/v1/summary").await?;
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
    if summary.dropped_reports > 0 {
        say(&format!("{} reports of proxies were dropped\n", summary.dropped_reports));
    }
    let wrong = summary.errors.len() + summary.problems.len() + summary.proxies - summary.current;
    if wrong > 0 {
        bail!("the mesh is not as it should be");
    }
    Ok(())
}
