//! The command line keeps its word: what it prints can be read by people and by programs, and its exit code says
//! whether it is so.

use airlane_tests::{
    binary,
    mesh::Mesh,
    process::Process,
    until::{SOON, until},
    workload::{App, Workload},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

const RESOURCES: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: quick }
spec:
  targetRef: { kind: Service, name: payments }
  timeouts: { request: 10s }
---
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: { name: payments }
spec:
  service: payments
  stable: { version: v1 }
  canary: { version: v2 }
";

async fn furnished(mesh: &Mesh) -> [Workload; 2] {
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    mesh.program("resources.yaml", "default/quick", RESOURCES).await;
    until("the canary is known", SOON, async || mesh.canary("default/payments").await).await;
    [front, payments]
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the command says when it exits with `code`.
fn said(line: &str, output: &Output, code: i32) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "airlane {line}: {out}{err}");
    out + &err
}

/// The names of the fields of an answer's first object.
fn fields(value: &Value) -> BTreeSet<String> {
    let first = value.get(0).unwrap_or(value);
    first.as_object().map_or_else(BTreeSet::new, |fields| fields.keys().cloned().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listing_is_a_table_json_and_yaml() {
    let mesh = Mesh::start().await;
    let [front, _payments] = furnished(&mesh).await;
    let config = format!("proxy config {}", front.instance());
    let proxy = format!("describe proxy {}", front.instance());
    for (line, header) in [
        ("get services", "NAMESPACE NAME PORTS READY MTLS RPS 5XX RETRIES/S BREAKER"),
        ("get endpoints", "NAMESPACE SERVICE VERSION INSTANCE ADDRESS HEALTH BREAKER WHY"),
        ("get endpoints payments", "NAMESPACE SERVICE VERSION INSTANCE ADDRESS HEALTH BREAKER WHY"),
        ("get proxies", "NAMESPACE PROXY CONNECTED CURRENT EPOCH REJECTED"),
        ("get policies", "NAMESPACE NAME TARGET ACCEPTED PROGRAMMED PROBLEMS"),
        ("get policies default/quick", "NAMESPACE NAME TARGET ACCEPTED PROGRAMMED PROBLEMS"),
        ("get effective payments", "FIELD VALUE FROM"),
        ("get canaries", "NAMESPACE NAME VERSIONS PHASE STEP WEIGHT BECAUSE"),
        ("describe service payments", "default/payments mTLS: PERMISSIVE · Retries: 0 · Breaker: CLOSED"),
        ("describe policy default/quick", "MeshPolicy: default/quick"),
        ("describe canary payments", "Canary: default/payments"),
        (&proxy, &format!("Proxy: {}", front.instance())),
        ("canary status payments", "Canary: default/payments"),
        (&config, "KIND NAME VERSION BYTES"),
        ("certs list", "HOLDER SUBJECT ENDS RENEWED"),
        ("token list", "ID FOR MADE GOOD"),
    ] {
        let table = mesh.ask(&words(line)).await;
        let first = table.lines().next().unwrap_or_default();
        assert_eq!(words(first), words(header), "airlane {line}");
        let json = mesh.ask(&[words(line), vec!["-o", "json"]].concat()).await;
        let json: Value =
            serde_json::from_str(&json).unwrap_or_else(|error| panic!("{line}: {error}: {json}"));
        let yaml = mesh.ask(&[words(line), vec!["-o", "yaml"]].concat()).await;
        let yaml: Value =
            serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{line}: {error}: {yaml}"));
        assert!(!fields(&json).is_empty(), "airlane {line}: {json}");
        assert_eq!(fields(&json), fields(&yaml), "airlane {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_an_error_that_names_it() {
    let mesh = Mesh::start().await;
    let _workloads = furnished(&mesh).await;
    for line in [
        "get services ghost",
        "get endpoints ghost",
        "get proxies ghost",
        "get policies ghost",
        "get policies other/ghost",
        "get effective ghost",
        "get canaries ghost",
        "describe service ghost",
        "describe policy ghost",
        "describe canary ghost",
        "describe proxy ghost",
        "canary status ghost",
        "canary pause ghost",
        "canary abort ghost",
        "proxy config ghost",
        "certs rotate ghost",
        "token revoke ghost",
    ] {
        let told = said(line, &mesh.cli(&words(line)).await, 1);
        assert!(told.contains("ghost"), "airlane {line}: {told}");
    }
    let told = said("get effective", &mesh.cli(&["get", "effective"]).await, 2);
    assert!(told.contains("NAMESPACE/NAME"), "{told}");
    // A service that is there, looked for where it is not.
    said("get services shop/payments", &mesh.cli(&["get", "services", "shop/payments"]).await, 1);
    for line in
        ["", "get", "get gohsts", "canary", "canary pause", "wait", "get services -o xml", "token create"]
    {
        said(line, &mesh.cli(&words(line)).await, 2);
    }
    for line in [
        "get policies a/b/c",
        "describe canary a/b/c",
        "canary status a/b/c",
        "wait canary/x/y/z",
        "token create --service A_b",
    ] {
        said(line, &mesh.cli(&words(line)).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_it_is_so_or_says_why_it_is_not() {
    let mesh = Mesh::start().await;
    let _workloads = furnished(&mesh).await;
    for line in [
        "wait mesh",
        "wait service/payments",
        "wait service/default/payments",
        "wait policy/quick --for Programmed",
        "wait canary/payments --for Idle",
    ] {
        mesh.ask(&words(line)).await;
    }
    for (line, why) in [
        ("wait service/ghost --timeout 300ms", "no service ghost"),
        ("wait policy/ghost --timeout 300ms", "no policy ghost"),
        ("wait canary/payments --for Succeeded --timeout 300ms", "it is Idle"),
    ] {
        let told = said(line, &mesh.cli(&words(line)).await, 1);
        assert!(told.contains(why) && told.contains("waited"), "airlane {line}: {told}");
    }
    // What stands in a file and is not accepted is not waited for.
    let refused = RESOURCES.replace("name: quick", "name: broken").replace("timeouts", "timeout");
    mesh.apply("broken.yaml", &refused);
    until("the wait for a policy in error is in vain", SOON, async || {
        let output = mesh.cli(&["wait", "policy/broken", "--timeout", "100ms"]).await;
        let told = text(&output.stderr);
        if told.contains("in vain") && told.contains("broken.yaml:6") { Ok(()) } else { Err(told) }
    })
    .await;
    // What can never be is not waited for.
    for (line, mend) in [
        ("wait canary/payments --for Finished", "Succeeded"),
        ("wait service/payments --for Programmed", "Ready"),
        ("wait mesh --for Programmed", "Ready"),
        ("wait policy/quick --for Ready", "Programmed"),
        ("wait gohst/payments", "service/NAME"),
    ] {
        let asked = Instant::now();
        let told = said(line, &mesh.cli(&words(line)).await, 2);
        assert!(told.contains(mend), "airlane {line}: {told}");
        assert!(asked.elapsed() < Duration::from_secs(30), "airlane {line}: waited in vain");
    }
}

#[test]
fn without_a_mesh_every_command_says_how_to_start_one() {
    let state = tempfile::tempdir().unwrap();
    for line in [
        "check",
        "get services",
        "describe service payments",
        "canary status payments",
        "proxy config x",
        "certs list",
        "token list",
        "wait mesh --timeout 100ms",
    ] {
        let output = Command::new(binary::airlane())
            .arg("--state")
            .arg(state.path())
            .args(words(line))
            .output()
            .unwrap();
        let told = said(line, &output, 1);
        assert!(told.contains("airlane up") && told.contains("--state"), "airlane {line}: {told}");
    }
}

#[test]
fn without_a_kubeconfig_it_is_said_where_one_is_looked_for() {
    let home = tempfile::tempdir().unwrap();
    let mut airlane = Command::new(binary::airlane());
    airlane.args(["get", "policies", "--kube"]).env("HOME", home.path()).env_remove("KUBECONFIG");
    let told = said("get policies --kube", &airlane.output().unwrap(), 1);
    let kubeconfig = home.path().join(".kube/config").display().to_string();
    assert!(told.contains(&kubeconfig) && told.contains("--context") && told.lines().count() == 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_files_and_the_mesh_are_right() {
    let mesh = Mesh::start().await;
    let _workloads = furnished(&mesh).await;
    mesh.ask(&["wait", "mesh"]).await;
    let told = mesh.ask(&["check"]).await;
    assert!(told.contains("2 of 2 proxies connected, 2 run everything published"), "{told}");

    let (good, bad) = (mesh.home().join("good.yaml"), mesh.home().join("bad.yaml"));
    fs::write(&good, RESOURCES).unwrap();
    fs::write(&bad, RESOURCES.replace("timeouts", "timeout")).unwrap();
    let told = mesh.ask(&["check", good.to_str().unwrap()]).await;
    assert!(told.contains("2 objects, nothing wrong"), "{told}");
    let early = mesh.home().join("early.yaml");
    fs::write(&early, RESOURCES.replace("  timeouts:", "  rateLimits: []\n  timeouts:")).unwrap();
    let told = mesh.ask(&["check", early.to_str().unwrap()]).await;
    assert!(told.contains("early.yaml:6: MeshPolicy default/quick: spec.rateLimits: "), "{told}");
    assert!(told.contains("2 objects, nothing wrong; 1 warning"), "{told}");
    let told = said("check bad.yaml", &mesh.cli(&["check", bad.to_str().unwrap()]).await, 1);
    assert!(told.contains("1 mistake; 1 of 2 objects right"), "{told}");
    assert!(told.contains("spec.timeout") && told.contains("bad.yaml:6"), "{told}");
    let copy = mesh.home().join("copy.yaml");
    fs::write(&copy, RESOURCES).unwrap();
    let files = ["check", good.to_str().unwrap(), copy.to_str().unwrap(), good.to_str().unwrap()];
    let told = said("check good.yaml copy.yaml", &mesh.cli(&files).await, 1);
    assert!(told.contains("is already in") && told.contains("good.yaml:"), "{told}");
    fs::remove_file(copy).unwrap();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let told = mesh.ask(&["check", examples]).await;
    assert!(told.contains("nothing wrong") && told.contains("of other kinds passed over"), "{told}");
    let told = said("check nowhere.yaml", &mesh.cli(&["check", "nowhere.yaml"]).await, 1);
    assert!(told.contains("nowhere.yaml"), "{told}");

    fs::copy(bad, mesh.policies().join("bad.yaml")).unwrap();
    until("the running mesh tells of the file", SOON, async || {
        let output = mesh.cli(&["check"]).await;
        let told = text(&output.stdout);
        let so =
            output.status.code() == Some(1) && told.contains("bad.yaml:6") && told.contains("spec.timeout");
        if so { Ok(()) } else { Err(told) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_its_service_in_until_it_is_revoked() {
    let mesh = Mesh::start().await;
    assert!(mesh.ask(&["certs", "list"]).await.contains("ROOT"));
    let before: Value = serde_json::from_str(&mesh.ask(&["token", "list", "-o", "json"]).await).unwrap();
    let join = mesh.ask(&["token", "create", "--service", "ledger", "--ttl", "1h"]).await;
    let tokens: Value = serde_json::from_str(&mesh.ask(&["token", "list", "-o", "json"]).await).unwrap();
    let rows = tokens.as_array().unwrap();
    assert_eq!(rows.len(), before.as_array().unwrap().len() + 1);
    let row = rows.iter().find(|row| row["service"] == "default/ledger").unwrap();
    assert!(!tokens.to_string().contains(join.trim()), "the list tells the secret");
    let id = row["id"].as_str().unwrap();

    let mut ledger = mesh.workload(App::new("ledger").token(&join)).await;
    assert_eq!(mesh.ask(&["token", "revoke", id]).await, format!("token {id} is revoked\n"));
    assert!(mesh.ask(&["token", "list"]).await.contains("revoked"));
    said("token revoke", &mesh.cli(&["token", "revoke", id]).await, 1);

    let mut late = mesh.launch(App::new("ledger").token(&join));
    let ended = until("the late one gives up", SOON, async || {
        late.sidecar().ended().ok_or_else(|| "it goes on".to_owned())
    })
    .await;
    assert!(!ended.success() && late.sidecar().log().contains("refused"), "{}", late.sidecar().log());
    // Who joined in time stays.
    assert!(ledger.sidecar().ended().is_none());
    let rows = mesh.get("endpoints").await.unwrap();
    assert!(
        rows.iter().any(|row| row["instance"] == ledger.instance() && row["health"] == "Healthy"),
        "{rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_on_demand() {
    let mesh = Mesh::start().await;
    let [front, payments] = furnished(&mesh).await;
    let serials =
        async || -> Result<[String; 2], String> { Ok([serial(&front).await?, serial(&payments).await?]) };
    let before = serials().await.unwrap();
    assert!(mesh.ask(&["certs", "rotate", front.instance()]).await.starts_with("1 "));
    let rotated = until("front has a new certificate", SOON, async || {
        let now = serials().await?;
        if now[0] != before[0] { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert_eq!(rotated[1], before[1], "the other one was not meant");
    assert!(mesh.ask(&["certs", "rotate"]).await.starts_with("2 "));
    until("both have new certificates", SOON, async || {
        let now = serials().await?;
        if now[0] != rotated[0] && now[1] != rotated[1] { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    mesh.call_gives(&front, "http://payments/", 200).await;
}

/// The serial number of the certificate a workload's Envoy shows.
async fn serial(of: &Workload) -> Result<String, String> {
    let certificates = of.admin("/certs").await?.json();
    let chains = certificates["certificates"].as_array().ok_or("no certificates")?;
    let leaf = chains.iter().find_map(|entry| entry["cert_chain"].as_array()?.first()).ok_or("no leaf")?;
    leaf["serial_number"].as_str().map(str::to_owned).ok_or_else(|| leaf.to_string())
}

#[test]
fn an_answer_that_nobody_reads_is_no_crash_and_one_that_is_cut_off_is_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = Command::new(binary::airlane()).arg("crds").stdout(writer).output().unwrap();
    assert_eq!(said("crds | head -0", &unread, 0), "");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let cut = Command::new(binary::airlane()).arg("crds").stdout(full).output().unwrap();
    let told = said("crds >/dev/full", &cut, 1);
    assert!(told.contains("standard output") && told.lines().count() == 1, "{told}");
}

/// A demo in a folder of its own, once its operator and a sidecar run.
async fn demo(home: &Path) -> Process {
    let mut command = Command::new(binary::airlane());
    command.args(["demo", "--no-tty"]).env("TMPDIR", home);
    let demo = Process::start("demo", command, home);
    until("the demo's operator and a sidecar run", SOON, async || {
        // One of the operator, one of a sidecar.
        if offspring(home).len() >= 2 { Ok(()) } else { Err(demo.log()) }
    })
    .await;
    demo
}

/// All files below a folder.
fn left_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { left_in(&path) } else { vec![path] }).collect()
}

/// The processes, beside the demo itself, whose command line names a file of the demo's.
fn offspring(home: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| text(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&home.join("airlane-demo-").display().to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_leaves_nothing_behind_when_it_is_asked_to_end() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let home = tempfile::tempdir().unwrap();
        let mut demo = demo(home.path()).await;
        demo.signal(signal);
        until("the demo ends", SOON, async || demo.ended().ok_or_else(|| demo.log())).await;
        assert_eq!(offspring(home.path()), [""; 0], "{signal}");
        assert_eq!(left_in(home.path()), [home.path().join("demo.log")], "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_killed_takes_its_mesh_along() {
    let home = tempfile::tempdir().unwrap();
    let mut demo = demo(home.path()).await;
    demo.kill();
    until("its processes are gone", SOON, async || {
        let left = offspring(home.path());
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })
    .await;
}

#[test]
fn the_demo_takes_no_state_directory() {
    let output = Command::new(binary::airlane()).args(["demo", "--state", "/tmp"]).output().unwrap();
    let told = said("demo --state", &output, 2);
    assert!(told.contains("--state"), "{told}");
}

#[test]
fn the_resource_definitions_are_printed_and_written() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("made/by/it");
    let run = |arguments: &[&str]| Command::new(binary::airlane()).args(arguments).output().unwrap();
    let printed = said("crds", &run(&["crds"]), 0);
    said("crds --write", &run(&["crds", "--write", folder.to_str().unwrap()]), 0);
    let mut written = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let yaml = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(yaml.contains("kind: CustomResourceDefinition") && printed.contains(&yaml));
        written += 1;
    }
    assert!(written >= 2, "only {written} files");
    let told = said("crds --write", &run(&["crds", "--write", "/dev/null/at/all"]), 1);
    assert!(told.contains("/dev/null/at/all"), "{told}");
}
