//! Releases are judged on evidence, on real Envoys.

use airlane_tests::{
    load::Load,
    mesh::Mesh,
    until::{SOON, throughout, until},
    workload::{App, Workload},
};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How often each release is tried: more in the long proof (`make prove`).
fn runs() -> u64 {
    if std::env::var_os("AIRLANE_PROVE").is_some() { 20 } else { 3 }
}

/// The longest a release of these may take, on a machine busy with other things.
const LONGEST_RELEASE: Duration = Duration::from_secs(240);

fn canary(stable: &str, canary: &str, steps: &str) -> String {
    format!(
        "\
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: {{ name: payments }}
spec:
  service: payments
  stable: {{ version: {stable} }}
  canary: {{ version: {canary} }}
  steps: [{steps}]
  objectives:
    - {{ name: errors, errorRate: {{ max: 1% }} }}
"
    )
}

const STEPS: &str = "{ weight: 10% }, { weight: 50% }, { weight: 100% }";

/// Writes the canary and waits until it is about `version`, so that no request reaches the new version uninvited.
async fn plan(mesh: &Mesh, stable: &str, version: &str, steps: &str) {
    mesh.apply("canary.yaml", &canary(stable, version, steps));
    until("the canary is planned", SOON, async || {
        let row = mesh.canary("default/payments").await?;
        if row["canary"] == version && row["phase"] == "Idle" { Ok(()) } else { Err(row.to_string()) }
    })
    .await;
    let waited = mesh.try_ask(&["wait", "mesh", "--timeout", "30s"]).await;
    waited.unwrap();
}

