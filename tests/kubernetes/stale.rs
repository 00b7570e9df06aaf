//! Two replicas that both hold themselves for the leader: one hears nothing from the API server any more, but still
//! reaches it.

use crate::operator::{CANARY, SERVICE, Setting, leads, phase, version_of_pay};
use airlane_tests::{
    kube::PODS_SOON,
    process::Process,
    until::{SOON, until},
};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

/// Where `kubectl proxy` is, and where the replica believes that the API server is.
const PROXY: u16 = 15_401;
const BETWEEN: u16 = 15_402;

/// A status that was written, and the API server's answer to it.
type Write = (String, u16);

/// The way between a replica and the API server. When `deaf`, nothing that changes is heard any more, and the Lease is out
/// of reach.
#[derive(Clone)]
struct Between {
    deaf: watch::Receiver<bool>,
    writes: mpsc::UnboundedSender<Write>,
}

type Body = BoxBody<Bytes, hyper::Error>;

impl Between {
    async fn serve(self, stop: oneshot::Receiver<()>) {
        let listener = TcpListener::bind(("127.0.0.1", BETWEEN)).await.unwrap();
        let mut connections = JoinSet::new();
        let accepting = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let between = self.clone();
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let between = between.clone();
                        async move { Ok::<_, Infallible>(between.pass(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    // Whoever goes away in the middle is gone.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = stop => {}
        }
    }

    async fn pass(&self, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let watches = request.uri().query().is_some_and(|query| query.contains("watch="));
        if path.contains("/leases") || watches {
            self.hears().await;
        }
        let stream = TcpStream::connect(("127.0.0.1", PROXY)).await.unwrap();
        let (mut to, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let answer = to.send_request(request).await.unwrap();
        if method == Method::PATCH && path.ends_with("/status") {
            self.writes.send((path, answer.status().as_u16())).unwrap();
        }
        if !watches {
            return answer.map(BodyExt::boxed);
        }
        let between = self.clone();
        let frames = BodyStream::new(answer.into_body()).then(move |frame| {
            let between = between.clone();
            async move {
                between.hears().await;
                frame
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    }

    /// Returns at once, or never.
    async fn hears(&self) {
        let _ = self.deaf.clone().wait_for(|deaf| !deaf).await;
    }
}

#[tokio::test]
async fn who_led_before_and_does_not_know_it_writes_nothing() {
    let Some(setting) = Setting::new().await else { return };
    let system = setting.cluster.namespace("system").await;
    let shop = setting.cluster.namespace("shop").await;
    shop.apply(SERVICE).await.unwrap();
    for version in ["v1", "v2"] {
        shop.apply(&version_of_pay(version)).await.unwrap();
        shop.rolled_out(&format!("deployment/pay-{version}")).await;
    }
    let mut proxy = setting.cluster.command("kubectl");
    proxy.args(["proxy", "--port", &PROXY.to_string()]);
    let _proxy = Process::start("kubectl-proxy", proxy, setting.dir.path());
    let answers = || async {
        until("the proxy listens", SOON, async || {
            TcpStream::connect(("127.0.0.1", PROXY)).await.map_err(|error| error.to_string())
        })
        .await;
    };
    setting.cluster.inside(answers).await;
    let kubeconfig = setting.dir.path().join("between.kubeconfig");
    let server = format!(
        r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{{"name": "it", "context": {{"cluster": "it", "user": "it"}}}}],
            "users": [{{"name": "it", "user": {{}}}}],
            "clusters": [{{"name": "it", "cluster": {{"server": "http://127.0.0.1:{BETWEEN}"}}}}]}}"#
    );
    std::fs::write(&kubeconfig, server).unwrap();

    let (deafen, deaf) = watch::channel(false);
    let (writes, mut written) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let between = setting.cluster.inside(move || Between { deaf, writes }.serve(stopped));
    let work = async {
        // It leads for forty seconds after it last reached the Lease.
        let _first = setting.operator_with(&system, 1, &kubeconfig, &["--lease-duration", "60s"]).await;
        until("the first leads", SOON, async || leads(&system, "operator-1").await).await;
        shop.apply(CANARY).await.unwrap();
        phase(&shop, &["Progressing", "Holding"]).await;
        deafen.send_replace(true);
        system.kubectl(&["delete", "lease", "airlane-leader"]).await.unwrap();
        let _second = setting.operator(&system, 2).await;
        until("the second leads", SOON, async || leads(&system, "operator-2").await).await;
        shop.kubectl(&["annotate", "canary.airlane.dev/pay", "airlane.dev/abort=v2"]).await.unwrap();
        let after = phase(&shop, &["RolledBack"]).await;

        while written.try_recv().is_ok() {}
        let refused = async {
            let mut refused = 0;
            while refused < 3 {
                let (path, code) = written.recv().await.unwrap();
                assert_eq!(code, 409, "{path}: the API server took what a leader of before wrote");
                refused += usize::from(path.contains("/canaries/"));
            }
        };
        // It saves what it knows every ten seconds, and tries again when that fails.
        tokio::time::timeout(PODS_SOON.min(Duration::from_secs(35)), refused)
            .await
            .expect("it goes on judging");
        let now = phase(&shop, &["RolledBack"]).await;
        assert_eq!(now["history"], after["history"], "not a step more");
        drop(stop);
    };
    tokio::join!(between, work);
}
