#!/usr/bin/env bash
# Everything that needs a GPU, in at most 8 minutes on one. What is measured is written at once (results.md, results.json
# in the folder of results); a second call measures the rest. Without a GPU, --tiny runs all of it on tiny models.
#
#   benchmarks/gpu.sh [--out DIR] [--model DIR] [--data FILE] [--trl-python PYTHON] [--limit-s 480] [--tiny]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
