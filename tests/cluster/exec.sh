#!/usr/bin/env bash
# exec.sh [COMMAND…]: runs it (a shell, if none is said) inside node 1 of the cluster that is up, where kubectl and helm
# are found and pods and Services can be called. NODE=2 picks another node.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
node=${NODE:-1}
is_up "$node" || fail "node $node is not up: bring it up with $here/up.sh"
export KUBECONFIG=$run/pki/admin.kubeconfig
(($# > 0)) || set -- "${SHELL:-bash}"
exec nsenter --target "$(<"$run/node$node/pid")" --mount --net --pid --uts --ipc --wd="$PWD" -- "$@"
