//! What the kubelet asks, in plain HTTP: `/healthz`, whether the process lives, and `/readyz`, whether it serves.

use axum::{Router, http::StatusCode, routing::get};
use std::{io, net::SocketAddr, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Why it is not so, or `None` if it is.
pub(crate) type Obstacle = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// What is asked.
#[derive(Clone)]
pub(crate) struct Health {
    /// Why it should be started anew.
    pub(crate) dead: Obstacle,
    /// Why it does not serve yet, or any more.
    pub(crate) waits_for: Obstacle,
    /// What is wrong although it serves.
    pub(crate) trouble: Obstacle,
}

impl Health {
    fn routes(self) -> Router {
        let Health { dead, waits_for, trouble } = self;
        let is = |obstacle: Obstacle, so: &'static str, not: &'static str| {
            let trouble = trouble.clone();
            move || async move {
                match obstacle() {
                    None => match trouble() {
                        None => (StatusCode::OK, format!("{so}\n")),
                        Some(what) => (StatusCode::OK, format!("{so}\nWARNING: {what}\n")),
                    },
                    Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{not}: {why}\n")),
                }
            }
        };
        Router::new()
            .route("/healthz", get(is(dead, "ok", "stuck")))
            .route("/readyz", get(is(waits_for, "SERVING", "NOT_SERVING")))
    }
}

/// Answers until shutdown.
///
/// # Errors
/// If it cannot listen.
pub(crate) async fn serve(
    address: SocketAddr,
    health: Health,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener = crate::serve::listen(address)?;
    axum::serve(listener, health.routes()).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn check(path: &str, why: Option<&'static str>, expected: (u16, &str)) {
        let (path, of_what) = path.split_once(' ').unwrap_or((path, path));
        let obstacle = |of: &str| {
            let why = why.filter(|_| of_what == of).map(str::to_owned);
            Arc::new(move || why.clone()) as Obstacle
        };
        let health = Health {
            dead: obstacle("/healthz"),
            waits_for: obstacle("/readyz"),
            trouble: obstacle("trouble"),
        };
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = health.routes().oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((status, &*String::from_utf8_lossy(&body)), expected);
    }

    #[tokio::test]
    async fn who_asks_hears_why_not() {
        check("/healthz", None, (200, "ok\n")).await;
        check("/healthz", Some("no turn for 40 s"), (503, "stuck: no turn for 40 s\n")).await;
        check("/readyz", None, (200, "SERVING\n")).await;
        check("/readyz trouble", Some("it ends"), (200, "SERVING\nWARNING: it ends\n")).await;
        check("/readyz", Some("not listed yet: Pods"), (503, "NOT_SERVING: not listed yet: Pods\n")).await;
    }
}
