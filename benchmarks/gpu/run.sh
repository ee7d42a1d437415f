#!/usr/bin/env bash
# Everything a GPU can show so far, in ONNX Runtime's CUDA provider: both embedded models in every dialect that runs
# there, every dtype, quantized weights, and decode steps captured as CUDA graphs against steps that are not.
# Usage: bash benchmarks/gpu/run.sh [PYTHON]; exits 3 where the provider cannot be loaded, 1 where something differs.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${1:-python3}" benchmarks/gpu/onnxruntime_cuda.py "$work"
