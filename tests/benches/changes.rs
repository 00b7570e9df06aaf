//! How long a change takes until it is in force, on real Envoys.

use crate::measure::{Durations, table};
use airlane_tests::{
    client,
    mesh::Mesh,
    until::{SOON, until, until_often},
    workload::App,
};
use std::time::{Duration, Instant};

const CALLERS: usize = 3;
const EDITS: usize = 100;
const NEWCOMERS: usize = 25;
/// How often is looked whether a change is in force; what is measured may be longer by that.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) async fn run() {
    table(&format!("A change, from its cause to its effect, {} Envoys", CALLERS + 1));
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(mesh.workload(App::new("callers")).await);
    }
    let mut edits = Durations::default();
    for n in 0..EDITS {
        let yaml = format!(
            "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: callers }}\n\
             spec:\n  targetRef: {{ kind: Service, name: callers }}\n  timeouts: {{ request: {}ms }}\n",
            1_000 + n
        );
        let saved = Instant::now();
        mesh.apply("callers.yaml", &yaml);
        let generation = n as u64 + 1;
        until_often("the edit is acknowledged", SOON, LOOK, async || {
            let row = mesh.policy("default/callers").await?;
            let all = row["programmed"]["targeted"] == row["programmed"]["acknowledged"];
            if row["generation"] == generation && all { Ok(()) } else { Err(row.to_string()) }
        })
        .await;
        edits.add(saved.elapsed());
    }
    edits.row("edit saved → acknowledged by all");

    let (mut from_health, mut from_answer) = (Durations::default(), Durations::default());
    for n in 0..NEWCOMERS {
        let name = format!("late-{n}");
        let url = format!("http://{name}/");
        let newcomer = mesh.launch(App::new(&name));
        let app = format!("http://127.0.0.1:{}/", newcomer.app_port());
        let answers = until_often("the application answers", SOON, LOOK, async || {
            client::send("GET", &app, "").await?;
            Ok(Instant::now())
        });
        let registered = until_often("it is registered as healthy", SOON, LOOK, async || {
            let rows = mesh.get("endpoints").await?;
            let healthy =
                rows.iter().any(|row| row["service"] == name.as_str() && row["health"] == "Healthy");
            if healthy { Ok(Instant::now()) } else { Err("not yet".to_owned()) }
        });
        let reached = until_often("a call reaches it", SOON, LOOK, async || {
            let answer = client::get_through(front.outbound(), &url).await?;
            if answer.status == 200 { Ok(Instant::now()) } else { Err(answer.to_string()) }
        });
        let (answers, registered, reached) = tokio::join!(answers, registered, reached);
        // The call may be faster than the look at the register.
        from_health.add(reached.saturating_duration_since(registered));
        from_answer.add(reached.saturating_duration_since(answers));
        drop(newcomer);
        until("it is forgotten", SOON, async || {
            let rows = mesh.get("endpoints").await?;
            let left = rows.iter().any(|row| row["service"] == name.as_str());
            if left { Err("still there".to_owned()) } else { Ok(()) }
        })
        .await;
    }
    from_health.row("endpoint registered as healthy → first request there");
    from_answer.row("its application answers → first request there");
}
