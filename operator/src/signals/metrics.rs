//! Totals: Envoy's OpenTelemetry statistics sink, per cluster and endpoint, as deltas of about a second.

use super::{
    Signal, Signals,
    intake::{Totals, Window},
};
use crate::{clock::Clock, members::Members, tls::Peer};
use airlane_core::id::ClusterName;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::MetricsService,
    },
    common::v1::{KeyValue, any_value},
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point},
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Receives totals.
pub(crate) struct Totaliser {
    /// The books.
    pub(crate) signals: Signals,
    /// Who may report.
    pub(crate) members: Arc<dyn Members>,
    /// When things arrive.
    pub(crate) clock: Arc<dyn Clock>,
}

#[tonic::async_trait]
impl MetricsService for Totaliser {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let peer =
            request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::unauthenticated("no peer"))?;
        super::registered(&*self.members, &peer)?;
        let (window, refused) = translate(request.get_ref(), |cluster| self.signals.is_published(cluster));
        if window.end_ns != 0 {
            let now = self.clock.now();
            self.signals.take(Signal::Window(peer.instance, window), now);
        }
        let partial_success = (refused > 0).then(|| ExportMetricsPartialSuccess {
            rejected_data_points: refused,
            error_message: "evidence for a destination that is not published to this proxy".to_owned(),
        });
        Ok(Response::new(ExportMetricsServiceResponse { partial_success }))
    }
}

/// One export as a window, and how many of its points were about clusters that are not published.
fn translate(
    request: &ExportMetricsServiceRequest,
    published: impl Fn(&ClusterName) -> bool,
) -> (Window, i64) {
    let mut window = Window::default();
    let mut refused = 0;
    let metrics = request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics)
        .flat_map(|scope| &scope.metrics);
    for metric in metrics {
        let points = match &metric.data {
            Some(Data::Sum(sum)) => &sum.data_points,
            Some(Data::Gauge(gauge)) => &gauge.data_points,
            _ => continue,
        };
        for point in points {
            if let Some(Data::Sum(_)) = metric.data {
                window.end_ns = window.end_ns.max(point.time_unix_nano);
                if point.start_time_unix_nano != 0
                    && (window.start_ns == 0 || point.start_time_unix_nano < window.start_ns)
                {
                    window.start_ns = point.start_time_unix_nano;
                }
            }
            let Some(cluster) = text(&point.attributes, "envoy.cluster_name") else { continue };
            // The proxy's own clusters (the agent, the operator, its application) are no destinations.
            let Ok(cluster) = cluster.parse::<ClusterName>() else { continue };
            if !published(&cluster) {
                refused += 1;
                continue;
            }
            enter(&mut window, &metric.name, point, cluster);
        }
    }
    (window, refused)
}

fn enter(window: &mut Window, metric: &str, point: &NumberDataPoint, cluster: ClusterName) {
    let value = match point.value {
        Some(number_data_point::Value::AsInt(value)) => u64::try_from(value).unwrap_or(0),
        _ => return,
    };
    if metric == "cluster.outlier_detection.ejections_active" {
        if value > 0 {
            window.ejecting.push(cluster);
        }
        return;
    }
    let count: fn(&mut Totals) -> &mut u64 = match metric {
        "cluster.upstream_rq_total" => |totals| &mut totals.sent,
        "cluster.upstream_rq_retry" => |totals| &mut totals.retries,
        "cluster.upstream_cx_connect_fail" => |totals| &mut totals.connect_failed,
        "cluster.endpoint.rq_success" => |totals| &mut totals.good_tries,
        "cluster.endpoint.rq_error" => |totals| &mut totals.failed_tries,
        "cluster.upstream_rq_completed" => |totals| &mut totals.completed,
        "cluster.upstream_rq_xx" if text(&point.attributes, "envoy.response_code_class") == Some("5") => {
            |totals| &mut totals.completed_5xx
        }
        _ => return,
    };
    *count(window.clusters.entry(cluster).or_default()) += value;
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    match &value.value {
        Some(any_value::Value::StringValue(text)) => Some(text),
        _ => None,
    }
}
