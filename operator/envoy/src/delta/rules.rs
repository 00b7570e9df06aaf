//! Each rule of the conversation on its own.

use super::{
    talk::{TTL, Talk, catalog, identity, parse, request, texts},
    *,
};
use envoy_types::pb::google::protobuf::Any;
use std::collections::BTreeSet;

const NOTHING: [&str; 0] = [];

#[test]
fn a_wildcard_is_answered_even_if_there_is_nothing() {
    let mut talk = Talk::with(&[]);
    assert_eq!(talk.asks(Kind::Cluster, &[]), ["Cluster"]);
    assert_eq!(talk.asks(Kind::Listener, &[]), ["Listener"]);
    assert_eq!(talk.session.acked_epoch(), None);
    talk.accepts();
    assert_eq!(talk.session.acked_epoch(), Some(1));
}

#[test]
fn an_empty_request_is_no_wildcard_for_endpoints() {
    let mut talk = Talk::with(&["Endpoints a"]);
    assert_eq!(talk.asks(Kind::Endpoints, &[]), NOTHING);
    assert_eq!(talk.asks(Kind::Endpoints, &["*"]), ["ignored"]);
    assert_eq!(talk.asks(Kind::Endpoints, &["a"]), ["Endpoints +a"]);
}

#[test]
fn who_reconnects_gets_what_differs() {
    let mut talk = Talk::with(&["Cluster a", "Cluster b@2", "Cluster c"]);
    let claims = [("a", Version(1)), ("b", Version(1))];
    assert_eq!(talk.claims(Kind::Cluster, &[], &claims), ["Cluster +b +c"]);
    let mut talk = Talk::with(&["Endpoints a", "Endpoints b@2"]);
    assert_eq!(talk.claims(Kind::Endpoints, &["a", "b"], &claims), ["Endpoints +b"]);
}

#[test]
fn what_went_meanwhile_is_removed_after_the_proxy_told_what_it_uses() {
    let mut talk = Talk::with(&["VirtualHost h@2"]);
    assert_eq!(talk.claims(Kind::Cluster, &[], &[("gone", Version(1))]), ["Cluster"]);
    assert_eq!(talk.asks(Kind::Listener, &[]), ["Listener"]);
    assert_eq!(talk.claims(Kind::VirtualHost, &[], &[("h", Version(1))]), ["VirtualHost +h"]);
    assert_eq!(talk.accepts(), ["Cluster -gone"]);
}

#[test]
fn missing_endpoints_are_answered_and_a_missing_secret_is_not() {
    let mut talk = Talk::with(&[]);
    assert_eq!(talk.asks(Kind::Endpoints, &["a"]), ["Endpoints -a"]);
    assert_eq!(talk.asks(Kind::Secret, &["bundle"]), NOTHING);
    talk.accepts();
    assert_eq!(talk.publishes(&["Secret bundle", "Endpoints a"]), ["Secret +bundle", "Endpoints +a"]);
    talk.accepts();
    assert_eq!(talk.publishes(&[]), ["Endpoints -a"]);
}

#[test]
fn what_is_asked_for_again_is_sent_again() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a"]);
    assert_eq!(talk.asks(Kind::Endpoints, &["a"]), ["Endpoints +a"]);
}

#[test]
fn what_is_not_asked_for_any_more_is_not_sent() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a"]);
    let unsubscribe =
        DeltaDiscoveryRequest { resource_names_unsubscribe: texts(&["a"]), ..request(Kind::Endpoints) };
    assert_eq!(talk.says(&unsubscribe), NOTHING);
    assert_eq!(talk.publishes(&["Cluster a", "Endpoints a@2"]), NOTHING);
    assert_eq!(talk.session.acked_epoch(), Some(2));
}

#[test]
fn endpoints_follow_a_changed_cluster_in_the_same_turn() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a", "Cluster b", "Endpoints b"]);
    let sent = talk.publishes(&["Cluster a@2", "Endpoints a", "Cluster b", "Endpoints b"]);
    assert_eq!(sent, ["Cluster +a", "Endpoints +a"]);
}

#[test]
fn a_host_waits_for_its_clusters_and_no_other_host_does() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a"]);
    let published = [
        "Cluster a",
        "Endpoints a",
        "Cluster b",
        "Endpoints b",
        "VirtualHost h > b",
        "VirtualHost i > a",
        "VirtualHost j > agent",
    ];
    assert_eq!(talk.publishes(&published), ["Cluster +b", "VirtualHost +i +j"]);
    assert_eq!(talk.accepts(), NOTHING);
    assert_eq!(talk.session.acked_epoch(), Some(1));
    assert_eq!(talk.asks(Kind::Endpoints, &["b"]), ["Endpoints +b"]);
    assert_eq!(talk.accepts(), ["VirtualHost +h"]);
    talk.accepts();
    assert_eq!(talk.session.acked_epoch(), Some(2));
}

