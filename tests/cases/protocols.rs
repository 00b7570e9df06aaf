//! HTTP/2, gRPC and bytes pass the mesh as what they are.

use airlane_tests::{
    mesh::Mesh,
    server::{GREETING, Server},
    until::{SOON, until},
    workload::{App, Workload},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::interval,
};

/// What an HTTP/2 server answered.
struct Answer {
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Answer {
    /// gRPC's status, wherever it stands.
    fn grpc_status(&self) -> Option<&str> {
        self.trailers.get("grpc-status").or(self.headers.get("grpc-status"))?.to_str().ok()
    }
}

type Connection = http2::SendRequest<Full<Bytes>>;

/// HTTP/2 by prior knowledge (RFC 9113, 3.3).
async fn http2(stream: TcpStream) -> Result<Connection, String> {
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn outbound(from: &Workload) -> Result<TcpStream, String> {
    TcpStream::connect(("127.0.0.1", from.outbound())).await.map_err(|error| error.to_string())
}

/// A tunnel by CONNECT (RFC 9110, 9.3.6) to a name and port of the mesh.
async fn tunnel(from: &Workload, to: &str) -> Result<TcpStream, String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = outbound(from).await?;
    stream
        .write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())
        .await
        .map_err(told)?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head belongs to the one who uses the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(told)?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("HTTP/1.1 200") { Ok(stream) } else { Err(head) }
}

/// A call with a gRPC message, or a plain one where `message` is empty.
async fn call(connection: &mut Connection, url: &str, message: &'static [u8]) -> Result<Answer, String> {
    let told = |error: hyper::Error| format!("{:#}", anyhow::Error::from(error));
    let mut request = Request::get(url);
    if !message.is_empty() {
        request = Request::post(url).header("content-type", "application/grpc").header("te", "trailers");
    }
    connection.ready().await.map_err(told)?;
    let response = connection.send_request(request.body(Full::from(message)).unwrap()).await.map_err(told)?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(told)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    if head.status != 200 {
        return Err(format!("{} {:?}", head.status, body.to_bytes()));
    }
    Ok(Answer { headers: head.headers, body: body.to_bytes(), trailers })
}

async fn front(mesh: &Mesh) -> Workload {
    mesh.workload(App::new("front")).await
}