async fn count(workload: &Workload, what: &str) -> u64 {
    workload.behaviour().await.unwrap()[what].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_fails_is_taken_back_within_a_few_failed_requests() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _stable = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    let mut failures = Vec::new();
    for run in 1..=runs() {
        let version = format!("bad-{run}");
        plan(&mesh, "v1", &version, STEPS).await;
        let load = Load::start(front.outbound(), "http://payments/pay", 100.0);
        let mut bad = mesh.workload(App::new("payments").version(&version).fails("5%", run)).await;
        let began = Instant::now();
        let ends = ["RolledBack", "Succeeded"];
        let row = mesh.canary_reaches("default/payments", &ends, LONGEST_RELEASE).await;
        let took = began.elapsed();
        assert_eq!(row["phase"], "RolledBack", "seed {run}: {row}");
        // No retry policy: every failure of the application is the failure of a first attempt.
        let failed = count(&bad, "failed").await;
        assert!((3..=15).contains(&failed), "seed {run}: {failed} failed first attempts: {row}");
        let settled = count(&bad, "requests").await;
        throughout("the canary gets nothing more", Duration::from_secs(1), async || {
            let now = count(&bad, "requests").await;
            if now == settled { Ok(()) } else { Err(format!("{} more requests", now - settled)) }
        })
        .await;
        let report = load.finish().await;
        assert_eq!(report.failed, failed, "stable failed too, or the mesh did: {report}");
        eprintln!(
            "run {run}: {failed} failed first attempts, {:.1} s: {}",
            took.as_secs_f64(),
            row["because"]
        );
        failures.push(failed);
        bad.stop().await;
    }
    let mean = failures.iter().sum::<u64>() as f64 / failures.len() as f64;
    eprintln!(
        "bad release: {} runs, failed first attempts mean {mean:.2}, worst {:?}",
        runs(),
        failures.iter().max()
    );
    assert!(runs() < 20 || mean <= 7.0, "mean {mean}: {failures:?}");
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_answers_too_late_is_taken_back() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _stable = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    mesh.apply(
        "payments.yaml",
        "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: payments }
spec: { targetRef: { kind: Service, name: payments }, timeouts: { request: 300ms } }
",
    );
    plan(&mesh, "v1", "late", STEPS).await;
    let load = Load::start(front.outbound(), "http://payments/pay", 50.0);
    let _late = mesh.workload(App::new("payments").version("late").delay_ms(2_000)).await;
    let row = mesh.canary_reaches("default/payments", &["RolledBack", "Succeeded"], LONGEST_RELEASE).await;
    assert_eq!(row["phase"], "RolledBack", "{row}");
    let report = load.finish().await;
    assert!((3..=15).contains(&report.failed), "{report}: {row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_as_good_is_promoted() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let mut stable = mesh.workload(App::new("payments").version("r0").fails("0.1%", 0)).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    for run in 1..=runs() {
        let (old, new) = (format!("r{}", run - 1), format!("r{run}"));
        plan(&mesh, &old, &new, STEPS).await;
        let load = Load::start(front.outbound(), "http://payments/pay", 200.0);
        let began = Instant::now();
        let release = mesh.workload(App::new("payments").version(&new).fails("0.1%", run)).await;
        let ends = ["RolledBack", "Succeeded"];
        let row = mesh.canary_reaches("default/payments", &ends, LONGEST_RELEASE).await;
        assert_eq!(row["phase"], "Succeeded", "run {run}: {row}");
        let settled = count(&stable, "requests").await;
        let sent = load.sent();
        until("a second's requests more", SOON, async || {
            if load.sent() >= sent + 200 { Ok(()) } else { Err(load.sent().to_string()) }
        })
        .await;
        assert_eq!(count(&stable, "requests").await, settled, "the old version is still called");
        let report = load.finish().await;
        let told = count(&stable, "failed").await + count(&release, "failed").await;
        assert!(report.failed <= told, "{report}");
        eprintln!("run {run}: promoted after {:.1} s", began.elapsed().as_secs_f64());
        stable.stop().await;
        stable = release;
    }
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_ends_well_leaves_nothing_unreported() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let mut job = mesh.workload(App::new("job")).await;
    let _stable = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    plan(&mesh, "v1", "v2", "{ weight: 50%, atLeast: 10m }, { weight: 100% }").await;
    let _release = mesh.workload(App::new("payments").version("v2")).await;
    let load = Load::start(front.outbound(), "http://payments/pay", 20.0);
    let batch = Load::start(job.outbound(), "http://payments/pay", 100.0);
    let name = "default/payments";
    let judged = async || -> Result<(u64, u64), String> {
        let row = mesh.canary(name).await?;
        let certification = &row["progress"]["judge"]["certification"];
        let count = |field: &str| certification[field].as_u64();
        count("failed").zip(count("clean")).ok_or_else(|| row.to_string())
    };
    until("the job is judged by", SOON, async || match judged().await? {
        (0, clean) if clean >= 100 => Ok(()),
        other => Err(format!("failed and clean: {other:?}")),
    })
    .await;
    batch.finish().await.assert_nothing_failed(100);
    job.stop().await;
    // Longer than a caller may be silent that is still expected to report.
    let unreported = Duration::from_secs(5);
    throughout("nothing of what it called is taken for failed", unreported, async || {
        match judged().await? {
            (0, _) => Ok(()),
            other => Err(format!("failed and clean: {other:?}")),
        }
    })
    .await;
    load.finish().await.assert_nothing_failed(20);
}