#[test]
fn a_cluster_goes_after_the_host_that_named_it() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a", "VirtualHost h > a", "VirtualHost i > a"]);
    assert_eq!(talk.publishes(&["VirtualHost i@2"]), ["VirtualHost +i -h"]);
    assert_eq!(talk.accepts(), ["Cluster -a"]);
    assert_eq!(talk.accepts(), ["Endpoints -a"]);
}

#[test]
fn a_domain_moves_from_one_host_to_another_in_one_response() {
    let mut talk = Talk::settled(&["VirtualHost h"]);
    assert_eq!(talk.publishes(&["VirtualHost i", "VirtualHost j"]), ["VirtualHost +i +j -h"]);
    // Something in it was refused: the old host still goes before anything takes its place.
    assert_eq!(talk.refuses("something is wrong"), ["VirtualHost -h", "VirtualHost +i", "VirtualHost +j"]);
    let mut talk = Talk::settled(&["VirtualHost h"]);
    assert_eq!(talk.publishes(&["VirtualHost i"]), ["VirtualHost +i -h"]);
    assert_eq!(talk.refuses("something is wrong"), ["VirtualHost -h", "rejected i"]);
}

#[test]
fn a_domain_passes_from_host_to_host_in_one_response() {
    let mut talk = Talk::settled(&["VirtualHost h = 1 2", "VirtualHost i = 3"]);
    assert_eq!(talk.publishes(&["VirtualHost i@2 = 1 3"]), ["VirtualHost +i -h"]);
    assert_eq!(talk.publishes(&["VirtualHost i@3 = 3", "VirtualHost j = 1"]), NOTHING, "i is on its way");
    assert_eq!(talk.accepts(), ["VirtualHost +i +j"]);
}

#[test]
fn a_domain_stays_until_who_takes_it_can_go() {
    let mut talk = Talk::settled(&["VirtualHost h = 1 2", "VirtualHost i = 3"]);
    let published =
        ["Cluster a", "Endpoints a", "VirtualHost h@2 = 2", "VirtualHost i@2 = 3", "VirtualHost j > a = 1"];
    assert_eq!(talk.publishes(&published), ["Cluster +a", "VirtualHost +i"]);
    talk.accepts();
    talk.asks(Kind::Endpoints, &["a"]);
    assert_eq!(talk.accepts(), ["VirtualHost +h +j"]);
    talk.accepts();
    assert_eq!(
        talk.publishes(&["Cluster b", "Endpoints b", "VirtualHost k > b = 1 2"]),
        ["Cluster +b", "VirtualHost -i"]
    );
    talk.accepts();
    talk.asks(Kind::Endpoints, &["b"]);
    assert_eq!(talk.accepts(), ["VirtualHost +k -h -j"]);
}

#[test]
fn a_rejected_handover_is_made_one_by_one() {
    let mut talk = Talk::settled(&["VirtualHost h = 1", "VirtualHost i = 2", "VirtualHost j = 3"]);
    let published = ["VirtualHost i@2 = 1", "VirtualHost j@2 = 3", "VirtualHost k = 2"];
    assert_eq!(talk.publishes(&published), ["VirtualHost +i +j +k -h"]);
    assert_eq!(talk.refuses("j is bad"), ["VirtualHost -h", "VirtualHost +i", "VirtualHost +j"]);
    let of_j = talk.unanswered.remove(2);
    assert_eq!(talk.answers(&of_j, Some("j is bad")), ["rejected j"]);
    assert_eq!(talk.accepts(), ["VirtualHost +k"], "i has let go of its domain");
}

#[test]
fn who_keeps_a_domain_by_a_refusal_keeps_others_from_it() {
    let mut talk = Talk::settled(&["VirtualHost h = 1 2", "VirtualHost i = 3"]);
    assert_eq!(talk.publishes(&["VirtualHost h@2 = 2", "VirtualHost i = 3"]), ["VirtualHost +h"]);
    assert_eq!(talk.refuses("bad"), ["rejected h"]);
    assert_eq!(talk.publishes(&["VirtualHost h@2 = 2", "VirtualHost i@2 = 1 3"]), NOTHING);
    assert_eq!(talk.session.acked_epoch(), Some(3));
    assert_eq!(talk.publishes(&["VirtualHost h@3 = 2", "VirtualHost i@2 = 1 3"]), ["VirtualHost +h +i"]);
}

