//! An API server that answers as a test has written it.

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc};

/// A call as it arrives: its method, its path, its body or null.
pub(crate) type Call = (Method, String, Value);

/// A client of an API server that gives this answer to every call; for `None` it never answers.
pub(crate) fn client(answer: impl Fn(Call) -> Option<(u16, Value)> + Send + Sync + 'static) -> kube::Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let Some((status, answer)) = answer((head.method, head.uri.path().to_owned(), body)) else {
                return std::future::pending().await;
            };
            let body = Full::new(Bytes::from(answer.to_string()));
            Ok::<_, Infallible>(Response::builder().status(status).body(body).expect("a response"))
        }
    });
    kube::Client::new(service, "default")
}

/// The answer of an API server that refuses.
pub(crate) fn refusal(code: u16, reason: &str) -> Option<(u16, Value)> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason,
    });
    Some((code, status))
}
