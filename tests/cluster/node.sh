#!/usr/bin/env bash
# node.sh RUN NODE SIZE BIN: the first process of a node, in namespaces of its own: when it ends, the kernel ends all
# it started. Started by up.sh alone; RUN in its arguments tells whose it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
run=$1 node=$2 size=$3 bin=$4
state=$run/node$node
address=$(node_address "$node")

# keep NAME COMMAND…: runs it, and again when it ends, as a service manager would, unless service.sh has stopped it.
keep() {
    local service=$state/services/$1
    local log=$run/logs/$1-$node.log
    shift
    mkdir -p "$service"
    while true; do
        "$@" >>"$log" 2>&1 &
        echo $! >"$service/pid"
        wait $! || echo "ended with $?: $1" >>"$log"
        sleep 0.1
        while [[ -e $service/stopped ]]; do sleep 0.1; done
    done
}

# Folders that every node of a real cluster has for itself.
own_folders() {
    mount --make-rshared /
    local folder
    for folder in /run /var/log /var/lib/kubelet /var/lib/cni; do
        mkdir -p "$folder"
        mount -t tmpfs -o mode=755 tmpfs "$folder"
    done
    mkdir -p /run/netns
    hostname "node$node"
}

# The kubelet insists on these settings of the whole machine. It finds them here, and the machine keeps its own.
pretend_sysctls() {
    local setting
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        mkdir -p "$(dirname "$state/sysctl/$setting")"
        echo "${setting#*=}" >"$state/sysctl/${setting%=*}"
        mount --bind "$state/sysctl/${setting%=*}" "/proc/sys/${setting%=*}"
    done
}

# All nodes hang on a switch, which is a network namespace of node 1. Nothing leads out of it.
connect() {
    ip link set lo up
    if ((node == 1)); then
        ip netns add switch
        ip -n switch link add bridge type bridge
        ip -n switch link set bridge up
        ip link add eth0 type veth peer name node1 netns switch
        ip -n switch link set node1 master bridge up
    else
        until_true 10 ip link show eth0 # up.sh plugs it in
    fi
    ip address add "$address/24" dev eth0
    ip address add "$(node_address6 "$node")/64" dev eth0 nodad
    ip link set eth0 up
    ip route add "$service_range" dev eth0
    ip route add "$service_range6" dev eth0
    local other
    for other in $(seq "$most_nodes"); do
        ((other != node)) || continue
        ip route add "$(pod_range "$other")" via "$(node_address "$other")"
        ip route add "$(pod_range6 "$other")" via "$(node_address6 "$other")"
    done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    [[ ! -e /proc/sys/net/bridge ]] || echo 1 | tee /proc/sys/net/bridge/bridge-nf-call-ip{,6}tables >/dev/null
}

# The files of config/, filled in for this node.
configure() {
    local template
    mkdir -p "$state/cni"
    for template in "$here"/config/*; do
        sed -e "s|@RUN@|$run|g; s|@STATE@|$state|g; s|@NODE@|$node|g; s|@CGROUP@|$cgroup|g" \
            -e "s|@POD_RANGE@|$(pod_range "$node")|g; s|@POD_RANGE6@|$(pod_range6 "$node")|g" \
            -e "s|@API@|$api_address|g" \
            "$template" >"$state/$(basename "$template")"
    done
    mv "$state/cni.conflist" "$state/cni/"
    echo "nameserver $api_address" >"$state/resolv.conf"
}

control_plane() {
    keep etcd "$bin/etcd" --name node1 --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster node1=http://127.0.0.1:2380 &
    until_true 60 curl -sf http://127.0.0.1:2379/health
    # shellcheck disable=SC2086 # the flags are words
    keep apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address="$api_address" --secure-port=6443 --service-cluster-ip-range="$service_range,$service_range6" \
        --tls-cert-file="$run/pki/apiserver.crt" --tls-private-key-file="$run/pki/apiserver.key" \
        --client-ca-file="$run/pki/ca.crt" --token-auth-file="$run/pki/tokens.csv" \
        --kubelet-client-certificate="$run/pki/kubelet-client.crt" \
        --kubelet-client-key="$run/pki/kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$run/pki/service-accounts.key" \
        --service-account-signing-key-file="$run/pki/service-accounts.key" ${APISERVER_FLAGS:-} &
    until_true 60 curl -sf --cacert "$run/pki/ca.crt" "https://$api_address:6443/readyz"
    # With the default limits on its requests it needs seconds more until the first pod.
    local fast="--kube-api-qps=500 --kube-api-burst=1000 --leader-elect=false --bind-address=127.0.0.1"
    local manager=$run/pki/controller-manager.kubeconfig scheduler=$run/pki/scheduler.kubeconfig
    # shellcheck disable=SC2086 # the flags are words
    keep controller-manager "$bin/kube-controller-manager" $fast --kubeconfig="$manager" \
        --authentication-kubeconfig="$manager" --authorization-kubeconfig="$manager" \
        --use-service-account-credentials=true --root-ca-file="$run/pki/ca.crt" \
        --service-account-private-key-file="$run/pki/service-accounts.key" \
        --flex-volume-plugin-dir="$state/flexvolume" ${CONTROLLER_MANAGER_FLAGS:-} &
    [[ $size == whole ]] || return 0
    # shellcheck disable=SC2086 # the flags are words
    keep scheduler "$bin/kube-scheduler" $fast --kubeconfig="$scheduler" \
        --authentication-kubeconfig="$scheduler" --authorization-kubeconfig="$scheduler" &
    keep coredns "$bin/coredns" -conf "$state/Corefile" &
}

own_folders
connect
configure
if [[ $size == whole ]]; then
    pretend_sysctls
    keep containerd containerd --config "$state/containerd.toml" &
fi
((node != 1)) || control_plane
if [[ $size == whole ]]; then
    until_true 60 test -S "$state/containerd.sock"
    keep kubelet "$bin/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$run/pki/kubelet$node.kubeconfig" \
        --hostname-override="node$node" --node-ip="$address,$(node_address6 "$node")" --v=2 &
    keep proxy "$bin/kube-proxy" --config="$state/kube-proxy.yaml" --v=2 &
fi
touch "$state/started"
# As the first process it inherits the orphans: bash takes them in while it waits.
while true; do
    wait
    sleep 1
done