#[test]
fn two_that_exchange_domains_after_a_rejection_let_go_first() {
    let mut talk = Talk::settled(&["VirtualHost h = 1", "VirtualHost i = 2", "VirtualHost j = 3"]);
    let published = ["VirtualHost h@2 = 2", "VirtualHost i@2 = 1", "VirtualHost j@2 = 3"];
    assert_eq!(talk.publishes(&published), ["VirtualHost +h +i +j"]);
    assert_eq!(talk.refuses("j is bad"), ["VirtualHost +j"]);
    assert_eq!(talk.refuses("j is bad"), ["VirtualHost -h", "rejected j"]);
    assert_eq!(talk.accepts(), ["VirtualHost +i"]);
    assert_eq!(talk.accepts(), ["VirtualHost +h"]);
    talk.accepts();
    assert_eq!(talk.session.acked_epoch(), Some(2));
}

#[test]
fn endpoints_leave_a_cluster_at_once() {
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a", "VirtualHost h > a"]);
    talk.publishes(&["Cluster a@2", "Endpoints a", "VirtualHost h > a"]);
    let sent = talk.publishes(&["Cluster a@2", "Endpoints a@2", "VirtualHost h > a"]);
    assert_eq!(sent, ["Endpoints +a"], "although nothing was answered yet");
    let mut talk = Talk::settled(&["Cluster a", "Endpoints a", "VirtualHost h > a"]);
    assert_eq!(talk.publishes(&["Cluster a", "VirtualHost h > a"]), ["Endpoints -a"]);
}

#[test]
fn the_newest_version_wins_while_one_is_on_its_way() {
    let mut talk = Talk::settled(&["Cluster a"]);
    assert_eq!(talk.publishes(&["Cluster a@2"]), ["Cluster +a"]);
    assert_eq!(talk.publishes(&["Cluster a@3"]), NOTHING);
    assert_eq!(talk.publishes(&["Cluster a@4"]), NOTHING);
    assert_eq!(talk.accepts(), ["Cluster +a"]);
    assert_eq!(talk.unanswered[0].resources[0].version, Version(4));
    assert_eq!(talk.session.acked_epoch(), Some(2));
    talk.accepts();
    assert_eq!(talk.session.acked_epoch(), Some(4));
}

