//! Who may ask for what, in the words of Envoy's role-based filter and of a door for bytes.
//!
//! Requests: a policy of ours is a policy of the filter, which *denies* what none of its rules admits. So each must let a
//! request pass, and the filter names the one that did not; and first a rule that would have admitted the caller with
//! another request, since the filter compares policies in the order of their names. All of it stands in a principal,
//! since only there can a caller, a method and a path be joined.
//!
//! Bytes have neither methods nor paths, and a filter would see the caller after the application's first words; so who
//! may send them is a matter of the handshake.

use super::{
    Lowered,
    cluster::Application,
    proto::{ads, exactly, matching, packed, starting_with},
    signals::{ACCESS_FILTER, ACCESS_SECTION},
};
use crate::catalog::Kind;
use airlane_core::{
    id::{Identity, Name, TrustDomain},
    mesh::Access,
    policy::{AccessMode, AccessRule, AccessSpec, Asked, Caller, PathPattern},
};
use envoy_types::pb::{
    envoy::{
        config::{
            rbac::v3::{
                Permission, Policy, Principal, Rbac as Rules, permission,
                principal::{Authenticated, Identifier, Set},
                rbac::Action as Effect,
            },
            route::v3::{
                HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
                header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::rbac::v3::{Rbac, RbacPerRoute},
            network::http_connection_manager::v3::{Rds, http_connection_manager::RouteSpecifier},
        },
        r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher},
    },
    google::protobuf::{Any, Duration},
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

/// Escapes and characters by which an application may read another path than the one that was compared: `/`, `\`, `.`,
/// `%`, `;`, `#`, `?`, control characters, overlong or impossible UTF-8, and what is no escape at all (`%u002f`, `%2`),
/// which some read as one. The path is in its normal form already.
const AMBIGUOUS: &str = concat!(
    r"(?i).*(%([01].|7f|2[35ef]|3[bf]|5c|c[01]|e0%[89]|f0%8|f[5-9a-f])",
    r"|%([^0-9a-f]|$)|%[0-9a-f]([^0-9a-f]|$)",
    r"|[\\;#]|//|/\.{1,2}(/|$)).*"
);

/// How many matchers of one policy are repeated for the sake of what a denial says: for each rule that it may name, those
/// of every rule about the same callers. It grows with the square of what is written, in every proxy behind the door.
const NAMING_MATCHERS_MAX: usize = 2_000;

/// Where the requests of one port go, and who may send them: an edit of a policy changes this and no listener.
#[derive(Hash)]
pub(super) struct Admission<'a> {
    pub(super) port: u16,
    pub(super) access: &'a [Access],
    pub(super) trust_domain: &'a TrustDomain,
}

impl Admission<'_> {
    fn of(port: u16) -> String {
        format!("inbound|{port}")
    }

    /// How a door finds it.
    pub(super) fn before(port: u16) -> RouteSpecifier {
        RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: Self::of(port) })
    }

    fn filter(&self) -> HashMap<String, Any> {
        let rules = |mode: AccessMode| {
            let says = self.access.iter().filter(|access| access.says.mode == mode);
            let policies: HashMap<String, Policy> = says.flat_map(|access| self.denials(access)).collect();
            (!policies.is_empty()).then(|| Rules {
                action: Effect::Deny as i32,
                policies,
                ..Default::default()
            })
        };
        let rbac = Rbac {
            rules: rules(AccessMode::Enforce),
            shadow_rules: rules(AccessMode::Audit),
            ..Default::default()
        };
        let filter = RbacPerRoute { rbac: Some(rbac) };
        HashMap::from([(ACCESS_FILTER.to_owned(), packed(filter))])
    }

    /// Everybody whom a policy does not admit, by the reason.
    fn denials(&self, Access { by, says }: &Access) -> Vec<(String, Policy)> {
        if says.admits_others {
            return Vec::new();
        }
        let denied = |rules: &mut dyn Iterator<Item = &AccessRule>| {
            let admitted = rules.map(|rule| self.admitted(rule)).collect::<Vec<_>>();
            if admitted.is_empty() { anybody() } else { not(any_of(admitted)) }
        };
        let named = named(says).into_iter().flatten().map(|(rule, rivals)| {
            let callers = any_of(rule.from.iter().map(|caller| self.caller(caller)).collect());
            (Reason::NotThis(&rule.name), all_of(vec![callers, denied(&mut rivals.into_iter())]))
        });
        named
            .chain([(Reason::NoRule, denied(&mut says.rules.iter()))])
            .map(|(reason, whom)| {
                let anything = Permission { rule: Some(permission::Rule::Any(true)) };
                let policy =
                    Policy { permissions: vec![anything], principals: vec![whom], ..Default::default() };
                (format!("{by}{reason}"), policy)
            })
            .collect()
    }

    fn admitted(&self, rule: &AccessRule) -> Principal {
        let from = rule.from.iter().map(|caller| self.caller(caller)).collect::<Vec<_>>();
        let to = rule.to.iter().map(asked).collect::<Vec<_>>();
        let said = [from, to].into_iter().filter(|alternatives| !alternatives.is_empty()).map(any_of);
        all_of(said.collect())
    }

    fn caller(&self, caller: &Caller) -> Principal {
        let principal_name = Some(identities(caller, self.trust_domain));
        let authenticated = Authenticated { principal_name };
        principal(Identifier::Authenticated(authenticated))
    }
}

