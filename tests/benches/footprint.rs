//! What the parts weigh: the sidecar above all, because there is one beside every workload.

use crate::measure::{most_resident_kib, resident_kib};
use airlane_tests::{
    binary,
    load::Load,
    mesh::Mesh,
    until::{SOON, until},
    workload::App,
};
use std::{fs, path::Path};

const CALLS: u64 = 2_000;

pub(crate) async fn run() {
    let mut mesh = Mesh::start().await;
    let mut front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    let load = Load::start(front.outbound(), "http://payments/", 500.0);
    until("the calls were made", SOON, async || {
        if load.sent() >= CALLS { Ok(()) } else { Err(load.sent().to_string()) }
    })
    .await;
    load.finish().await.assert_nothing_failed(CALLS);

    println!(
        "\n### Weight, two workloads, after {CALLS} calls\n\n| what | binary | resident | at most |\n|---|---|---|---|"
    );
    let envoy = std::env::var_os("AIRLANE_ENVOY").unwrap();
    for (what, binary, pid) in [
        ("airlane-sidecar", binary::sidecar().as_path(), front.sidecar().pid()),
        ("airlane (operator)", binary::airlane().as_path(), mesh.operator().pid()),
        ("envoy", Path::new(&envoy), payments.envoy_pid()),
    ] {
        println!(
            "| {what} | {:.1} MB | {:.1} MB | {:.1} MB |",
            fs::metadata(binary).unwrap().len() as f64 / 1e6,
            resident_kib(pid) as f64 * 1024.0 / 1e6,
            most_resident_kib(pid) as f64 * 1024.0 / 1e6,
        );
    }
}