#[test]
fn a_window_of_responses_waits_for_a_slow_proxy() {
    let mut talk = Talk::settled(&[]);
    let names: Vec<_> = (0..20).map(|n| format!("Cluster c{n}")).collect();
    for n in 1..=names.len() {
        talk.publishes(&names.iter().take(n).map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(talk.unanswered.len(), WINDOW);
    talk.accepts();
    let sent: usize = talk.unanswered.iter().map(|response| response.resources.len()).sum();
    assert_eq!(sent, names.len() - WINDOW, "the rest goes as one, or as soon as there is room");
}

#[test]
fn the_one_at_fault_is_found_and_the_others_go_on() {
    let mut talk = Talk::settled(&["VirtualHost h", "VirtualHost i"]);
    assert_eq!(talk.publishes(&["VirtualHost h@2", "VirtualHost i@2"]), ["VirtualHost +h +i"]);
    assert_eq!(talk.refuses("something is wrong"), ["VirtualHost +h", "VirtualHost +i"]);
    assert_eq!(talk.refuses("h is wrong"), ["rejected h"]);
    assert_eq!(talk.accepts(), NOTHING);
    assert_eq!(talk.session.acked_epoch(), Some(2), "what was refused holds nothing back");
    assert_eq!(talk.publishes(&["VirtualHost h@2", "VirtualHost i@3"]), ["VirtualHost +i"]);
    talk.accepts();
    assert_eq!(talk.publishes(&["VirtualHost h@4", "VirtualHost i@3"]), ["VirtualHost +h"]);
}

#[test]
fn a_refused_host_keeps_the_clusters_of_its_last_good_version() {
    let mut talk = Talk::settled(&["Cluster a", "VirtualHost h > a"]);
    assert_eq!(talk.publishes(&["VirtualHost h@2"]), ["VirtualHost +h"]);
    assert_eq!(talk.refuses("no"), ["rejected h"]);
    assert_eq!(talk.session.acked_epoch(), Some(2));
    assert_eq!(talk.publishes(&["VirtualHost h@3"]), ["VirtualHost +h"]);
    assert_eq!(talk.accepts(), ["Cluster -a"]);
}

#[test]
fn what_several_identities_refused_is_sent_to_nobody() {
    let mut talk = Talk::settled(&["VirtualHost h"]);
    let bad = parse("VirtualHost h@2");
    let rejection = Rejection::of(&bad, "no");
    let mut quarantine = Quarantine::default();
    assert!(!quarantine.note(&rejection, &identity("pay")));
    assert!(!quarantine.note(&rejection, &identity("pay")), "one identity is not enough, however often");
    assert!(!quarantine.withholds(&bad));
    assert!(quarantine.note(&rejection, &identity("cart")));
    talk.published.quarantine = Arc::new(quarantine.clone());
    assert_eq!(talk.publishes(&["VirtualHost h@2"]), NOTHING);
    assert_eq!(talk.session.acked_epoch(), Some(2));
    assert_eq!(talk.publishes(&["VirtualHost h@3"]), ["VirtualHost +h"]);
    let mended = Change { epoch: 3, keys: [(bad.scope.clone(), [bad.key.clone()].into())].into() };
    quarantine.forget_changed(&talk.published.catalog, &mended);
    assert!(!quarantine.withholds(&bad));
}

#[test]
fn virtual_hosts_are_sent_again_for_their_new_route_configuration() {
    let mut talk = Talk::settled(&["VirtualHost a/h", "VirtualHost b/h", "Routes a", "Routes b"]);
    assert_eq!(talk.asks(Kind::Routes, &["a"]), ["Routes +a", "VirtualHost +a/h"]);
}

#[test]
fn virtual_hosts_on_their_way_are_sent_again_for_their_new_route_configuration() {
    let mut talk = Talk::settled(&["VirtualHost a/h"]);
    let published = ["VirtualHost a/h", "VirtualHost b/h", "Routes b"];
    assert_eq!(talk.publishes(&published), ["VirtualHost +b/h"]);
    assert_eq!(talk.asks(Kind::Routes, &["b"]), ["Routes +b", "VirtualHost +b/h"]);
}

#[test]
fn shares_are_kept_alive_while_somebody_vouches_for_them() {
    let mut talk = Talk::settled(&["Runtime shares"]);
    assert_eq!(talk.session.next_wake(), Some(talk.now + TTL / 4));
    assert_eq!(talk.passes(TTL / 8), NOTHING);
    assert_eq!(talk.passes(TTL / 8), ["Runtime ~shares"]);
    assert_eq!(talk.passes(TTL / 4), NOTHING, "the last heartbeat is not answered");
    talk.accepts();
    let certain_until = talk.session.acked_shares().expect("acknowledged").certain_until;
    assert_eq!(certain_until, talk.now - TTL / 4 + TTL);
    talk.published.shares_live = false;
    assert_eq!(talk.passes(TTL / 2), NOTHING);
    assert_eq!(talk.publishes(&["Runtime shares@2"]), NOTHING, "nobody vouches for these");
    talk.published.shares_live = true;
    assert_eq!(talk.passes(Duration::ZERO), ["Runtime +shares"]);
}

#[test]
fn shares_that_may_have_expired_are_sent_whole() {
    let mut talk = Talk::settled(&["Runtime shares"]);
    assert_eq!(talk.passes(TTL / 2), ["Runtime +shares"]);
    talk.accepts();
    talk.passes(TTL / 4);
    assert_eq!(
        talk.refuses("no such resource"),
        ["Runtime +shares"],
        "a refused heartbeat: it expired there"
    );
}

#[test]
fn without_anybody_vouching_a_new_proxy_goes_on_without_shares() {
    let mut talk = Talk::with(&["Runtime shares"]);
    talk.published.shares_live = false;
    assert_eq!(talk.asks(Kind::Runtime, &["shares"]), ["Runtime -shares"]);
    assert_eq!(talk.accepts(), NOTHING);
    talk.published.shares_live = true;
    assert_eq!(talk.passes(Duration::ZERO), ["Runtime +shares"]);
    let mut talk = Talk::with(&["Runtime shares"]);
    talk.published.shares_live = false;
    let claims = [("shares", Version(1))];
    assert_eq!(talk.claims(Kind::Runtime, &["shares"], &claims), NOTHING, "they expire by themselves");
}

#[test]
fn missed_publications_are_made_up_for() {
    let mut talk = Talk::settled(&["Cluster a", "Cluster b", "VirtualHost h"]);
    talk.published.catalog = Arc::new(catalog(9, &["Cluster b@2", "Cluster c", "VirtualHost h"]));
    let reaction = talk.session.resync(&talk.published, talk.now);
    assert_eq!(talk.hears(reaction), ["Cluster +b +c", "Cluster -a"]);
    talk.accepts();
    assert_eq!(talk.session.acked_epoch(), Some(9));
}

#[test]
fn what_means_nothing_is_ignored() {
    let mut talk = Talk::settled(&["Cluster a"]);
    let unknown =
        DeltaDiscoveryRequest { type_url: "type.googleapis.com/Nothing".into(), ..Default::default() };
    assert_eq!(talk.says(&unknown), ["ignored"]);
    for nonce in ["1", "999", "x"] {
        let answer = DeltaDiscoveryRequest { response_nonce: nonce.into(), ..request(Kind::Cluster) };
        assert_eq!(talk.says(&answer), ["ignored"], "{nonce}");
    }
    let early = DeltaDiscoveryRequest { response_nonce: "1".into(), ..request(Kind::Routes) };
    assert_eq!(talk.says(&early), ["ignored"], "an answer before a question");
}

#[test]
fn names_no_envoy_asks_for_end_the_conversation() {
    let mut talk = Talk::with(&[]);
    let mut refused = |names: Vec<String>| {
        let request = DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(Kind::Endpoints) };
        talk.session.receive(&request, &talk.published, talk.now).map(drop)
    };
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    assert_eq!(refused(vec![long]), Err(Refused::NameTooLong { bytes: NAME_BYTES_MAX + 1 }));
    let half = |from: usize| (from..from + NAMES_MAX / 2 + 1).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(refused(half(0)), Ok(()));
    assert_eq!(refused(half(NAMES_MAX)), Err(Refused::TooManyNames));
    assert_eq!(refused(vec!["../\0".into()]), Err(Refused::TooManyNames), "and it stays at its end");
}

#[test]
fn a_proxy_that_reconnects_may_have_all_that_is_published_and_some_that_went() {
    let published: Vec<String> = (0..NAMES_MAX).map(|n| format!("Listener l{n}")).collect();
    let published: Vec<&str> = published.iter().map(String::as_str).collect();
    let claims = |count: usize| {
        let mut talk = Talk::with(&published);
        let claims = (0..count).map(|n| (format!("l{n}"), Version(7).to_string()));
        let request =
            DeltaDiscoveryRequest { initial_resource_versions: claims.collect(), ..request(Kind::Listener) };
        talk.session.receive(&request, &talk.published, talk.now).map(drop)
    };
    assert_eq!(claims(NAMES_MAX + 1), Ok(()));
    assert_eq!(claims(2 * NAMES_MAX + 1), Err(Refused::TooManyNames));
}

#[test]
fn words_of_a_proxy_are_cut_to_a_line() {
    assert_eq!(tidy(" a\n\t b \u{1b}[31mc\u{0}d "), "a b [31mc d");
    assert_eq!(tidy(&"é".repeat(500)).chars().count(), DETAIL_MAX + 1);
    assert_eq!(tidy(""), "");
}

#[test]
fn shares_are_read_back() {
    use envoy_types::pb::{
        envoy::service::runtime::v3::Runtime,
        google::protobuf::{Struct, Value, value::Kind::NumberValue, value::Kind::StringValue},
    };
    use prost::Message;
    let number = |n| Value { kind: Some(NumberValue(n)) };
    let text = Value { kind: Some(StringValue("x".into())) };
    let fields = [("a", number(9500.0)), ("b", number(0.5)), ("c", number(-1.0)), ("d", text)];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let layer = Runtime { name: "shares".into(), layer: Some(Struct { fields }) };
    let mut resource = (*parse("Runtime shares")).clone();
    resource.body = Arc::new(Any { type_url: Kind::Runtime.type_url().into(), value: layer.encode_to_vec() });
    assert_eq!(shares_of(&resource), Ok([("a".to_owned(), 9500)].into()));
}

/// What is remembered of a resource is a pointer: a thousand services cost a proxy tens of kilobytes.
#[test]
fn a_session_remembers_pointers() {
    let texts: Vec<_> = (0..1000)
        .flat_map(|n| [format!("Cluster {n}"), format!("Endpoints {n}"), format!("VirtualHost {n} > {n}")])
        .collect();
    let talk = Talk::settled(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let transient: usize = talk.session.subscriptions.values().map(|s| s.due.len() + s.in_flight.len()).sum();
    let doubts: usize = talk.session.subscriptions.values().map(|s| s.doubt.len()).sum();
    assert_eq!((transient, doubts), (0, 0));
    let endpoints = &talk.session.subscriptions[&Kind::Endpoints];
    let held: BTreeSet<_> = endpoints.held.iter().map(|resource| Arc::as_ptr(&resource.key.name)).collect();
    assert_eq!(endpoints.names.len(), 1000);
    assert!(
        endpoints.names.iter().all(|name| held.contains(&Arc::as_ptr(name))),
        "names are the catalog's own"
    );
}
