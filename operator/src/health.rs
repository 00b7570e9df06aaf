//! What the kubelet asks, in plain HTTP: `/healthz`, whether the process lives, and `/readyz`, whether it serves.

use axum::{Router, http::StatusCode, routing::get};
use std::{io, net::SocketAddr, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Why it does not serve yet, or `None` if it does.
pub(crate) type Readiness = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Answers until shutdown.
///
/// # Errors
/// If it cannot listen.
pub(crate) async fn serve(
    address: SocketAddr,
    waits_for: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener = crate::serve::listen(address)?;
    let readiness = move || async move {
        match waits_for() {
            None => (StatusCode::OK, "SERVING\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("NOT_SERVING: {why}\n")),
        }
    };
    let router = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readiness));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