/// The rules that a denial may name, each with those that could admit its callers: what others say need not be compared
/// again. `None` if that is too much to compare.
fn named(says: &AccessSpec) -> Option<Vec<(&AccessRule, Vec<&AccessRule>)>> {
    let mut matchers = 0;
    let nearly = says.rules.iter().filter(|rule| !rule.from.is_empty() && !rule.to.is_empty());
    let with_rivals = nearly.map(|rule| {
        let rivals = says.rules.iter().filter(|other| may_admit_callers_of(other, rule));
        let rivals = rivals.inspect(|other| matchers += size(other)).collect();
        (matchers <= NAMING_MATCHERS_MAX).then_some((rule, rivals))
    });
    with_rivals.collect()
}

fn may_admit_callers_of(rule: &AccessRule, other: &AccessRule) -> bool {
    let meet = |one: &Caller, other: &Caller| {
        let accounts = [&one.service_account, &other.service_account];
        one.namespace == other.namespace && (accounts.contains(&&None) || accounts[0] == accounts[1])
    };
    rule.from.is_empty() || rule.from.iter().any(|one| other.from.iter().any(|other| meet(one, other)))
}

/// How many matchers say what a rule admits.
fn size(rule: &AccessRule) -> usize {
    let asked = rule.to.iter().map(|asked| asked.methods.len() + asked.paths.len() + 1);
    rule.from.len() + asked.sum::<usize>()
}

/// Why a policy denies, as its name in the filter goes on after the object's. The first in the order of the alphabet is
/// told.
enum Reason<'a> {
    /// The rule admits the caller, with other requests.
    NotThis(&'a Name),
    /// None is about the caller, or none about such a request.
    NoRule,
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ACCESS_SECTION)?;
        match self {
            Reason::NotThis(rule) => write!(f, " rule {rule}: not this method or path"),
            Reason::NoRule => f.write_str(": no rule admits this"),
        }
    }
}

impl Lowered for Admission<'_> {
    const KIND: Kind = Kind::Routes;

    fn name(&self) -> String {
        Self::of(self.port)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [Application::cluster(self.port).into()].into()
    }

    fn encode(&self) -> Any {
        let to_application = Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(Application::cluster(self.port))),
                // The caller's proxy keeps the time, by the called service's policy.
                timeout: Some(Duration::default()),
                idle_timeout: Some(Duration::default()),
                ..Default::default()
            })),
            ..Default::default()
        };
        packed(RouteConfiguration {
            name: self.name(),
            virtual_hosts: vec![VirtualHost {
                name: "application".to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![to_application],
                typed_per_filter_config: self.filter(),
                ..Default::default()
            }],
            ..Default::default()
        })
    }
}

/// Who may send bytes through a door, or speak to the application past the proxy's eyes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Senders {
    /// Also who has no identity.
    Anybody,
    /// These; nobody if empty.
    Only(BTreeSet<Caller>),
}

impl Senders {
    pub(super) const NOBODY: Senders = Senders::Only(BTreeSet::new());

    /// Who passes every policy. One that only tells cannot tell of bytes, and counts for nothing here.
    pub(super) fn through(access: &[Access]) -> Senders {
        let enforced = access.iter().filter(|access| access.says.mode == AccessMode::Enforce);
        enforced.map(|access| Senders::of(&access.says)).fold(Senders::Anybody, Senders::and)
    }

