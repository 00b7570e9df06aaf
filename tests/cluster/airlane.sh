#!/usr/bin/env bash
# airlane.sh OUT.tar BINARIES: makes the image localhost/airlane:test of a build in that folder (target/debug), with the
# Envoy of this machine and nft. It has no shell. As an example service it is started with `example-app`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
out=$1 binaries=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

root=$work/root
mkdir -p "$root"/{dev,etc,proc,run,sys,tmp,usr/local/bin}
chmod 1777 "$root/tmp"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
printf '%s\n' root:x:0:0::/:/ airlane:x:1337:1337::/:/ nobody:x:65534:65534::/:/ >"$root/etc/passwd"
# Debug information would be most of the image.
for program in airlane airlane-sidecar; do strip -o "$work/$program" "$binaries/$program"; done
"$here/add.sh" "$root" "$work/airlane:/usr/local/bin/airlane" "$work/airlane-sidecar:/usr/local/bin/airlane-sidecar" \
    "$("$here/../support/envoy.sh"):/usr/local/bin/envoy" "$(command -v nft):/usr/sbin/nft"
"$here/image.sh" localhost/airlane:test "$root" "$out" /usr/local/bin/airlane
