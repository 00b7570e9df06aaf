//! What is added to a pod.

use super::{
    INIT_CONTAINER, Injection, Mode, PROXY_CONTAINER, asks,
    edits::Edits,
    settings::{Interception, Settings},
};
use airlane_wire::pod::{
    ADDRESS_VARIABLE, AGENT_PORT, ASKS_VARIABLE, Asks, OPERATOR_VARIABLE, OUTBOUND_PORT, PROXY_UID,
    READY_PATH, ROOTS_VARIABLE, RUN_DIR, TOKEN_AUDIENCE, TOKEN_FILE, TRUST_DOMAIN_VARIABLE,
};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

const TOKEN_VOLUME: &str = "airlane-token";
const RUN_VOLUME: &str = "airlane-run";
/// The names of our volumes.
pub(super) const VOLUMES: [&str; 2] = [TOKEN_VOLUME, RUN_VOLUME];

/// How long a token lives before the kubelet replaces it: Kubernetes allows no less than ten minutes. Seconds.
const TOKEN_LIFETIME: u32 = 3600;
/// How long a proxy may wait for the operator before the kubelet starts it anew. Seconds.
const START_MAX: u32 = 600;

/// The redirection is a handful of rules.
const INIT_REQUESTS: (&str, &str) = ("10m", "16Mi");

/// Read by clients in both cases; `grpc_proxy` by gRPC's own libraries. `HTTPS_PROXY` is for the calls that tunnel.
const PROXY_VARIABLES: [&str; 5] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "grpc_proxy"];
const DIRECT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Hosts that are called past the proxy: the pod itself and Kubernetes, whose address the kubelet fills in.
const DIRECT: &str = "localhost,127.0.0.1,::1,$(KUBERNETES_SERVICE_HOST),kubernetes.default.svc";

/// What our containers are made from.
pub(super) struct Wanted<'a> {
    pub(super) mode: Mode,
    pub(super) settings: &'a Settings,
    pub(super) asks: &'a Asks,
    pub(super) setup: &'a Injection,
}

/// Adds our volumes.
pub(super) fn add_volumes(spec: &PodSpec, edits: &mut Edits) {
    let (_, file) = token_place();
    let token = json!({ "serviceAccountToken": {
        "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_LIFETIME, "path": file,
    }});
    let volumes = [
        json!({ "name": TOKEN_VOLUME, "projected": { "sources": [token] } }),
        // In memory: keys are never on a disk.
        json!({ "name": RUN_VOLUME, "emptyDir": { "medium": "Memory" } }),
    ];
    if spec.volumes.is_none() {
        return edits.add(["spec", "volumes"], json!(volumes));
    }
    for volume in volumes {
        edits.add(["spec", "volumes", "-"], volume);
    }
}

/// Adds our containers before all others, so that what the user's own init containers call is redirected already, and
/// to a proxy that runs.
pub(super) fn add_containers(spec: &PodSpec, wanted: &Wanted<'_>, edits: &mut Edits) {
    let mut containers = Vec::new();
    if wanted.settings.interception == Interception::Init {
        containers.push(init_container(wanted));
    }
    containers.push(proxy_container(wanted));
    if spec.init_containers.is_none() {
        return edits.add(["spec", "initContainers"], json!(containers));
    }
    for (index, container) in containers.into_iter().enumerate() {
        edits.add(["spec", "initContainers", &index.to_string()], container);
    }
}

/// Hands what has come to the asks of an earlier injection to the agent.
pub(super) fn hand_over(spec: &PodSpec, asks: &Asks, edits: &mut Edits) {
    let init = spec.init_containers.iter().flatten().enumerate();
    let Some((index, proxy)) = init.into_iter().find(|(_, it)| it.name == PROXY_CONTAINER) else { return };
    let Some(variable) = proxy.env.iter().flatten().position(|it| it.name == ASKS_VARIABLE) else { return };
    let path = ["spec", "initContainers", &index.to_string(), "env", &variable.to_string(), "value"];
    edits.add(path, json!(text_of(asks)));
}

/// Tells applications where the proxy is. A variable that is set stays as it is, but that hosts are added to those
/// which are called directly.
pub(super) fn tell_applications(spec: &PodSpec, settings: &Settings, edits: &mut Edits) {
    let proxy = format!("http://127.0.0.1:{OUTBOUND_PORT}");
    let mut direct = DIRECT.to_owned();
    for cidr in &settings.exclude_outbound_cidrs {
        direct.push(',');
        direct.push_str(cidr);
    }
    for (list, index, container) in asks::users(spec) {
        let present = |name: &str| container.env.iter().flatten().position(|variable| variable.name == name);
        let mut added: Vec<Value> = Vec::new();
        for name in PROXY_VARIABLES.iter().filter(|name| present(name).is_none()) {
            added.push(json!({ "name": name, "value": proxy }));
        }
        for name in DIRECT_VARIABLES {
            let Some(place) = present(name) else {
                added.push(json!({ "name": name, "value": direct }));
                continue;
            };
            let value =
                container.env.iter().flatten().nth(place).and_then(|variable| variable.value.as_deref());
            if let Some(value) = value.filter(|value| !value.starts_with(&direct)) {
                let place = place.to_string();
                edits.add(["spec", list, &index, "env", &place, "value"], json!(format!("{direct},{value}")));
            }
        }
        add_variables(container, [list, &index], added, edits);
    }
}

