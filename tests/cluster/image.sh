#!/usr/bin/env bash
# image.sh NAME:TAG ROOT OUT.tar [ENTRYPOINT…]: makes an image of the files below ROOT, without a daemon or a registry,
# in the format of `docker save`. The same files give the same bytes. IMAGE_USER is whom it runs as (root).
set -euo pipefail
name=$1 root=$2 out=$3
shift 3

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac
# json_list WORD…: words without quotes or backslashes, as paths and flags are.
json_list() {
    local IFS=,
    (($# == 0)) || set -- "${@/#/\"}"
    (($# == 0)) || set -- "${@/%/\"}"
    echo "[$*]"
}
digest() { sha256sum "$1" | cut -d' ' -f1; }
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack "$work/layer.tar" --directory "$root" .
cat >"$work/config.json" <<JSON
{"architecture": "$architecture", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"Entrypoint": $(json_list "$@"), "Env": $(json_list PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin),
            "User": "${IMAGE_USER:-}"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(digest "$work/layer.tar")"]}}
JSON
config=$(digest "$work/config.json").json
mv "$work/config.json" "$work/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
mkdir -p "$(dirname "$out")"
pack "$out" --directory "$work" manifest.json "$config" layer.tar
