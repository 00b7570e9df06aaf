#!/usr/bin/env bash
# add.sh ROOT FILE[:PATH]…: copies programs of this machine, with the shared libraries they load, below ROOT: where they
# are here, or at PATH.
set -euo pipefail
root=$1
shift
for entry in "$@"; do
    file=${entry%%:*} path=${entry#*:}
    [[ -e $file ]] || { echo "error: $file is not there" >&2; exit 1; }
    install -D "$file" "$root$path"
    # A static program has none, which ldd reports as an error.
    { ldd "$file" 2>/dev/null || true; } | { grep -o '/[^ ]*\.so[^ ]*' || true; } | while read -r library; do
        [[ -e $root$library ]] || install -D "$library" "$root$library"
    done
done
