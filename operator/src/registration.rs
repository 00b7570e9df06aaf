//! What is known of an instance on one host, and the health that follows from it.

use crate::members::App;
use airlane_core::{
    id::Identity,
    world::{Health, Instance},
};
use jiff::Timestamp;
use std::sync::Arc;

/// What is remembered of an instance across restarts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Registration {
    /// The instance as it is published.
    pub instance: Arc<Instance>,
    /// How its application is.
    pub app: App,
    /// Whether its own proxy has acknowledged its listeners.
    pub proxy_ready: bool,
    /// Whether it is leaving.
    pub draining: bool,
    /// When it joined.
    pub joined_at: Timestamp,
}

impl Registration {
    /// A registration whose instance has the health that follows from the rest.
    pub(crate) fn new(
        instance: Arc<Instance>,
        app: App,
        proxy_ready: bool,
        draining: bool,
        joined_at: Timestamp,
    ) -> Registration {
        let mut registration = Registration { instance, app, proxy_ready, draining, joined_at };
        registration.settle();
        registration
    }

    /// Gives the instance the health that follows from the rest.
    pub(crate) fn settle(&mut self) {
        let health = self.health();
        if self.instance.health != health {
            Arc::make_mut(&mut self.instance).health = health;
        }
    }

    fn health(&self) -> Health {
        match (self.draining, self.proxy_ready, self.app) {
            (true, _, _) => Health::Draining,
            (_, false, _) | (_, _, App::Starting) => Health::Starting,
            (_, _, App::Healthy) => Health::Healthy,
            (_, _, App::Unhealthy) => Health::Unhealthy,
        }
    }

    /// Whether it is a copy of a workload with that identity.
    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        self.instance.workload.namespace == identity.namespace
            && self.instance.service_account == identity.service_account
    }
}
