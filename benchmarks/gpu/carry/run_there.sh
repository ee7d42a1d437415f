#!/usr/bin/env bash
# On a machine that is reached by calls: runs the kit, and leaves its results in a folder that comes back, also where the
# call is cut off. Usage: run_there.sh STATE CARRIED RESULTS SECONDS [WORD OF run.sh ...]
set -uo pipefail
state=${1:?STATE} carried=${2:?CARRIED} results=${3:?RESULTS} seconds=${4:?SECONDS}
shift 4
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
kit=

finish() {
  code=$?
  trap '' TERM INT HUP
  if [ -n "$kit" ]; then
    # The kit ends its part and writes what it knows.
    kill "$kit" 2>/dev/null && wait "$kit"
  fi
  "$python" "$here/there.py" pack "$state" "$results" || code=3
  exit "$code"
}

"$python" "$here/there.py" ready "$state" "$carried" || exit
trap finish EXIT
trap 'exit 143' TERM INT HUP
export PYTHONPATH="$state/site${PYTHONPATH:+:$PYTHONPATH}"
bash "$here/../run.sh" --python "$python" --work "$state/work" --out "$state/results" --budget "$seconds" "$@" &
kit=$!
wait "$kit"
code=$?
kit=
exit "$code"