    fn of(says: &AccessSpec) -> Senders {
        let mut whatever_they_ask = says.rules.iter().filter(|rule| rule.to.is_empty());
        if says.admits_others || whatever_they_ask.clone().any(|rule| rule.from.is_empty()) {
            return Senders::Anybody;
        }
        Senders::Only(whatever_they_ask.by_ref().flat_map(|rule| rule.from.iter().cloned()).collect())
    }

    fn and(self, other: Senders) -> Senders {
        match (self, other) {
            (Senders::Anybody, other) | (other, Senders::Anybody) => other,
            (Senders::Only(these), Senders::Only(those)) => {
                let both = [admitted_by(&those, &these), admitted_by(&these, &those)];
                Senders::Only(both.into_iter().flatten().cloned().collect())
            }
        }
    }

    /// What an identity must match; one of these.
    pub(super) fn identities(&self, trust_domain: &TrustDomain) -> Vec<StringMatcher> {
        match self {
            Senders::Anybody => vec![starting_with(&format!("spiffe://{trust_domain}/"))],
            // Without a matcher Envoy would believe every leaf of the mesh. This one matches none: identities have a
            // path.
            Senders::Only(nobody) if nobody.is_empty() => vec![exactly(&format!("spiffe://{trust_domain}"))],
            Senders::Only(these) => these.iter().map(|caller| identities(caller, trust_domain)).collect(),
        }
    }
}

/// Those of some callers whom others admit, by name or with their whole namespace.
fn admitted_by<'a>(
    others: &BTreeSet<Caller>,
    callers: &'a BTreeSet<Caller>,
) -> impl Iterator<Item = &'a Caller> {
    callers.iter().filter(|caller| {
        let whole = Caller { namespace: caller.namespace.clone(), service_account: None };
        others.contains(*caller) || others.contains(&whole)
    })
}

fn identities(caller: &Caller, trust_domain: &TrustDomain) -> StringMatcher {
    let Caller { namespace, service_account } = caller;
    match service_account {
        Some(account) => exactly(
            &Identity {
                trust_domain: trust_domain.clone(),
                namespace: namespace.clone(),
                service_account: account.clone(),
            }
            .to_string(),
        ),
        None => starting_with(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/")),
    }
}

fn asked(asked: &Asked) -> Principal {
    let methods = asked.methods.iter().map(|method| {
        principal(Identifier::Header(HeaderMatcher {
            name: ":method".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exactly(method))),
            ..Default::default()
        }))
    });
    let paths = asked.paths.iter().map(|pattern| match pattern {
        PathPattern::Exact(path) => path_of(exactly(path)),
        PathPattern::Prefix(prefix) => path_of(starting_with(prefix)),
    });
    let (methods, paths): (Vec<_>, Vec<_>) = (methods.collect(), paths.collect());
    let unambiguous = (!paths.is_empty()).then(|| not(path_of(matching(AMBIGUOUS.to_owned()))));
    let said = [methods, paths].into_iter().filter(|alternatives| !alternatives.is_empty()).map(any_of);
    all_of(said.chain(unambiguous).collect())
}

fn path_of(path: StringMatcher) -> Principal {
    principal(Identifier::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(path)) }))
}

