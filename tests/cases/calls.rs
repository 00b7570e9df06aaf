//! Two services talk.

use airlane_tests::{
    client::{self, get_through, request, send_through},
    mesh::Mesh,
    until::{SOON, until},
    workload::App,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const STRICT: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: strict, namespace: airlane-system }
spec:
  mtls: { mode: Strict }
";

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_services_name_is_a_mesh_call() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _payments = mesh.workload(App::new("payments")).await;
    let _ledger = mesh.workload(App::new("ledger").namespace("shop")).await;

    for host in
        ["payments", "payments.mesh", "payments.default.mesh", "payments:80", "PAYMENTS", "payments.mesh:80"]
    {
        let answer = mesh.call_gives(&front, &format!("http://{host}/pay"), 200).await;
        assert_eq!(answer.json()["service"], "payments", "{host}: {answer}");
    }
    // A short name that only one namespace has is that one's.
    for host in ["ledger.shop.mesh", "ledger"] {
        let answer = mesh.call_gives(&front, &format!("http://{host}/"), 200).await;
        assert_eq!(answer.json()["service"], "ledger", "{host}: {answer}");
    }
    let post =
        send_through(front.outbound(), request("POST", "http://payments/pay?for=tea", r#"{"cents": 300}"#))
            .await;
    assert_eq!(post.unwrap().status, 200);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_calls_needs_no_code() {
    let mesh = Mesh::start().await;
    let _ledger = mesh.workload(App::new("ledger")).await;
    let _orders = mesh.workload(App::new("orders").calls("http://ledger/book")).await;
    let front = mesh.workload(App::new("front").calls("http://orders/order")).await;
    until("front answers with what orders and ledger said", SOON, async || {
        let answer = client::send("GET", &format!("http://127.0.0.1:{}/", front.app_port()), "").await?;
        let caller = |name: &str| format!("spiffe://airlane.local/ns/default/sa/{name}");
        let ledger = json!({"service": "ledger", "version": "v1", "caller": caller("orders"), "hops": []});
        let hops =
            json!([{"service": "orders", "version": "v1", "caller": caller("front"), "hops": [ledger]}]);
        if answer.json()["hops"] == hops { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_is_named_in_the_answer() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    for host in ["nobody", "nobody.mesh", "nobody.shop.mesh"] {
        let answer = get_through(front.outbound(), &format!("http://{host}/")).await.unwrap();
        assert!(answer.status >= 400, "{answer}");
        assert!(answer.json().is_object(), "{host}: not JSON: {answer}");
        assert!(answer.text().contains(host), "{host} is not named: {answer}");
    }
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_name_of_two_namespaces_is_an_error_that_names_them() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _one = mesh.workload(App::new("ledger").namespace("shop")).await;
    let _two = mesh.workload(App::new("ledger").namespace("bank")).await;
    until("the answer names both candidates", SOON, async || {
        let answer = get_through(front.outbound(), "http://ledger/").await?;
        let text = answer.text();
        let names_both = text.contains("ledger.shop") && text.contains("ledger.bank");
        if answer.status >= 400 && names_both { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_tunnels_to_a_mesh_name() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;

    let mut tunnel = TcpStream::connect(("127.0.0.1", front.outbound())).await.unwrap();
    tunnel.write_all(b"CONNECT payments.mesh:80 HTTP/1.1\r\nHost: payments.mesh:80\r\n\r\n").await.unwrap();
    let opened = read_until(&mut tunnel, "\r\n\r\n").await;
    assert!(opened.starts_with("HTTP/1.1 200"), "{opened}");
    tunnel.write_all(b"GET /pay HTTP/1.1\r\nHost: payments.mesh\r\n\r\n").await.unwrap();
    let answer = read_until(&mut tunnel, "}").await;
    assert!(answer.contains(r#""service":"payments""#), "{answer}");
    mesh.assert_nothing_rejected().await;
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    let reading = async {
        while !text.contains(end) {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
            }
        }
    };
    let _ = tokio::time::timeout(SOON, reading).await;
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn under_strict_the_mesh_port_takes_no_plaintext() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    let endpoints = mesh.get("endpoints").await.unwrap();
    let row = endpoints.iter().find(|row| row["instance"] == payments.instance()).unwrap();
    let door = format!("http://{}/", row["addresses"][0].as_str().unwrap());

    // Permissive, the default: the door is where we think it is.
    let answer = client::send("GET", &door, "").await.unwrap();
    assert_eq!(answer.status, 200, "{answer}");

    mesh.program("strict.yaml", "airlane-system/strict", STRICT).await;
    // Envoy acknowledged the listener; what it drains may still answer for a moment.
    until("plaintext is refused", SOON, async || match client::send("GET", &door, "").await {
        Ok(answer) => Err(answer.to_string()),
        Err(_) => Ok(()),
    })
    .await;
    let before = payments.behaviour().await.unwrap()["requests"].clone();
    for _ in 0..20 {
        assert!(client::send("GET", &door, "").await.is_err(), "plaintext was answered under Strict");
    }
    assert_eq!(payments.behaviour().await.unwrap()["requests"], before, "plaintext reached the application");
    mesh.call_gives(&front, "http://payments/", 200).await;
    mesh.assert_nothing_rejected().await;
}
