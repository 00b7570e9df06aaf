//! A mistake in a file is explained, and changes nothing.

use airlane_tests::{
    binary,
    mesh::Mesh,
    until::{SOON, until},
    workload::App,
};
use std::{fs, process::Command};

/// One mistake: the file, where it is, which field, and a word of the mend.
struct Mistake {
    name: &'static str,
    yaml: &'static str,
    line: usize,
    field: &'static str,
    mend: &'static str,
}

const MISTAKES: [Mistake; 12] = [
    Mistake {
        name: "no-yaml",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments\nspec: {}\n",
        line: 4,
        field: "",
        mend: "brackets",
    },
    Mistake {
        name: "unknown-field",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  retries: { attempts: 3, perTryTimeOut: 1s }\n",
        line: 5,
        field: "spec.retries.perTryTimeOut",
        mend: "perTryTimeout",
    },
    Mistake {
        name: "unknown-kind",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolice\nmetadata: { name: payments }\nspec: {}\n",
        line: 2,
        field: "kind",
        mend: "MeshPolicy",
    },
    Mistake {
        name: "unknown-version",
        yaml: "apiVersion: airlane.dev/v2\nkind: MeshPolicy\nmetadata: { name: payments }\nspec: {}\n",
        line: 1,
        field: "apiVersion",
        mend: "airlane.dev/v1alpha1",
    },
    Mistake {
        name: "no-name",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { namespace: default }\nspec: {}\n",
        line: 3,
        field: "metadata.name",
        mend: "name",
    },
    Mistake {
        name: "bad-duration",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  timeouts:\n    request: 10 seconds\n",
        line: 6,
        field: "spec.timeouts.request",
        mend: "250ms",
    },
    Mistake {
        name: "bad-choice",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  targetRef: { kind: Service, name: ledger }\n  mtls: { mode: strict }\n",
        line: 6,
        field: "spec.mtls.mode",
        mend: "Strict",
    },
    Mistake {
        name: "text-for-number",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  retries:\n    attempts: three\n",
        line: 6,
        field: "spec.retries.attempts",
        mend: "digits",
    },
    Mistake {
        name: "text-for-list",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  retries: { attempts: 1, retryOn: 5xx }\n",
        line: 5,
        field: "spec.retries.retryOn",
        mend: "[",
    },
    Mistake {
        name: "key-twice",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  timeouts: { request: 1s }\n  timeouts: { request: 2s }\n",
        line: 6,
        field: "timeouts",
        mend: "keep one",
    },
    Mistake {
        name: "out-of-range",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: payments }\nspec:\n  circuitBreaker:\n    outlierDetection: { maxEjectionPercent: 150 }\n",
        line: 6,
        field: "spec.circuitBreaker.outlierDetection.maxEjectionPercent",
        mend: "100",
    },
    Mistake {
        name: "steps-not-rising",
        yaml: "apiVersion: airlane.dev/v1alpha1\nkind: Canary\nmetadata: { name: payments }\nspec:\n  service: payments\n  stable: { version: v1 }\n  canary: { version: v2 }\n  steps: [{ weight: 50% }, { weight: 10% }]\n  objectives: [{ name: errors, errorRate: { max: 1% } }]\n",
        line: 8,
        field: "spec.steps",
        mend: "larger",
    },
];

#[test]
fn a_mistake_is_told_with_its_file_its_line_its_field_and_the_mend() {
    let folder = tempfile::tempdir().unwrap();
    for Mistake { name, yaml, line, field, mend } in MISTAKES {
        let file = folder.path().join(format!("{name}.yaml"));
        fs::write(&file, yaml).unwrap();
        let output = Command::new(binary::airlane()).arg("check").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let place = format!("{name}.yaml:{line}:");
        let about = told.lines().find(|told| told.contains(&place));
        let about = about.unwrap_or_else(|| panic!("{name}: no error at line {line} in:\n{told}"));
        let (_, reason) = about.split_once(&place).unwrap();
        assert!(reason.contains(field), "{name}: {field} is not named: {about}");
        assert!(
            reason.rsplit(';').next().unwrap().contains(mend),
            "{name}: {mend:?} is not in the mend: {about}"
        );
    }
}

const GOOD: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: payments }
spec:
  targetRef: { kind: Service, name: payments }
  timeouts: { request: 7s }
";

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_mesh_is_untouched_by_a_mistake() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _payments = mesh.workload(App::new("payments")).await;
    mesh.program("good.yaml", "default/payments", GOOD).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    let in_force = mesh.ask(&["get", "effective", "default/payments", "-o", "json"]).await;
    assert!(in_force.contains("7s"), "{in_force}");
    let config = front.config().await.unwrap();

    for Mistake { name, yaml, line, .. } in MISTAKES {
        let file = format!("{name}.yaml");
        // The objects of the mistaken files have names of their own, so that none takes another's place.
        mesh.apply(&file, &yaml.replace("name: payments", &format!("name: {name}")));
        until(&format!("the mesh tells the mistake in {file}"), SOON, async || {
            let told = mesh.cli(&["check"]).await;
            let told = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
            if told.contains(&format!("{file}:{line}:")) { Ok(()) } else { Err(told.into_owned()) }
        })
        .await;
    }
    assert_eq!(mesh.ask(&["get", "effective", "default/payments", "-o", "json"]).await, in_force);
    assert_eq!(front.config().await.unwrap(), config);
    mesh.call_gives(&front, "http://payments/", 200).await;

    // A good file that becomes a bad one: what was good stays in force, and the row says so.
    mesh.apply("good.yaml", &GOOD.replace("7s", "7 s"));
    until("the policy is marked as outdated", SOON, async || {
        let row = mesh.policy("default/payments").await?;
        if row["outdated"] == true { Ok(()) } else { Err(row.to_string()) }
    })
    .await;
    assert_eq!(mesh.ask(&["get", "effective", "default/payments", "-o", "json"]).await, in_force);
    mesh.assert_nothing_rejected().await;
}