fn add_variables(container: &Container, [list, index]: [&str; 2], added: Vec<Value>, edits: &mut Edits) {
    if added.is_empty() {
        return;
    }
    if container.env.is_none() {
        return edits.add(["spec", list, index, "env"], json!(added));
    }
    for variable in added {
        edits.add(["spec", list, index, "env", "-"], variable);
    }
}

fn init_container(wanted: &Wanted<'_>) -> Value {
    let Settings { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_cidrs, .. } =
        wanted.settings;
    let joined = |ports: &std::collections::BTreeSet<u16>| {
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let mut command = vec!["airlane-sidecar".to_owned(), "intercept".to_owned()];
    if wanted.mode == Mode::Outbound {
        command.push("--outbound-only".to_owned());
    }
    for (flag, excluded) in [
        ("--exclude-inbound-ports", joined(exclude_inbound_ports)),
        ("--exclude-outbound-ports", joined(exclude_outbound_ports)),
        ("--exclude-outbound-cidrs", exclude_outbound_cidrs.join(",")),
    ] {
        if !excluded.is_empty() {
            command.push(format!("{flag}={excluded}"));
        }
    }
    let security = json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let (cpu, memory) = INIT_REQUESTS;
    container(
        wanted.setup,
        INIT_CONTAINER,
        &command,
        &security,
        &json!({
            "resources": { "requests": { "cpu": cpu, "memory": memory } },
        }),
    )
}

fn proxy_container(wanted: &Wanted<'_>) -> Value {
    let Wanted { settings, asks, setup, .. } = wanted;
    let (directory, _) = token_place();
    let is = |name: &str, value: &str| json!({ "name": name, "value": value });
    let of_pod = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let security = json!({
        "runAsUser": PROXY_UID,
        "runAsGroup": PROXY_UID,
        "runAsNonRoot": true,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let mut command = vec!["airlane-sidecar".to_owned(), "pod".to_owned()];
    if settings.cores() > 1 {
        command.push(format!("--concurrency={}", settings.cores()));
    }
    container(
        setup,
        PROXY_CONTAINER,
        &command,
        &security,
        &json!({
            "restartPolicy": "Always",
            "env": [
                is(OPERATOR_VARIABLE, &setup.operator),
                is(ROOTS_VARIABLE, &setup.roots.join(",")),
                is(TRUST_DOMAIN_VARIABLE, setup.trust_domain.as_str()),
                of_pod("POD_NAME", "metadata.name"),
                of_pod("POD_NAMESPACE", "metadata.namespace"),
                of_pod("POD_UID", "metadata.uid"),
                of_pod(ADDRESS_VARIABLE, "status.podIP"),
                is(ASKS_VARIABLE, &text_of(asks)),
            ],
            "resources": { "requests": { "cpu": settings.cpu, "memory": settings.memory } },
            "startupProbe": {
                "httpGet": { "path": READY_PATH, "port": AGENT_PORT },
                "periodSeconds": 1,
                "failureThreshold": START_MAX,
            },
            // A pod without a proxy cannot be called. An Envoy that is started anew is back before this says so.
            "readinessProbe": {
                "httpGet": { "path": READY_PATH, "port": AGENT_PORT },
                "periodSeconds": 2,
                "timeoutSeconds": 2,
                "failureThreshold": 3,
            },
            "volumeMounts": [
                { "name": TOKEN_VOLUME, "mountPath": directory, "readOnly": true },
                { "name": RUN_VOLUME, "mountPath": RUN_DIR },
            ],
        }),
    )
}

/// What both containers have, and `more`.
fn container(setup: &Injection, name: &str, command: &[String], security: &Value, more: &Value) -> Value {
    let mut container = json!({
        "name": name,
        "image": setup.image,
        "command": command,
        "securityContext": security,
        // A crash is told in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(fields) = container.as_object_mut() {
        fields.extend(setup.image_pull_policy.iter().map(|policy| ("imagePullPolicy".into(), json!(policy))));
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
    container
}

/// The token's directory and its name there.
fn token_place() -> (&'static str, &'static str) {
    TOKEN_FILE.rsplit_once('/').unwrap_or((TOKEN_FILE, "token"))
}

/// The asks as the value of a variable, in which the kubelet would expand `$(NAME)`: dollars are written as JSON can, too.
fn text_of(asks: &Asks) -> String {
    // Serialising maps of strings and numbers cannot fail.
    serde_json::to_string(asks).unwrap_or_default().replace('$', "\\u0024")
}
