#!/usr/bin/env bash
# Prints the folder with the programs of a Kubernetes cluster: $AIRLANE_KUBE_BIN, else the user's cache, where they are
# built once from their Go modules (etcd and Kubernetes from the wrapper modules here, which pin what they depend on).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

kubernetes=1.34.4
coredns=1.13.1
helm=3.19.0
kubernetes_programs=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)
programs=(etcd "${kubernetes_programs[@]}" coredns helm)

if [[ -n ${AIRLANE_KUBE_BIN:-} ]]; then
    for program in "${programs[@]}"; do
        [[ -x $AIRLANE_KUBE_BIN/$program ]] || {
            echo "error: AIRLANE_KUBE_BIN=$AIRLANE_KUBE_BIN has no program $program; it must hold: ${programs[*]}" >&2
            exit 1
        }
    done
    echo "$AIRLANE_KUBE_BIN"
    exit
fi

recipe=$(cd "$here" && cat binaries.sh modules/*/go.mod modules/*/go.sum | sha256sum | cut -c1-12)
bin=${XDG_CACHE_HOME:-$HOME/.cache}/airlane/kubernetes-$kubernetes-$recipe/bin

missing() {
    local program
    for program in "$@"; do
        [[ -x $bin/$program ]] || return 0
    done
    return 1
}

# build WHAT HOW-LONG DIRECTORY COMMAND…: the command leaves its programs in $work, and they appear in $bin all at once.
build() {
    local what=$1 how_long=$2 directory=$3
    shift 3
    echo "building $what from source for the test cluster (once, about $how_long) into $bin" >&2
    (cd "$directory" && "$@" >&2)
    mv "$work"/* "$bin/"
}

if missing "${programs[@]}"; then
    command -v go >/dev/null || {
        echo "error: the test cluster is built with Go: install it (1.26 or newer), or set AIRLANE_KUBE_BIN to a folder with ${programs[*]}" >&2
        exit 1
    }
    mkdir -p "$bin"
    exec 9>"$bin/../.lock"
    flock 9
    work=$(mktemp -d "$bin/../build.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    # Without these stamps kubectl and helm cannot parse the version the API server reports.
    stamp=k8s.io/component-base/version
    stamps="-X $stamp.gitVersion=v$kubernetes -X $stamp.gitMajor=1 -X $stamp.gitMinor=34 -X $stamp.gitTreeState=clean"
    stamps+=" -X k8s.io/client-go/pkg/version.gitVersion=v$kubernetes"
    export CGO_ENABLED=0 GOBIN=$work GOFLAGS="-trimpath -buildvcs=false -mod=readonly"

    if missing etcd; then
        build etcd "1 minute" "$here/modules/etcd" \
            go build -ldflags "-s -w" -o "$work/etcd" go.etcd.io/etcd/server/v3
    fi
    if missing "${kubernetes_programs[@]}"; then
        build "Kubernetes $kubernetes" "6 minutes" "$here/modules/kubernetes" \
            go build -ldflags "-s -w $stamps" -o "$work/" "${kubernetes_programs[@]/#/k8s.io/kubernetes/cmd/}"
    fi
    export GOFLAGS="-trimpath -buildvcs=false"
    if missing coredns; then
        build "CoreDNS $coredns" "1 minute" "$work" go install -ldflags "-s -w" "github.com/coredns/coredns@v$coredns"
    fi
    if missing helm; then
        build "Helm $helm" "1 minute" "$work" go install -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@v$helm"
    fi
fi
echo "$bin"
