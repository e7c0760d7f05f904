#!/usr/bin/env bash
# Five draws of the same clips and weights, and the baseline of them. Commit the file that it writes.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
for draw in 0 1 2 3 4; do
    "$VLEAK" evaluate "${SETTINGS[@]}" --draw "$draw" --out "$RUNS/baseline-$draw"
done
"$VLEAK" baseline "$RUNS"/baseline-[0-4] --out "$HERE/baseline.json"
