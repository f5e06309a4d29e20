#!/usr/bin/env bash
# Measures everything on this machine's GPU in under 9 minutes, the most wanted first, and writes the tables to docs/gpu.md.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) out=${OUT:-runs/gpu} python=${PYTHON:-python}
failed=0
measure() {  # folder, seconds in which a measurement may begin, parts; 30 s later the rest is left out
  rm -f "$out/$1/tables.md"
  timeout -s INT -k 20 $(($2 + 30)) "$python" "$here/measure.py" --out "$out/$1" --seconds "$2" --parts "${@:3}" || failed=$?
  [ -e "$out/$1/tables.md" ] || exit "$failed"  # 2: there is no GPU
}
measure first 160 p1 mapping
measure second 300 ceilings networks parity scan
"$python" "$here/page.py" "$out"/first "$out"/second || failed=$?
exit $failed