fn principal(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn anybody() -> Principal {
    principal(Identifier::Any(true))
}

fn not(of: Principal) -> Principal {
    principal(Identifier::NotId(Box::new(of)))
}

/// The filter refuses an empty list.
fn all_of(ids: Vec<Principal>) -> Principal {
    if ids.is_empty() { anybody() } else { principal(Identifier::AndIds(Set { ids })) }
}

fn any_of(ids: Vec<Principal>) -> Principal {
    principal(Identifier::OrIds(Set { ids }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_core::id::{ObjectId, ObjectKind};

    fn caller(text: &str) -> Caller {
        let (namespace, account) = text.split_once('/').expect("NAMESPACE/ACCOUNT");
        Caller {
            namespace: namespace.parse().expect("a name"),
            service_account: (account != "*").then(|| account.parse().expect("a name")),
        }
    }

    fn rule(from: &[&str], to: bool) -> AccessRule {
        let anything = Asked { methods: ["GET".to_owned()].into(), paths: BTreeSet::new() };
        AccessRule {
            name: "rule".parse().expect("a name"),
            from: from.iter().map(|text| caller(text)).collect(),
            to: to.then_some(anything).into_iter().collect(),
        }
    }

    fn policy(mode: AccessMode, admits_others: bool, rules: &[AccessRule]) -> Access {
        let by = ObjectId {
            kind: ObjectKind::MeshPolicy,
            namespace: "shop".parse().expect("a name"),
            name: "pay".parse().expect("a name"),
        };
        Access { by, says: AccessSpec { admits_others, mode, rules: rules.to_vec() }.into() }
    }

    fn only(callers: &[&str]) -> Senders {
        Senders::Only(callers.iter().map(|text| caller(text)).collect())
    }

    #[test]
    fn bytes_come_from_who_passes_every_policy() {
        let enforce = |rules: &[AccessRule]| policy(AccessMode::Enforce, false, rules);
        for (access, expected) in [
            (vec![], Senders::Anybody),
            (vec![enforce(&[])], only(&[])),
            (vec![policy(AccessMode::Enforce, true, &[])], Senders::Anybody),
            (vec![policy(AccessMode::Audit, false, &[])], Senders::Anybody),
            (vec![enforce(&[rule(&[], false)])], Senders::Anybody),
            (
                vec![enforce(&[rule(&["shop/front"], false), rule(&["bank/*"], false)])],
                only(&["shop/front", "bank/*"]),
            ),
            (vec![enforce(&[rule(&["shop/front"], true)])], only(&[])),
            (
                vec![enforce(&[rule(&["shop/*"], false)]), enforce(&[rule(&["shop/front"], false)])],
                only(&["shop/front"]),
            ),
            (
                vec![enforce(&[rule(&["shop/cart"], false)]), enforce(&[rule(&["shop/front"], false)])],
                only(&[]),
            ),
            (vec![enforce(&[rule(&["bank/*"], false)]), enforce(&[rule(&[], false)])], only(&["bank/*"])),
        ] {
            assert_eq!(Senders::through(&access), expected, "{access:?}");
        }
    }

    fn many(count: usize, caller: impl Fn(usize) -> String, paths: usize) -> Access {
        let rules = (0..count).map(|n| AccessRule {
            name: format!("rule-{n}").parse().expect("a name"),
            to: vec![Asked {
                methods: BTreeSet::new(),
                paths: (0..paths).map(|path| PathPattern::Exact(format!("/{n}/{path}"))).collect(),
            }],
            ..rule(&[&caller(n)], true)
        });
        policy(AccessMode::Enforce, false, &rules.collect::<Vec<_>>())
    }

    /// What denials say, and their size in bytes.
    fn denials(access: Access) -> (Vec<String>, usize) {
        let access = [access];
        let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
        let admission = Admission { port: 8080, access: &access, trust_domain: &trust_domain };
        let mut said: Vec<String> =
            admission.denials(&access[0]).into_iter().map(|(reason, _)| reason).collect();
        said.sort();
        (said, admission.encode().value.len())
    }

    #[test]
    fn a_denial_names_the_rule_where_that_is_not_too_much_to_compare() {
        let own = |n: usize| format!("shop/caller-{n}");
        let (said, size) = denials(many(64, own, 8));
        assert_eq!(said.len(), 65, "each has its own callers");
        assert!(size < 130_000, "{size}: twice what is written, and no square of it");
        let same = |_| "shop/front".to_owned();
        assert_eq!(denials(many(10, same, 8)).0.len(), 11);
        let (said, size) = denials(many(64, same, 64));
        assert_eq!(said, ["MeshPolicy shop/pay access: no rule admits this"]);
        assert!(size < 200_000, "{size}");
        let whole = |n: usize| if n == 0 { "shop/*".to_owned() } else { format!("shop/caller-{n}") };
        let overlapping = many(3, whole, 1);
        let (_, rivals) = &named(&overlapping.says).expect("few")[1];
        assert_eq!(rivals.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["rule-0", "rule-1"]);
    }

    #[test]
    fn nobody_is_not_everybody() {
        let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
        assert_eq!(only(&[]).identities(&trust_domain), [exactly("spiffe://airlane.local")]);
        let two = only(&["shop/front", "bank/*"]).identities(&trust_domain);
        let expected = [
            starting_with("spiffe://airlane.local/ns/bank/sa/"),
            exactly("spiffe://airlane.local/ns/shop/sa/front"),
        ];
        assert_eq!(two, expected);
    }
}
