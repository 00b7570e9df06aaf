#!/usr/bin/env bash
# root.sh ROOT BINARIES ENVOY: fills the folder ROOT with the files of the one image: the operator and the sidecar's agent
# from that folder (target/release), Envoy, nft, and the libraries they load. It has no shell.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$1 binaries=$2 envoy=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$root"/{dev,etc,proc,run,sys,tmp,usr/local/bin}
chmod 1777 "$root/tmp"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
# 1337 is the sidecar's, 65532 the operator's.
printf '%s\n' root:x:0:0::/:/ airlane:x:1337:1337::/:/ operator:x:65532:65532::/:/ nobody:x:65534:65534::/:/ \
    >"$root/etc/passwd"
# Debug information would be most of the image.
for program in airlane airlane-sidecar; do strip -o "$work/$program" "$binaries/$program"; done
"$here/add.sh" "$root" "$work/airlane:/usr/local/bin/airlane" "$work/airlane-sidecar:/usr/local/bin/airlane-sidecar" \
    "$envoy:/usr/local/bin/envoy" "$(PATH=$PATH:/usr/sbin:/sbin command -v nft):/usr/sbin/nft"
