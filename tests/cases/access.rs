//! Who may ask for what: the door lets in whom every policy about it admits, and tells callers of the mesh which one
//! did not.

use airlane_tests::{
    client::{self, Answer, request, send_through},
    mesh::Mesh,
    server::{GREETING, Server},
    until::{SOON, until},
    workload::{App, Workload},
};
use std::collections::BTreeSet;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PAYMENTS: &str = "  targetRef: { kind: Service, name: payments }\n";

fn access(name: &str, namespace: &str, target: &str, access: &str) -> String {
    format!(
        "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {{ name: {name}, namespace: {namespace} }}
spec:
{target}  access:
{access}"
    )
}

/// Says who may ask `payments` for what.
async fn program(mesh: &Mesh, rules: &str) {
    let yaml = access("payments", "default", PAYMENTS, rules);
    mesh.program("payments.yaml", "default/payments", &yaml).await;
}

/// `front` and `cart`, and `payments` whose application answers with what it saw.
struct Town {
    mesh: Mesh,
    front: Workload,
    cart: Workload,
    payments: Workload,
    door: String,
    _web: Server,
}

impl Town {
    async fn start() -> Town {
        let mesh = Mesh::start().await;
        let web = Server::web().await;
        let front = mesh.workload(App::new("front")).await;
        let cart = mesh.workload(App::new("cart")).await;
        let payments =
            mesh.workload(App::running("payments", "http", &[&format!("80:{}", web.port())])).await;
        let door = payments.doors(&mesh).await.unwrap().remove(0);
        for caller in [&front, &cart] {
            mesh.call_gives(caller, "http://payments/", 200).await;
        }
        Town { mesh, front, cart, payments, door, _web: web }
    }
}

async fn ask(caller: &Workload, method: &str, path: &str) -> Answer {
    send_through(caller.outbound(), request(method, &format!("http://payments{path}"), "")).await.unwrap()
}

