#!/usr/bin/env bash
# images.sh OUT: makes the images that a cluster itself needs and tests look around with, into that folder:
#   localhost/pause:1   what holds a pod's namespaces
#   localhost/tools:1   busybox, curl, ip, iptables, nft
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/pause/bin"
cp /bin/busybox "$work/pause/bin/busybox"
"$here/image.sh" localhost/pause:1 "$work/pause" "$out/pause.tar" /bin/busybox sleep 2147483647

tools=$work/tools
mkdir -p "$tools"/{bin,dev,etc,proc,run,sys,tmp,usr/bin,usr/sbin}
chmod 1777 "$tools/tmp"
printf '%s\n' root:x:0:0::/:/bin/sh proxy:x:1337:1337::/:/bin/sh nobody:x:65534:65534::/:/bin/sh >"$tools/etc/passwd"
printf '%s\n' root:x:0: proxy:x:1337: nogroup:x:65534: >"$tools/etc/group"
cp /bin/busybox "$tools/bin/busybox"
# What has a better program below is left out.
for applet in $(/bin/busybox --list | grep -vxE 'busybox|ip[a-z]*'); do ln -s busybox "$tools/bin/$applet"; done
# Loaded by name at run time, which ldd does not see.
libraries=$(dirname "$(ldd "$(command -v curl)" | grep -o '/[^ ]*/libc\.so\.6')")
loaded=("$libraries"/libnss_{dns,files}.so.2 "$libraries"/libresolv.so.2)
mapfile -t -O "${#loaded[@]}" loaded < <(find /usr/lib -path '*/xtables/*.so')
"$here/../../image/add.sh" "$tools" "$(command -v curl):/usr/bin/curl" "$(command -v ip):/usr/sbin/ip" \
    "$(command -v nft):/usr/sbin/nft" /usr/sbin/xtables-nft-multi "${loaded[@]}"
for command in {iptables,ip6tables}{,-save,-restore}; do ln -s xtables-nft-multi "$tools/usr/sbin/$command"; done
"$here/image.sh" localhost/tools:1 "$tools" "$out/tools.tar"
