//! Who is in the mesh, whoever keeps the list: registrations on one host, pods in a cluster.

use crate::tls::Peer;
use airlane_core::{id::InstanceId, world::Instance};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

/// Outlier events kept of each instance; the oldest go first.
pub(crate) const OUTLIERS_KEPT: usize = 256;
/// Texts of sidecars are cut to this many characters.
pub(crate) const TEXT_MAX: usize = 256;

/// Instances by their names, as the control loop reads them: shared, so that what did not change is recognised by its
/// pointer.
pub(crate) type Instances = Arc<BTreeMap<InstanceId, Arc<Instance>>>;

/// Who is in the mesh, and what their sidecars say. Whatever a message says, a peer is who its certificate names.
#[tonic::async_trait]
pub(crate) trait Members: fmt::Debug + Send + Sync + 'static {
    /// The instance that the peer is, if it is in the mesh with the identity that the peer proved.
    fn instance_of(&self, peer: &Peer) -> Option<Arc<Instance>>;

    /// Takes a sign of life. `None`: the peer is not in the mesh. `Some(true)`: it should renew its certificate.
    fn heartbeat(&self, peer: &Peer, beat: Beat) -> Option<bool>;

    /// The instance has a new certificate.
    fn renewed(&self, instance: &InstanceId);

    /// The peer is about to stop.
    fn drain(&self, peer: &Peer);

    /// The peer has stopped.
    fn leave(&self, peer: &Peer);

    /// Whether the peer, which is about to stop, starts again: only a part of it is stopped. News that it goes is
    /// waited for, but no longer than `wait`.
    async fn stays(&self, peer: &Peer, wait: Duration) -> bool;

    /// The instances that are not published until their own proxies have acknowledged their listeners.
    fn without_proxy(&self) -> Vec<InstanceId>;

    /// The instance's own proxy has acknowledged its listeners. Said again after the instance joined again.
    fn mark_proxy_ready(&self, instance: &InstanceId);

    /// Asks an instance, or all of them, to renew their certificates with their next signs of life.
    fn ask_renewal(&self, of: Option<&InstanceId>);

    /// Everybody who has a sidecar.
    fn everybody(&self) -> Vec<Member>;
}

/// An instance with what its sidecar last said.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The instance as it is published.
    pub instance: Arc<Instance>,
    /// What its sidecar said.
    pub said: Said,
}

/// How the application of an instance is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) enum App {
    /// It has not answered yet.
    #[default]
    Starting,
    /// It answers.
    Healthy,
    /// It answered once and does not any more.
    Unhealthy,
}

/// An endpoint that an instance's proxy left out or took back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outlier {
    /// The cluster's name.
    pub cluster: String,
    /// The endpoint's address and port.
    pub upstream: String,
    /// Left out, or taken back.
    pub ejected: bool,
    /// Envoy's reason.
    pub reason: String,
    /// How often it was left out so far.
    pub ejections: u32,
    /// When, by the proxy's clock.
    pub at: Timestamp,
}

/// A sign of life.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Beat {
    /// How the application is.
    pub app: App,
    /// Why it is not healthy.
    pub reason: String,
    /// What the proxy left out and took back since the last one.
    pub outliers: Vec<Outlier>,
    /// Whether the application can be reached past the proxy.
    pub app_reachable: bool,
    /// When the certificate ends that the sidecar showed.
    pub leaf_not_after: Option<Timestamp>,
}

/// What a sidecar said that is shown and decides nothing; bounded, and fit for a terminal.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Said {
    /// Why its application is not healthy.
    pub reason: String,
    /// Whether its application can be reached past its proxy.
    pub app_reachable: bool,
    /// What its proxy left out and took back, oldest first.
    pub outliers: VecDeque<Outlier>,
    /// When the certificate ends that it showed last.
    pub leaf_not_after: Option<Timestamp>,
}

impl Said {
    /// The clusters in which its proxy leaves out an endpoint, as far as was said.
    pub(crate) fn ejected_from(&self, upstream: &str) -> Vec<&str> {
        let mut last: BTreeMap<&str, bool> = BTreeMap::new();
        for outlier in self.outliers.iter().filter(|outlier| outlier.upstream == upstream) {
            last.insert(&outlier.cluster, outlier.ejected);
        }
        last.into_iter().filter_map(|(cluster, ejected)| ejected.then_some(cluster)).collect()
    }

    /// Takes in a sign of life.
    pub(crate) fn hear(&mut self, beat: Beat) {
        self.reason = cut(&beat.reason);
        self.app_reachable = beat.app_reachable;
        self.leaf_not_after = beat.leaf_not_after;
        self.outliers.extend(beat.outliers.into_iter().map(|outlier| Outlier {
            cluster: cut(&outlier.cluster),
            upstream: cut(&outlier.upstream),
            reason: cut(&outlier.reason),
            ..outlier
        }));
        let surplus = self.outliers.len().saturating_sub(OUTLIERS_KEPT);
        self.outliers.drain(..surplus);
    }
}

/// A text of a sidecar as it may be shown on a terminal.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_about_an_endpoint_says_whether_it_is_left_out() {
        let outlier = |cluster: &str, upstream: &str, ejected| Outlier {
            cluster: cluster.to_owned(),
            upstream: upstream.to_owned(),
            ejected,
            reason: String::new(),
            ejections: 1,
            at: Timestamp::UNIX_EPOCH,
        };
        let mut said = Said::default();
        said.hear(Beat {
            outliers: vec![
                outlier("80|pay|shop", "10.0.0.1:8080", true),
                outlier("80|pay|shop", "10.0.0.2:8080", true),
                outlier("80|pay|shop|v2", "10.0.0.1:8080", true),
                outlier("80|pay|shop", "10.0.0.1:8080", false),
            ],
            ..Beat::default()
        });
        assert_eq!(said.ejected_from("10.0.0.1:8080"), ["80|pay|shop|v2"]);
        assert_eq!(said.ejected_from("10.0.0.2:8080"), ["80|pay|shop"]);
        assert!(said.ejected_from("10.0.0.3:8080").is_empty());
    }
}
