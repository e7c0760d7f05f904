#!/usr/bin/env bash
# One night: a draw that no night had, against the baseline. Exit 0 held, 1 a defense got weaker, 2 not judged.
# Further options, such as --history FILE or --github, are those of `vleak regress`.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
DRAW=${DRAW:-$(date +%Y%m%d)}
"$VLEAK" evaluate "${SETTINGS[@]}" --draw "$DRAW" --out "$RUNS/night-$DRAW"
"$VLEAK" regress "$RUNS/night-$DRAW" --baseline "$HERE/baseline.json" "$@"
