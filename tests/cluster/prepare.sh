#!/usr/bin/env bash
# Makes this machine ready for a cluster of SIZE `whole` (the default) or `api`: the system's programs are installed
# where that is possible, those of Kubernetes are built. Exits with 77 and a reason where there can be none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
size=${SIZE:-whole}

[[ $(uname -s) == Linux ]] || refuse "the test cluster needs Linux"
((EUID == 0)) || refuse "the test cluster needs root, for namespaces and control groups of its own"
unshare --mount --pid --net --uts --ipc --fork true 2>/dev/null ||
    refuse "this machine allows no new namespaces (unshare failed)"
[[ -e /proc/sys/net/ipv6 ]] || refuse "this kernel has no IPv6"

# What is needed, and the Debian package it is in.
needed=(curl=curl ip=iproute2 nsenter=util-linux openssl=openssl tar=tar)
if [[ $size == whole ]]; then
    needed+=(containerd=containerd runc=runc nft=nftables iptables=iptables
        /bin/busybox=busybox-static /usr/lib/cni/bridge=containernetworking-plugins)
    [[ -w /sys/fs/cgroup ]] || refuse "/sys/fs/cgroup cannot be written to: pods need control groups"
fi

packages=()
for entry in "${needed[@]}"; do
    command -v "${entry%=*}" >/dev/null || packages+=("${entry#*=}")
done
if ((${#packages[@]} > 0)); then
    command -v apt-get >/dev/null || refuse "programs are missing; as Debian packages they are: ${packages[*]}"
    echo "installing what the test cluster needs: ${packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install --yes --quiet --no-install-recommends "${packages[@]}" ||
        { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends "${packages[@]}"; }; } \
        >&2 || refuse "these packages could not be installed: ${packages[*]}"
fi
if [[ $size == whole ]]; then
    # In the kernel already, or a module of it: if neither, the pods say what they miss.
    modprobe --quiet --all overlay br_netfilter 2>/dev/null || true
fi

exec "$here/binaries.sh"