/// `by` is the policy, and the rule that admits the caller with other requests if there is one.
#[track_caller]
fn assert_denied(answer: &Answer, by: &str) {
    assert_eq!(answer.status, 403, "{answer}");
    let told = answer.json();
    let details = told["details"].as_str().unwrap();
    let (policy, why) = match by.split_once(' ') {
        Some((policy, rule)) => (policy, format!("_rule_{rule}:_not_this_method_or_path]")),
        None => (by, ":_no_rule_admits_this]".to_owned()),
    };
    let expected = format!("[MeshPolicy_{policy}_access{why}");
    assert!(told["error"] == "denied" && details.ends_with(&expected), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_is_named_may_ask_for_what_is_named() {
    let Town { mesh, front, cart, door, .. } = &Town::start().await;
    program(
        mesh,
        "    rules:\n      \
         - name: front-may-charge\n        \
           from: [{ serviceAccount: front }]\n        \
           to: [{ methods: [POST], paths: [/charge] }]\n      \
         - name: health\n        \
           to: [{ methods: [GET], paths: [/healthz] }]\n",
    )
    .await;
    let (policy, rule) = ("default/payments", "default/payments front-may-charge");
    assert_eq!(ask(front, "POST", "/charge").await.status, 200);
    assert_eq!(ask(front, "POST", "/charge?cents=300").await.status, 200, "a query is no part of the path");
    assert_denied(&ask(front, "GET", "/charge").await, rule);
    assert_denied(&ask(front, "POST", "/refund").await, rule);
    let denied = ask(cart, "POST", "/charge").await;
    assert_denied(&denied, policy);
    assert_eq!(denied.json()["caller"], "spiffe://airlane.local/ns/default/sa/cart", "{denied}");
    assert_eq!(ask(cart, "GET", "/healthz").await.status, 200);

    // Who proves no identity may do what everybody may, and is told nothing.
    let stranger = async |path: &str| client::send("GET", &format!("http://{door}{path}"), "").await.unwrap();
    assert_eq!(stranger("/healthz").await.status, 200);
    let refused = stranger("/charge").await;
    assert_eq!(refused.status, 403, "{refused}");
    assert!(!refused.text().contains("MeshPolicy"), "{refused}");
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_may_be_read_in_two_ways_is_not_admitted() {
    let Town { mesh, front, .. } = &Town::start().await;
    program(mesh, "    rules: [{ name: open, to: [{ paths: [/open, /v1/*] }] }]\n").await;
    for admitted in
        ["/open", "//open", "/./open", "/x/../open", "/%6Fpen", "/v1/", "/v1/a%20b", "/v1/caf%C3%A9"]
    {
        let answer = ask(front, "GET", admitted).await;
        assert_eq!(answer.status, 200, "{admitted}: {answer}");
    }
    for denied in [
        "/",
        "/Open",
        "/open/",
        "/opened",
        "/open;v=1",
        "/v1",
        "/V1/a",
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/..%2fadmin",
        "/v1/..%2Fadmin",
        "/v1/%2e%2e%2fadmin",
        "/v1/..%5cadmin",
        "/v1/..;/admin",
        "/v1/a;b",
        "/v1/%252e%252e/admin",
        "/v1/..%u002fadmin",
        "/v1/..%2",
        "/v1/%",
        "/v1/..%c0%afadmin",
        "/v1/%e0%80%afadmin",
        "/v1/a%23b",
        "/v1/a%3fb",
        "/v1/a%09b",
    ] {
        let answer = ask(front, "GET", denied).await;
        // What is no path at all is refused before anybody compares it.
        assert!([400, 403].contains(&answer.status), "{denied}: {answer}");
    }
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_policy_about_a_workload_must_admit() {
    let Town { mesh, front, cart, .. } = &Town::start().await;
    program(
        mesh,
        "    rules: [{ name: both, from: [{ serviceAccount: front }, { serviceAccount: cart }] }]\n",
    )
    .await;
    assert_eq!(ask(front, "GET", "/").await.status, 200);
    assert_eq!(ask(cart, "GET", "/").await.status, 200);
    let rules = "    rules: [{ name: front, from: [{ serviceAccount: front }] }]\n";
    let namespace = access("namespace", "default", "", rules);
    mesh.program("namespace.yaml", "default/namespace", &namespace).await;
    assert_eq!(ask(front, "GET", "/").await.status, 200);
    assert_denied(&ask(cart, "GET", "/").await, "default/namespace");
    // Whoever is below cannot drop what stands above.
    program(mesh, "    default: Allow\n").await;
    assert_denied(&ask(cart, "GET", "/").await, "default/namespace");
    mesh.remove("namespace.yaml");
    mesh.call_gives(cart, "http://payments/", 200).await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audited_policy_refuses_nobody_and_tells() {
    let mut town = Town::start().await;
    program(&town.mesh, "    mode: Audit\n    rules: [{ name: front, from: [{ serviceAccount: front }] }]\n")
        .await;
    assert_eq!(ask(&town.cart, "GET", "/audited").await.status, 200);
    assert_eq!(ask(&town.front, "GET", "/").await.status, 200);
    let operator = town.mesh.operator();
    until("the operator tells who would have been denied", SOON, async || {
        let log = operator.log();
        let told = log.lines().find(|line| line.contains("would be denied")).ok_or_else(|| log.clone())?;
        let expected = ["default/payments", "sa/cart", "GET", "/audited"];
        if expected.iter().all(|part| told.contains(part)) { Ok(()) } else { Err(told.to_owned()) }
    })
    .await;
    assert!(!operator.log().contains("was denied"), "nobody was");
    town.mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_the_rules_changes_no_listener() {
    let Town { mesh, front, payments, .. } = &Town::start().await;
    mesh.program(
        "strict.yaml",
        "default/strict",
        "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: { name: strict }\nspec:\n  mtls: { mode: Strict }\n",
    )
    .await;
    program(mesh, "    rules: [{ name: one, to: [{ paths: [/one] }] }]\n").await;
    let listeners = async || -> BTreeSet<String> {
        payments
            .config()
            .await
            .unwrap()
            .into_iter()
            .filter(|resource| resource.contains("inbound|127"))
            .collect()
    };
    let before = listeners().await;
    assert!(!before.is_empty());
    assert_eq!(ask(front, "GET", "/one").await.status, 200);
    program(mesh, "    rules: [{ name: two, to: [{ paths: [/two] }] }]\n").await;
    assert_eq!(ask(front, "GET", "/two").await.status, 200);
    assert_eq!(ask(front, "GET", "/one").await.status, 403);
    assert_eq!(listeners().await, before);
    mesh.assert_nothing_rejected().await;
}

/// Whether the application greets whoever calls by this connection. If not, the connection is closed.
async fn greets(mut stream: TcpStream) -> Result<bool, String> {
    let mut heard = Vec::new();
    let listening = async {
        while !String::from_utf8_lossy(&heard).contains(GREETING) {
            if stream.read_buf(&mut heard).await.map_or(true, |read| read == 0) {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(SOON, listening).await.map_err(|_| "neither a greeting nor an end".to_owned())
}

async fn greets_through(caller: &Workload) -> Result<bool, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", caller.outbound())).await.unwrap();
    let connect = "CONNECT payments:3306 HTTP/1.1\r\nhost: payments:3306\r\n\r\n";
    stream.write_all(connect.as_bytes()).await.unwrap();
    greets(stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_from_who_is_named() {
    let mesh = Mesh::start().await;
    let greeter = Server::greeter().await;
    let front = mesh.workload(App::new("front")).await;
    let cart = mesh.workload(App::new("cart")).await;
    let port = format!("3306:{}", greeter.port());
    let payments = mesh.workload(App::running("payments", "tcp", &[&port])).await;
    let door = payments.doors(&mesh).await.unwrap().remove(0);
    let are_greeted = async |expected: [bool; 2]| {
        until(&format!("front and cart are greeted: {expected:?}"), SOON, async || {
            let found = [greets_through(&front).await?, greets_through(&cart).await?];
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    are_greeted([true, true]).await;
    program(&mesh, "    rules: [{ name: front, from: [{ serviceAccount: front }] }]\n").await;
    are_greeted([true, false]).await;
    // The application speaks first: a stranger must not hear it before anybody asked who it is.
    let stranger = TcpStream::connect(&door).await.unwrap();
    assert!(!greets(stranger).await.unwrap());
    mesh.assert_nothing_rejected().await;
}
