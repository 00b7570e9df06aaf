//! What the README has people type in a cluster, typed word for word.

use airlane_tests::{
    binary,
    kube::{Cluster, PODS_SOON},
    until::until,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of a section's console blocks, by their prompts: `$` on the machine, `#` in the cluster.
fn commands(markdown: &str, section: &str) -> Vec<(char, String)> {
    let (_, rest) = markdown.split_once(&format!("\n## {section}\n")).unwrap();
    let text = rest.split("\n## ").next().unwrap();
    let blocks = text.split("```console\n").skip(1).filter_map(|block| Some(block.split_once("```")?.0));
    let command = |line: &str| {
        let (prompt, command) = line.split_once(' ')?;
        Some((prompt.chars().next().filter(|c| "$#".contains(*c))?, command.to_owned()))
    };
    blocks.flat_map(str::lines).filter_map(command).collect()
}

/// Takes what was made away, whatever became of the test.
struct Leaving<'a>(&'a Cluster);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        for line in [
            "helm uninstall airlane --namespace airlane-system --no-hooks",
            "kubectl delete namespace shop airlane-system --wait=false",
        ] {
            let mut words = line.split(' ');
            // It may not be there.
            let _ = self.0.command(words.next().unwrap()).args(words).output();
        }
    }
}

async fn type_in(cluster: &Cluster, line: &str) -> Result<String, String> {
    let mut shell: Command = cluster.command("bash");
    let path =
        shell.get_envs().find_map(|(name, value)| value.filter(|_| name == "PATH")).unwrap().to_owned();
    let programs = binary::airlane().parent().unwrap().display().to_string();
    shell.env("PATH", format!("{programs}:{}", path.display()));
    shell.args(["-c", line]).current_dir(repository()).env("AIRLANE_STATE", "/nowhere");
    let output = tokio::process::Command::from(shell).output().await.map_err(|error| error.to_string())?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(format!("{line}: {said}")) }
}

#[tokio::test]
async fn the_quick_start_of_the_readme_does_what_it_says() {
    let Some(cluster) = Cluster::alone().await else { return };
    cluster.airlane_image().await;
    cluster.without("airlane-system").await;
    let _leaving = Leaving(&cluster);
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (on_the_machine, in_the_cluster): (Vec<_>, Vec<_>) =
        commands(&readme, "In a cluster").into_iter().partition(|(prompt, _)| *prompt == '$');
    // The harness has done these, and made the same image.
    let made = on_the_machine.iter().any(|(_, line)| line.starts_with("make build cluster"));
    assert!(made, "{on_the_machine:?}");
    assert!(in_the_cluster.len() > 5, "{in_the_cluster:?}");
    for (_, line) in in_the_cluster {
        if line == "airlane check" {
            // The API server hears of the webhook a moment after the operator is there.
            until("all is well", PODS_SOON, async || type_in(&cluster, &line).await).await;
            continue;
        }
        let said = type_in(&cluster, &line).await.unwrap();
        if line.starts_with("airlane canary status") {
            assert!(said.contains("RolledBack"), "{said}");
        }
    }
}
