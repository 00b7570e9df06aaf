#!/usr/bin/env bash
# Has a cluster up for as long as the standard input stays open: says `up RUN` when it is, and takes it down in the end.
# A cluster that was brought up by hand is used and stays. Several may hold the same one: the last takes it down.
# Whoever starts this and dies, however that happens, leaves no cluster behind.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# All who use the cluster share a lock, so that nobody takes it from the others.
while true; do
    HELD=1 "$here/up.sh"
    exec 8>>"$run/users"
    flock --shared 8
    # It may just have been taken down by the last one who held it.
    [[ $run/users -ef /proc/self/fd/8 ]] && is_up 1 && break
done
# Whoever wanted to know may be gone by now.
trap '' PIPE
echo "up $run" || true
cat >/dev/null
if [[ ! -e $run/kept ]] && flock --exclusive --nonblock 8; then
    exec "$here/down.sh" 8>&-
fi
