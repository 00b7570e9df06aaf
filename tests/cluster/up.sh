#!/usr/bin/env bash
# Brings up a Kubernetes cluster of this checkout's own, in seconds, or adds to one that is up the nodes it lacks.
#   NODES=1..5        how many nodes (1)
#   SIZE=api          etcd, API server and controller manager only: no nodes, no pods
#   AIRLANE_CLUSTER   a name, to have more than one
#   APISERVER_FLAGS, CONTROLLER_MANAGER_FLAGS   added to theirs
# It stays until down.sh, unless hold.sh, which says HELD=1, brings it up. Exits with 77 and a reason on a machine that cannot have one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
export SIZE=${SIZE:-whole}
nodes=${NODES:-1}
[[ $SIZE == whole || $SIZE == api ]] || fail "SIZE=$SIZE is neither \`whole\` nor \`api\`"
[[ $nodes =~ ^[1-$most_nodes]$ ]] || fail "NODES=$nodes is not a number from 1 to $most_nodes"

bin=$("$here/prepare.sh")
mkdir -p "$runs"
exec 9<"$runs"
flock 9

kubectl() { in_node 1 "$bin/kubectl" --kubeconfig "$run/pki/admin.kubeconfig" "$@"; }

# Pods get their control groups below one of the node's, which the kubelet wants to find.
make_cgroups() {
    local controller folder
    if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then # version 2
        mkdir -p "/sys/fs/cgroup/$cgroup/node$1"
        for folder in /sys/fs/cgroup "/sys/fs/cgroup/$cgroup"; do
            for controller in cpu cpuset memory pids; do echo "+$controller" >"$folder/cgroup.subtree_control"; done
        done
        return
    fi
    for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
        folder=/sys/fs/cgroup/$controller/$cgroup
        mkdir -p "$folder"
        if [[ $controller == cpuset ]]; then
            # Version 1 gives a new group neither CPUs nor memory.
            cat "/sys/fs/cgroup/cpuset/cpuset.cpus" >"$folder/cpuset.cpus"
            cat "/sys/fs/cgroup/cpuset/cpuset.mems" >"$folder/cpuset.mems"
            echo 1 >"$folder/cgroup.clone_children"
        fi
        mkdir -p "$folder/node$1"
    done
}

# first_process NODE PID: the host's process id of node.sh, at the end of the chain of nsenter and unshare.
first_process() {
    local node=$1 pid=$2
    while [[ -n $pid ]]; do
        if [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == "bash $here/node.sh $run $node "* ]]; then
            echo "$pid"
            return
        fi
        pid=$(cut -d' ' -f1 "/proc/$pid/task/$pid/children")
    done 2>/dev/null
    return 1
}

# Who waits for a descriptor of whoever started this, a lock or a pipe, must not wait for the cluster.
close_descriptors() {
    local descriptor
    for descriptor in /proc/self/fd/*; do
        descriptor=${descriptor##*/}
        ((descriptor <= 2)) || exec {descriptor}>&-
    done
}

# start_node NODE: its first process, with which the kernel ends all others. Nodes after the first one are started
# inside the first one's namespaces, so that they end with it.
start_node() {
    local node=$1 inside=() launcher
    rm -rf "$run/node$node"
    mkdir -p "$run/node$node"
    [[ $SIZE == api ]] || make_cgroups "$node"
    ((node == 1)) || inside=(nsenter --target "$(<"$run/node1/pid")" --mount --net --pid --uts --ipc)
    (
        close_descriptors
        exec setsid "${inside[@]}" unshare --mount --pid --net --uts --ipc --fork --kill-child --mount-proc \
            "$here/node.sh" "$run" "$node" "$SIZE" "$bin"
    ) </dev/null >"$run/logs/node-$node.log" 2>&1 &
    launcher=$!
    until_true 10 first_process "$node" "$launcher"
    first_process "$node" "$launcher" >"$run/node$node/pid"
    ((node == 1)) || until_true 10 nsenter --net="/proc/$(<"$run/node1/pid")/root/run/netns/switch" \
        ip link add "node$node" type veth peer name eth0 netns "$(<"$run/node$node/pid")"
    ((node == 1)) || nsenter --net="/proc/$(<"$run/node1/pid")/root/run/netns/switch" \
        ip link set "node$node" master bridge up
}

# containerd of a node takes images long before its kubelet is ready.
load_images() {
    until_true 60 in_node "$1" ctr --address "$run/node$1/containerd.sock" version
    "$here/load.sh" "$1" "$run"/images/*.tar
}

# What did not come up is shown and taken down again.
show_logs_and_go() {
    local status=$?
    ((status != 0)) || return 0
    echo "error: the cluster did not come up; its logs end so:" >&2
    tail -n 5 "$run"/logs/*.log >&2
    exec 9<&-
    "$here/down.sh"
}

new_nodes=()
if is_up 1; then
    [[ $(<"$run/size") == "$SIZE" ]] || fail "a cluster of SIZE=$(<"$run/size") is up: end it with $here/down.sh first"
else
    rm -rf "$run"
    mkdir -p "$run/logs"
    chmod 700 "$run"
    trap show_logs_and_go EXIT
    echo "$SIZE" >"$run/size"
    ln -s "$bin" "$run/bin"
    "$here/pki.sh" "$run/pki"
    start_node 1
    new_nodes=(1)
fi
[[ -n ${HELD:-} ]] || touch "$run/kept"

if [[ $SIZE == api ]]; then
    until_true 60 kubectl get --namespace default serviceaccount default
    exit
fi

[[ -e $run/images ]] || "$here/images.sh" "$run/images"
until_true 60 test -e "$run/node1/started"
for node in $(seq 2 "$nodes"); do
    is_up "$node" && continue
    start_node "$node"
    new_nodes+=("$node")
done
loading=()
for node in "${new_nodes[@]}"; do
    load_images "$node" &
    loading+=($!)
done
until_true 60 kubectl apply --filename "$run/node1/bootstrap.yaml"
for node in $(seq "$most_nodes"); do
    ! is_up "$node" || until_true 60 kubectl wait --for=condition=Ready --timeout=60s "node/node$node"
done
for job in "${loading[@]}"; do wait "$job"; done
until_true 30 kubectl get --namespace default serviceaccount default
until_true 30 in_node 1 curl -sf http://127.0.0.1:8181/ready
