#!/usr/bin/env bash
# pki.sh DIRECTORY: makes the keys of a cluster that lives for minutes. Its members prove themselves by the tokens of
# `tokens.csv`, each with a kubeconfig; certificates are only where there is no other way.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
umask 077
mkdir -p "$1"
cd "$1"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# certificate NAME SUBJECT EXTENSION…: signed by the cluster's authority.
certificate() {
    local certified=$1 subject=$2
    shift 2
    key "$certified"
    openssl req -new -key "$certified.key" -subj "$subject" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -days 30 -out "$certified.crt" \
            -extfile <(printf '%s\n' basicConstraints=CA:FALSE keyUsage=critical,digitalSignature "$@")
}

# member NAME USER [GROUP]: a token, and the kubeconfig that uses it.
member() {
    local token
    token=$(openssl rand -hex 16)
    echo "$token,$2,$2${3:+,$3}" >>tokens.csv
    cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster: {server: "https://$api_address:6443", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: $1
  user: {token: $token}
contexts:
- name: $1
  context: {cluster: cluster, user: $1}
current-context: $1
YAML
}

{
    key ca
    openssl req -x509 -new -key ca.key -subj /CN=airlane-test-cluster -days 30 -out ca.crt \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
    certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth \
        "subjectAltName=$names,DNS:localhost,IP:127.0.0.1,IP:$api_address,IP:$api_service_address"
    certificate kubelet-client /O=system:masters/CN=kube-apiserver extendedKeyUsage=clientAuth
    key service-accounts
} 2>openssl.log || fail "openssl: $(<openssl.log)"

member admin admin system:masters
member controller-manager system:kube-controller-manager
member scheduler system:kube-scheduler
member proxy system:kube-proxy
for node in $(seq "$most_nodes"); do
    member "kubelet$node" "system:node:node$node" system:nodes
done
