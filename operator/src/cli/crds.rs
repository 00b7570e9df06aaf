//! `airlane crds`: the resource definitions.

use super::say;
use anyhow::Context;
use std::path::Path;

/// Prints the definitions, or writes one file each into a directory.
pub(crate) fn crds(write: Option<&Path>) -> anyhow::Result<()> {
    if let Some(directory) = write {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    for (file, yaml) in airlane_api::crds()? {
        match write {
            Some(directory) => {
                let path = directory.join(file);
                std::fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
            }
            None => say(&format!("---\n{yaml}")),
        }
    }
    Ok(())
}
