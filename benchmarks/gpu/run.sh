#!/usr/bin/env bash
# Everything a GPU can show, in parts; see README.md beside this file.
# Usage: bash benchmarks/gpu/run.sh [--python PYTHON] [--work DIR] [--out RESULTS_DIR] [PART ...], or --list, --help.
# Exits 0 where nothing differed, 1 where something did, 3 where there is no GPU.
set -euo pipefail
python=python3
words=()
while [ $# -gt 0 ]; do
  case "$1" in
    --python) python=${2:?--python needs an interpreter}; shift 2 ;;
    --python=*) python=${1#--python=}; shift ;;
    *) words+=("$1"); shift ;;
  esac
done
root=$(cd "$(dirname "$0")/../.." && pwd)
exec "$python" "$root/benchmarks/gpu/kit.py" ${words[@]+"${words[@]}"}