/// How long proxies keep an uncertified share without a sign of life.
const FAIL_SAFE_AFTER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_operator_leaves_no_uncertified_share_behind() {
    let mut mesh = Mesh::start_with(&["--fail-safe-after", "3s"]).await;
    let front = mesh.workload(App::new("front")).await;
    let _stable = mesh.workload(App::new("payments")).await;
    plan(&mesh, "v1", "v2", "{ weight: 50%, atLeast: 1h }, { weight: 100% }").await;
    let release = mesh.workload(App::new("payments").version("v2")).await;
    let load = Load::start(front.outbound(), "http://payments/pay", 100.0);
    until("the canary is called", SOON, async || match count(&release, "requests").await {
        0..50 => Err("not enough".to_owned()),
        _ => Ok(()),
    })
    .await;

    mesh.operator().signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let (mut seen, mut last_call) = (0, stopped);
    while stopped.elapsed() < FAIL_SAFE_AFTER + Duration::from_secs(5) {
        let now = count(&release, "requests").await;
        if now != seen {
            (seen, last_call) = (now, Instant::now());
        }
        throughout("a moment", Duration::from_millis(20), async || Ok(())).await;
    }
    mesh.operator().signal(Signal::SIGCONT);
    let back_after = last_call - stopped;
    assert!(
        back_after <= FAIL_SAFE_AFTER + Duration::from_secs(2),
        "called until {back_after:?} after the silence began"
    );
    assert!(back_after >= Duration::from_secs(1), "the canary was not called while the operator was silent");
    let report = load.finish().await;
    report.assert_nothing_failed(500);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_copy_of_a_canary_goes_and_nobody_is_told_so() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let stable = mesh.workload(App::new("payments")).await;
    plan(&mesh, "v1", "v2", "{ weight: 50%, atLeast: 1h }, { weight: 100% }").await;
    let load = Load::start(front.outbound(), "http://payments/pay", 300.0);
    for _ in 0..3 {
        let mut release = mesh.workload(App::new("payments").version("v2")).await;
        until("the canary is called", SOON, async || match count(&release, "requests").await {
            0..50 => Err("not enough".to_owned()),
            _ => Ok(()),
        })
        .await;
        let before = count(&stable, "requests").await;
        release.stop().await;
        until("stable answers in its place", SOON, async || {
            match count(&stable, "requests").await - before {
                0..200 => Err("not enough".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
    }
    let row = mesh.canary("default/payments").await.unwrap();
    assert!(!["RolledBack", "Succeeded"].contains(&row["phase"].as_str().unwrap_or_default()), "{row}");
    load.finish().await.assert_nothing_failed(500);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_operator_does_not_undo_what_is_certified() {
    let mut mesh = Mesh::start_with(&["--fail-safe-after", "3s"]).await;
    let front = mesh.workload(App::new("front")).await;
    let stable = mesh.workload(App::new("payments")).await;
    plan(&mesh, "v1", "v2", "{ weight: 50% }, { weight: 100% }").await;
    let _release = mesh.workload(App::new("payments").version("v2")).await;
    let load = Load::start(front.outbound(), "http://payments/pay", 100.0);
    mesh.canary_reaches("default/payments", &["Succeeded"], LONGEST_RELEASE).await;
    let settled = count(&stable, "requests").await;

    mesh.operator().signal(Signal::SIGSTOP);
    throughout("everything goes to the new version", FAIL_SAFE_AFTER + Duration::from_secs(3), async || {
        let now = count(&stable, "requests").await;
        if now == settled { Ok(()) } else { Err(format!("{} requests to the old version", now - settled)) }
    })
    .await;
    mesh.operator().signal(Signal::SIGCONT);
    load.finish().await.assert_nothing_failed(500);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_can_pause_resume_and_abort() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _stable = mesh.workload(App::new("payments")).await;
    plan(&mesh, "v1", "v2", STEPS).await;
    let _release = mesh.workload(App::new("payments").version("v2")).await;
    let load = Load::start(front.outbound(), "http://payments/pay", 50.0);
    let name = "default/payments";
    mesh.canary_reaches(name, &["Progressing"], SOON).await;
    mesh.ask(&["canary", "pause", name]).await;
    mesh.canary_reaches(name, &["Paused"], SOON).await;
    mesh.ask(&["canary", "resume", name]).await;
    mesh.canary_reaches(name, &["Progressing"], SOON).await;
    mesh.ask(&["canary", "abort", name]).await;
    mesh.canary_reaches(name, &["RolledBack"], SOON).await;
    until("some requests went through all of it", SOON, async || {
        if load.sent() >= 10 { Ok(()) } else { Err(load.sent().to_string()) }
    })
    .await;
    load.finish().await.assert_nothing_failed(10);
    mesh.assert_nothing_rejected().await;
}
