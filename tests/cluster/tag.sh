#!/usr/bin/env bash
# tag.sh IMAGE NAME:TAG: gives an image another name as well, on all nodes of the cluster that is up.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
for node in $(seq "$most_nodes"); do
    ! is_up "$node" || in_node "$node" ctr --address "$run/node$node/containerd.sock" --namespace k8s.io \
        images tag --force "$1" "$2" >/dev/null
done
