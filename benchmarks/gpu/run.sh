#!/usr/bin/env bash
# Everything a GPU can show, in parts; see README.md beside this file.
# Usage: bash benchmarks/gpu/run.sh [--python PYTHON] [--work DIR] [--out RESULTS_DIR] [PART ...], or --list, --help;
# for a machine without network: --carry cut|back, and --rehearse, which plays that machine here.
# Exits 0 where nothing differed, 1 where something did, 2 for usage, 3 where there is no GPU.
set -euo pipefail
python=python3
script=kit.py
words=()
while [ $# -gt 0 ]; do
  case "$1" in
    --python) python=${2:?--python needs an interpreter}; shift 2 ;;
    --python=*) python=${1#--python=}; shift ;;
    --carry) script=carry/main.py; shift ;;
    --rehearse) script=carry/main.py; words+=(rehearse); shift ;;
    *) words+=("$1"); shift ;;
  esac
done
root=$(cd "$(dirname "$0")/../.." && pwd)
exec "$python" "$root/benchmarks/gpu/$script" ${words[@]+"${words[@]}"}
