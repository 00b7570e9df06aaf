#!/usr/bin/env bash
# service.sh start|stop|kill NAME [NODE]: takes away a part of the running cluster (`apiserver`, `etcd`,
# `controller-manager`, `scheduler`, `coredns`; `kubelet`, `proxy`, `containerd` of a node) or brings it back.
#   stop   ends it within seconds and leaves it away
#   start  lets it come again
#   kill   ends it at once (kill -9); it comes again by itself
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
[[ $# -ge 2 ]] || fail "usage: service.sh start|stop|kill NAME [NODE]"
verb=$1 service=$2 node=${3:-1}
is_up "$node" || fail "node $node is not up"
state=$run/node$node/services/$service
[[ -e $state/pid ]] || fail "node $node has no service \`$service\`; it has: $(cd "$run/node$node/services" && echo *)"
# Its process id is one of the node's namespace.
signal() { in_node "$node" kill "-$1" "$(<"$state/pid")"; }
gone() { ! in_node "$node" kill -0 "$(<"$state/pid")"; }

case $verb in
start) rm -f "$state/stopped" ;;
stop)
    touch "$state/stopped"
    signal TERM 2>/dev/null || true
    # The API server would wait a minute for its watches.
    until_true 3 gone 2>/dev/null || signal KILL
    until_true 10 gone
    ;;
kill) signal KILL ;;
*) fail "\`$verb\` is none of start, stop, kill" ;;
esac
