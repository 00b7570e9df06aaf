//! How long a change takes until it is in force, on real Envoys.

use crate::measure::{Durations, table};
use airlane_tests::{
    client,
    mesh::Mesh,
    until::{SOON, until},
    workload::App,
};
use std::time::Instant;

const PROXIES: usize = 4;

pub(crate) async fn run() {
    table(&format!("A change, from its cause to its effect, {PROXIES} Envoys"));
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let mut callers = Vec::new();
    for _ in 1..PROXIES {
        callers.push(mesh.workload(App::new("callers")).await);
    }
    let mut edits = Durations::default();
    for n in 0..100 {
        let yaml = format!(
            "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: callers }}\n\
             spec:\n  targetRef: {{ kind: Service, name: callers }}\n  timeouts: {{ request: {}ms }}\n",
            1_000 + n
        );
        let saved = Instant::now();
        mesh.program("callers.yaml", "default/callers", &yaml).await;
        edits.add(saved.elapsed());
    }
    edits.row("edit saved → acknowledged by all");

    let mut arrivals = Durations::default();
    for n in 0..10 {
        let name = format!("late-{n}");
        let url = format!("http://{name}/");
        let launched = mesh.launch(App::new(&name));
        let listens = until("the application listens", SOON, async || {
            client::send("GET", &format!("http://127.0.0.1:{}/", launched.app_port()), "").await?;
            Ok(Instant::now())
        })
        .await;
        mesh.call_gives(&front, &url, 200).await;
        arrivals.add(listens.elapsed());
    }
    arrivals.row("application answers → first request through the mesh");
}
