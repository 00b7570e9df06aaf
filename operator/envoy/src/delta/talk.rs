//! A conversation by hand: what is published and what the proxy says, in words, and what is sent.

use super::*;
use airlane_core::id::{InstanceId, Namespace, ServiceAccount, TrustDomain};
use envoy_types::pb::{google::protobuf::Any, google::rpc::Status};
use std::collections::HashMap;

pub(super) const TTL: Duration = Duration::from_secs(40);

/// A scripted conversation. What is sent is written `Cluster +a +b -c`, a heartbeat `Runtime ~shares`.
pub(super) struct Talk {
    pub(super) session: Session,
    pub(super) published: Published,
    pub(super) now: Duration,
    pub(super) unanswered: Vec<Arc<Response>>,
}

impl Talk {
    /// With a proxy that has just connected while `resources` are published: `Cluster a`, `Cluster a@2` for another
    /// version, `VirtualHost h > a b` for one that names clusters, `VirtualHost h = 1 2` for one with domains.
    pub(super) fn with(resources: &[&str]) -> Talk {
        let catalog = Arc::new(catalog(1, resources));
        Talk {
            session: Session::new(&proxy(), &namespace(), 1),
            published: Published { catalog, quarantine: Arc::default(), shares_live: true },
            now: Duration::from_secs(1000),
            unanswered: Vec::new(),
        }
    }

    /// With a proxy that has all it sees.
    pub(super) fn settled(resources: &[&str]) -> Talk {
        let mut talk = Talk::with(resources);
        let named = |kind: &str| {
            let names = resources.iter().filter_map(|text| text.strip_prefix(kind));
            names.map(|text| text.trim().split(['@', ' ']).next().unwrap_or_default()).collect::<Vec<_>>()
        };
        let endpoints = named("Endpoints");
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::VirtualHost] {
            talk.asks(kind, if kind == Kind::Endpoints { &endpoints } else { &[] });
            talk.accepts();
        }
        if !named("Runtime").is_empty() {
            talk.asks(Kind::Runtime, &named("Runtime"));
            talk.accepts();
        }
        assert_eq!(talk.session.acked_epoch(), Some(1));
        talk
    }

    pub(super) fn asks(&mut self, kind: Kind, names: &[&str]) -> Vec<String> {
        self.says(&DeltaDiscoveryRequest { resource_names_subscribe: texts(names), ..request(kind) })
    }

    pub(super) fn claims(&mut self, kind: Kind, names: &[&str], claims: &[(&str, Version)]) -> Vec<String> {
        let claims = claims.iter().map(|(name, version)| ((*name).to_owned(), version.to_string()));
        self.says(&DeltaDiscoveryRequest {
            resource_names_subscribe: texts(names),
            initial_resource_versions: claims.collect(),
            ..request(kind)
        })
    }

    pub(super) fn publishes(&mut self, resources: &[&str]) -> Vec<String> {
        let new = catalog(self.published.catalog.epoch + 1, resources);
        let mut change = Change { epoch: new.epoch, ..Change::default() };
        for (one, other) in [(&*self.published.catalog, &new), (&new, &*self.published.catalog)] {
            for resource in one.seen_by(&proxy(), &namespace()) {
                let counterpart = other.get(&proxy(), &namespace(), &resource.key);
                if counterpart.is_none_or(|counterpart| counterpart.version != resource.version) {
                    change.keys.entry(Scope::Everyone).or_default().insert(resource.key.clone());
                }
            }
        }
        self.published.catalog = Arc::new(new);
        let reaction = self.session.publish(&self.published, [&change], self.now);
        self.hears(reaction)
    }

    pub(super) fn passes(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        let reaction = self.session.wake(&self.published, self.now);
        self.hears(reaction)
    }

    /// The proxy accepts everything it has been sent.
    pub(super) fn accepts(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        for response in std::mem::take(&mut self.unanswered) {
            sent.extend(self.answers(&response, None));
        }
        sent
    }

    /// The proxy refuses the oldest it has not answered.
    pub(super) fn refuses(&mut self, words: &str) -> Vec<String> {
        let response = self.unanswered.remove(0);
        self.answers(&response, Some(words))
    }

    pub(super) fn answers(&mut self, response: &Response, error: Option<&str>) -> Vec<String> {
        self.says(&DeltaDiscoveryRequest {
            response_nonce: response.nonce.to_string(),
            error_detail: error.map(|words| Status { code: 3, message: words.into(), details: vec![] }),
            ..request(response.kind)
        })
    }

    pub(super) fn says(&mut self, request: &DeltaDiscoveryRequest) -> Vec<String> {
        let reaction = self.session.receive(request, &self.published, self.now).expect("not refused");
        self.hears(reaction)
    }

    pub(super) fn hears(&mut self, reaction: Reaction) -> Vec<String> {
        let mut heard: Vec<_> = reaction.responses.iter().map(|response| text(response)).collect();
        heard.extend(reaction.rejections.iter().map(|rejection| format!("rejected {}", rejection.key.name)));
        heard.extend((reaction.ignored > 0).then(|| "ignored".to_owned()));
        self.unanswered.extend(reaction.responses);
        heard
    }
}

pub(super) fn text(response: &Response) -> String {
    let mark = if response.heartbeat { '~' } else { '+' };
    let sent = response.resources.iter().map(|resource| format!(" {mark}{}", resource.key.name));
    let removed = response.removed.iter().map(|name| format!(" -{name}"));
    format!("{:?}{}", response.kind, sent.chain(removed).collect::<String>())
}

pub(super) fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn request(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..DeltaDiscoveryRequest::default() }
}

pub(super) fn proxy() -> InstanceId {
    InstanceId::parse("pay-1").expect("a name")
}

pub(super) fn namespace() -> Namespace {
    Namespace::parse("shop").expect("a name")
}

pub(super) fn identity(account: &str) -> airlane_core::id::Identity {
    airlane_core::id::Identity {
        trust_domain: TrustDomain::parse("airlane.local").expect("a domain"),
        namespace: namespace(),
        service_account: ServiceAccount::parse(account).expect("a name"),
    }
}

pub(super) fn parse(text: &str) -> Arc<Resource> {
    let (text, domains) = text.split_once(" = ").unwrap_or((text, ""));
    let (head, clusters) = text.split_once(" > ").unwrap_or((text, ""));
    let (kind, name) = head.split_once(' ').expect("KIND NAME");
    let (name, version) = name.split_once('@').unwrap_or((name, "1"));
    let kind = Kind::ALL.into_iter().find(|k| format!("{k:?}") == kind).expect("a kind");
    Arc::new(Resource {
        key: Key { kind, name: name.into() },
        scope: Scope::Everyone,
        version: Version(version.parse().expect("a number")),
        body: Arc::new(Any { type_url: kind.type_url().into(), value: version.into() }),
        ttl: (kind == Kind::Runtime).then_some(TTL),
        clusters: Arc::new(clusters.split_whitespace().map(Arc::from).collect()),
        domains: domains.split_whitespace().map(|domain| domain.parse().expect("a number")).collect(),
        shaped_by: Arc::default(),
    })
}

pub(super) fn catalog(epoch: u64, resources: &[&str]) -> Catalog {
    let layer: BTreeMap<_, _> =
        resources.iter().map(|text| parse(text)).map(|r| (r.key.clone(), r)).collect();
    Catalog { epoch, resources: HashMap::from([(Scope::Everyone, Arc::new(layer))]) }
}
