#!/usr/bin/env bash
# load.sh NODE|all IMAGE.tar…: gives images to the nodes of the cluster that is up.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
nodes=$1
shift
[[ $nodes != all ]] || nodes=$(for node in $(seq "$most_nodes"); do ! is_up "$node" || echo "$node"; done)
for node in $nodes; do
    is_up "$node" || fail "node $node is not up: bring it up with $here/up.sh"
    for image in "$@"; do
        in_node "$node" ctr --address "$run/node$node/containerd.sock" --namespace k8s.io \
            images import "$(realpath "$image")" >/dev/null
    done
done
