# Sourced by the scripts here: what they agree on.
# shellcheck shell=bash disable=SC2034 # the variables are for those who source this

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Every checkout has a cluster of its own; AIRLANE_CLUSTER names another one.
name=${AIRLANE_CLUSTER:-$(cksum <<<"$here" | cut -d' ' -f1)}
# The state of a cluster that is up; nothing of it is outside but its control groups.
runs=/var/lib/airlane-cluster
run=$runs/$name
cgroup=airlane-cluster-$name

# Node 1 carries the control plane and pods, the others pods. All have addresses of both families; Services have those
# they ask for, IPv4 by default.
most_nodes=5
node_address() { echo "10.250.0.$1"; }
node_address6() { echo "fd00:10:250::$1"; }
pod_range() { echo "10.244.$1.0/24"; }
pod_range6() { echo "fd00:10:244:$1::/64"; }
api_address=$(node_address 1)
service_range=10.96.0.0/16
service_range6=fd00:10:96::/112
api_service_address=10.96.0.1

# Debian keeps what administrators run where users do not look.
export PATH=$run/bin:$PATH:/usr/sbin:/sbin

# The exit code of "this machine cannot", as opposed to "this went wrong".
cannot=77

fail() {
    echo "error: $*" >&2
    exit 1
}

refuse() {
    echo "error: $*" >&2
    exit "$cannot"
}

# is_up [NODE]: whether the first process of that node (of node 1, if none is named) runs.
is_up() {
    local pid
    pid=$(cat "$run/node${1:-1}/pid" 2>/dev/null) && [[ -n $pid ]] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "bash $here/node.sh $run ${1:-1} "
}

# until_true SECONDS COMMAND…: tries it until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1)) output
    shift
    until output=$("$@" 2>&1); do
        if ((SECONDS >= deadline)); then
            echo "error: still fails: $*: $output" >&2
            return 1
        fi
        sleep 0.05
    done
}

# in_node NODE COMMAND…: runs it in the namespaces of that node.
in_node() {
    local node=$1
    shift
    nsenter --target "$(<"$run/node$node/pid")" --mount --net --pid --uts --ipc --wd="$PWD" -- "$@"
}
