#!/usr/bin/env bash
# Ends the cluster of this checkout (or AIRLANE_CLUSTER). Nothing of it is left: no process, mount, network interface,
# firewall rule, control group or file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

cgroups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$cgroup"; }
no_cgroups() {
    cgroups | while read -r group; do find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
    [[ -z $(cgroups) ]]
}

[[ -d $runs ]] || exit 0
exec 9<"$runs"
flock 9
if is_up 1; then
    first=$(<"$run/node1/pid")
    kill -KILL "$first"
    until_true 30 test ! -e "/proc/$first"
fi
until_true 30 no_cgroups
rm -rf "$run"
