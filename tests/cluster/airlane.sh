#!/usr/bin/env bash
# airlane.sh OUT.tar BINARIES: makes the image localhost/airlane:test of a build in that folder (target/debug), with the
# Envoy of this machine and nft: the same files as the Dockerfile's. As an example service it is started with
# `example-app`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
out=$1 binaries=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/../../image/root.sh" "$work/root" "$binaries" "$("$here/../support/envoy.sh")"
"$here/image.sh" localhost/airlane:test "$work/root" "$out" /usr/local/bin/airlane
