//! The door is as closed as the strictest word about it, and says so.
//!
//! Whether a call came by mTLS is read from what the called application is told: its proxy names the caller only when
//! the caller has proved its name.

use airlane_tests::{
    client::{self, request, send_through},
    mesh::Mesh,
    server::Server,
    until::{SOON, until},
    workload::{App, Workload},
};
use serde_json::{Value, json};

/// Says whom the application should believe to be called by.
const VOUCHED: &str = "x-forwarded-client-cert";

fn mtls(name: &str, namespace: &str, target: &str, mtls: &str) -> String {
    format!(
        "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {{ name: {name}, namespace: {namespace} }}
spec:
{target}  mtls: {{ {mtls} }}
"
    )
}

const PAYMENTS: &str = "  targetRef: { kind: Service, name: payments }\n";

async fn program(mesh: &Mesh, spec: &str) {
    mesh.program("payments.yaml", "default/payments", &mtls("payments", "default", PAYMENTS, spec)).await;
}

/// A caller, an application with as many ports as there are servers, and its doors.
async fn front_and(mesh: &Mesh, servers: &[&Server]) -> (Workload, Workload, Vec<String>) {
    let front = mesh.workload(App::new("front")).await;
    let ports: Vec<String> =
        servers.iter().enumerate().map(|(n, server)| format!("{}:{}", 80 + n, server.port())).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let payments = mesh.workload(App::running("payments", "http", &ports)).await;
    let doors = payments.doors(mesh).await.unwrap();
    mesh.call_gives(&front, "http://payments/", 200).await;
    (front, payments, doors)
}

/// Whom a call from `front` seems to come from.
async fn peers_by_mesh(mesh: &Mesh, front: &Workload, url: &str) -> Value {
    mesh.call_gives(front, url, 200).await.json()["peers"].clone()
}

/// A call past the mesh, without TLS, that claims to come from somebody.
async fn plaintext(door: &str) -> Result<client::Answer, String> {
    let claim = "URI=spiffe://airlane.local/ns/default/sa/front";
    client::send_with("GET", &format!("http://{door}/"), &[(VOUCHED, claim)]).await
}

async fn plaintext_is_answered(door: &str) {
    let answer =
        until(&format!("plaintext is answered at {door}"), SOON, async || plaintext(door).await).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(answer.json()["peers"], nobody(), "the door vouches for a stranger: {answer}");
}

async fn plaintext_is_refused(door: &str) {
    // Envoy acknowledged the listener; what it drains may still answer for a moment.
    until(&format!("plaintext is refused at {door}"), SOON, async || match plaintext(door).await {
        Ok(answer) => Err(answer.to_string()),
        Err(_) => Ok(()),
    })
    .await;
}

fn front_itself() -> Value {
    json!(["spiffe://airlane.local/ns/default/sa/front"])
}

fn nobody() -> Value {
    json!([])
}

#[tokio::test(flavor = "multi_thread")]
async fn permissive_lets_plaintext_in_while_sidecars_prove_who_they_are() {
    let mesh = Mesh::start().await;
    let web = Server::web().await;
    let (front, _payments, doors) = front_and(&mesh, &[&web]).await;
    // The default is what the policy says.
    for said in [false, true] {
        if said {
            program(&mesh, "mode: Permissive").await;
        }
        plaintext_is_answered(&doors[0]).await;
        assert_eq!(peers_by_mesh(&mesh, &front, "http://payments/").await, front_itself(), "policy: {said}");
    }
    // An application cannot speak for another: its own proxy says who it is.
    let mut lie = request("GET", "http://payments/", "");
    lie.headers_mut().insert(VOUCHED, "URI=spiffe://airlane.local/ns/default/sa/ledger".parse().unwrap());
    let answer = send_through(front.outbound(), lie).await.unwrap();
    assert_eq!(answer.json()["peers"], front_itself(), "{answer}");
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_is_plaintext_and_strict_ends_it() {
    let mesh = Mesh::start().await;
    let web = Server::web().await;
    let (front, _payments, doors) = front_and(&mesh, &[&web]).await;
    let becomes = async |expected: Value| {
        until(&format!("front's calls come from {expected}"), SOON, async || {
            let peers = peers_by_mesh(&mesh, &front, "http://payments/").await;
            if peers == expected { Ok(()) } else { Err(peers.to_string()) }
        })
        .await;
    };
    program(&mesh, "mode: Disabled").await;
    plaintext_is_answered(&doors[0]).await;
    becomes(nobody()).await;
    program(&mesh, "mode: Strict").await;
    plaintext_is_refused(&doors[0]).await;
    becomes(front_itself()).await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_weaker_than_the_floor() {
    let mesh = Mesh::start().await;
    let web = Server::web().await;
    let (front, _payments, doors) = front_and(&mesh, &[&web]).await;
    let floor = mtls("floor", "airlane-system", "", "mode: Strict, floor: true");
    mesh.program("floor.yaml", "airlane-system/floor", &floor).await;
    let weaker = mtls("weaker", "default", "", "mode: Permissive");
    mesh.program("weaker.yaml", "default/weaker", &weaker).await;

    plaintext_is_refused(&doors[0]).await;
    assert_eq!(peers_by_mesh(&mesh, &front, "http://payments/").await, front_itself());
    let rows = mesh.ask(&["get", "policies", "default/weaker", "-o", "json"]).await;
    let rows: Value = serde_json::from_str(&rows).unwrap();
    let problem = &rows[0]["problems"][0];
    assert_eq!(
        (&problem["reason"], &problem["field"]),
        (&json!("BelowFloor"), &json!("spec.mtls.mode")),
        "{rows}"
    );
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("airlane-system/floor"), "the floor is not named: {message}");

    // Without the floor the namespace has its way.
    mesh.remove("floor.yaml");
    plaintext_is_answered(&doors[0]).await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_may_have_a_mode_of_its_own() {
    let mesh = Mesh::start().await;
    let servers = [Server::web().await, Server::web().await];
    let (front, _payments, doors) = front_and(&mesh, &[&servers[0], &servers[1]]).await;
    let open = format!("mode: Strict, ports: [{{ port: {}, mode: Permissive }}]", servers[1].port());
    program(&mesh, &open).await;
    plaintext_is_refused(&doors[0]).await;
    plaintext_is_answered(&doors[1]).await;
    for url in ["http://payments/", "http://payments:81/"] {
        assert_eq!(peers_by_mesh(&mesh, &front, url).await, front_itself(), "{url}");
    }
    mesh.assert_nothing_rejected().await;
}
