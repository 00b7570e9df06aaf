#!/usr/bin/env bash
# lose.sh NODE: ends a node (2 or higher) and everything on it as a power cut does. Its cable goes first, so that no
# connection hears of the end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
node=$1
[[ $node =~ ^[2-$most_nodes]$ ]] || fail "\`$node\` is no node from 2 to $most_nodes; node 1 carries the control plane"
is_up "$node" || fail "node $node is not up"
nsenter --net="/proc/$(<"$run/node1/pid")/root/run/netns/switch" ip link delete "node$node"
kill -KILL "$(<"$run/node$node/pid")"
