use super::*;
use crate::scripted_api;
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Mutex, time::Duration};
use tokio::time::timeout;

/// A client of an API server that lists these objects by path, and then has no news.
fn listing(objects: impl Fn(&str) -> Value + Send + Sync + 'static) -> Client {
    let listed = Mutex::new(HashSet::new());
    scripted_api::client(move |(_, path, _)| {
        let first = listed.lock().expect("not poisoned").insert(path.clone());
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": objects(&path) });
        first.then_some((200, list))
    })
}

#[tokio::test]
async fn one_object_that_cannot_be_read_hides_no_other() {
    let named =
        |name: &str, spec: Value| json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": spec });
    let client = listing(move |path| match path {
        "/api/v1/services" => json!([
            named("odd", json!({ "selector": { "app": "odd" }, "ports": "80" })),
            named("pay", json!({ "selector": { "app": "pay" }, "ports": [{ "port": 80 }] })),
        ]),
        "/apis/discovery.k8s.io/v1/endpointslices" => json!([
            { "metadata": { "name": "odd", "namespace": "shop" }, "endpoints": 7 },
        ]),
        _ => json!([]),
    });
    let shutdown = CancellationToken::new();
    let _ending = shutdown.clone().drop_guard();
    let system = Namespace::parse("airlane-system").expect("a name");
    let (observed, watching) = watch(&client, system, Restarts::Ignored, shutdown);
    tokio::spawn(watching);
    timeout(Duration::from_secs(10), observed.complete()).await.expect("everything is listed");
    let declared = observed.declared.borrow().clone();
    let services: Vec<String> =
        declared.services.iter().flat_map(|all| all.keys()).map(ToString::to_string).collect();
    assert_eq!(services, ["shop/pay"]);
}