fn running(service: &str, protocol: &'static str, server: &Server) -> App {
    App::running(service, protocol, &[&server.port().to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_http2_from_end_to_end() {
    let mesh = Mesh::start().await;
    let (front, web) = (front(&mesh).await, Server::web().await);
    let _web = mesh.workload(running("web", "http2", &web)).await;
    for ways in ["outbound port", "tunnel"] {
        let answer = until(&format!("an answer through the {ways}"), SOON, async || {
            let stream =
                if ways == "tunnel" { tunnel(&front, "web.mesh:80").await } else { outbound(&front).await };
            call(&mut http2(stream?).await?, "http://web.mesh/a/b", b"").await
        })
        .await;
        let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(seen["version"], "HTTP/2.0", "{ways}: {seen}");
        assert_eq!(
            (&seen["authority"], &seen["path"]),
            (&"web.mesh".into(), &"/a/b".into()),
            "{ways}: {seen}"
        );
        let caller = "spiffe://airlane.local/ns/default/sa/front";
        assert_eq!(seen["peers"], serde_json::json!([caller]), "{ways}: not from front by mTLS");
    }
    // A caller that speaks HTTP/1.1 is understood as well.
    let answer = mesh.call_gives(&front, "http://web/old", 200).await;
    assert_eq!(answer.json()["version"], "HTTP/2.0", "{answer}");
    mesh.assert_nothing_rejected().await;
}

/// A gRPC message: not compressed, 5 bytes long.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

#[tokio::test(flavor = "multi_thread")]
async fn grpc_keeps_its_messages_and_its_status() {
    let mesh = Mesh::start().await;
    let (front, echo, sick) = (front(&mesh).await, Server::grpc(0).await, Server::grpc(1).await);
    let _echo = mesh.workload(running("echo", "grpc", &echo)).await;
    let _sick = mesh.workload(running("sick", "grpc", &sick)).await;
    for ways in ["outbound port", "tunnel"] {
        let ask = async |service: &str| {
            let to = format!("{service}.mesh:80");
            let stream = if ways == "tunnel" { tunnel(&front, &to).await } else { outbound(&front).await };
            call(&mut http2(stream?).await?, &format!("http://{to}/test.Echo/Say"), MESSAGE).await
        };
        let answer = until(&format!("echo through the {ways}"), SOON, async || ask("echo").await).await;
        assert_eq!((&answer.body[..], answer.grpc_status()), (MESSAGE, Some("0")), "{ways}");
        let answer = until(&format!("sick through the {ways}"), SOON, async || ask("sick").await).await;
        assert_eq!(answer.grpc_status(), Some("14"), "{ways}");
    }
    assert_eq!(sick.requests(), 2, "a call that may not be repeated was repeated");
    mesh.assert_nothing_rejected().await;
}

/// Calls `http://echo/` a hundred times a second, each call on the one connection gRPC clients have.
struct GrpcLoad {
    stop: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 2]>,
    sending: tokio::task::JoinHandle<()>,
}

impl GrpcLoad {
    async fn start(from: &Workload) -> Self {
        let connection = http2(outbound(from).await.unwrap()).await.unwrap();
        let (stop, counts) =
            (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (stopped, counting) = (Arc::clone(&stop), Arc::clone(&counts));
        let sending = tokio::spawn(async move {
            let (mut due, mut calls) = (interval(Duration::from_millis(10)), tokio::task::JoinSet::new());
            while !stopped.load(Relaxed) {
                due.tick().await;
                let (mut connection, counts) = (connection.clone(), Arc::clone(&counting));
                calls.spawn(async move {
                    let answer = call(&mut connection, "http://echo/test.Echo/Say", MESSAGE).await;
                    let well = answer.is_ok_and(|answer| answer.grpc_status() == Some("0"));
                    counts[usize::from(!well)].fetch_add(1, Relaxed);
                });
            }
            while calls.join_next().await.is_some() {}
        });
        GrpcLoad { stop, counts, sending }
    }

    /// How many calls went well and how many failed.
    async fn finish(self) -> (u64, u64) {
        self.stop.store(true, Relaxed);
        self.sending.await.unwrap();
        (self.counts[0].load(Relaxed), self.counts[1].load(Relaxed))
    }
}

const CANARY: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: { name: echo }
spec:
  service: echo
  stable: { version: v1 }
  canary: { version: v2 }
  steps: [{ weight: 50% }, { weight: 100% }]
  objectives:
    - { name: errors, errorRate: { max: 1% } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_grpc_status_is_evidence_against_a_release() {
    let mesh = Mesh::start().await;
    let (front, good, bad) = (front(&mesh).await, Server::grpc(0).await, Server::grpc(20).await);
    let _stable = mesh.workload(running("echo", "grpc", &good)).await;
    mesh.apply("canary.yaml", CANARY);
    until("the canary is planned", SOON, async || mesh.canary("default/echo").await).await;
    mesh.ask(&["wait", "mesh", "--timeout", "30s"]).await;
    let load = GrpcLoad::start(&front).await;
    let _release = mesh.workload(running("echo", "grpc", &bad).version("v2")).await;
    let row = mesh.canary_reaches("default/echo", &["RolledBack", "Succeeded"], SOON * 2).await;
    assert_eq!(row["phase"], "RolledBack", "{row}");
    let (well, failed) = load.finish().await;
    assert_eq!(failed, bad.failed(), "of {} calls: the mesh failed some, or repeated some", well + failed);
    assert!((3..=15).contains(&failed), "{failed} calls failed: {row}");
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_whoever_speaks_first() {
    let mesh = Mesh::start().await;
    let (front, mail) = (front(&mesh).await, Server::greeter().await);
    let _mail = mesh.workload(App::running("mail", "tcp", &[&format!("25:{}", mail.port())])).await;
    let mut stream = until("a tunnel to the mail server", SOON, async || {
        let mut stream = tunnel(&front, "mail.mesh:25").await?;
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).await.map_err(|error| error.to_string())?;
        if greeting == GREETING.as_bytes() {
            Ok(stream)
        } else {
            Err(String::from_utf8_lossy(&greeting).into())
        }
    })
    .await;
    let said: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut heard = vec![0; said.len()];
    let (wrote, read) = tokio::join!(write.write_all(&said), read.read_exact(&mut heard));
    wrote.and(read.map(|_| ())).unwrap();
    assert!(heard == said, "the bytes changed on their way");
    mesh.assert_nothing_rejected().await;
}
