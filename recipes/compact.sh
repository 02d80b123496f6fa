#!/usr/bin/env bash
# Trains a pyramid for Table 2, the successor of compact.safetensors. The training of a
# better one is not finished; compact-unfinished.safetensors beside this script holds its
# weights (benchmarks/results/compact_choices.md, the last section).
#
#   recipes/compact.sh PHOTOGRAPHS
#
# PHOTOGRAPHS is a folder of images that were not compressed visibly, with sides of at
# least 128 pixels.
#
# The script makes the records and trains the network. The training starts from what the
# colour network of the package computes for Y, and the ranker of the package guides its
# last steps. With SHIP=1 the script also writes the weights to the package. If it is
# stopped and started again, it continues from the last checkpoint. PYTHON sets the
# interpreter. The default is the one in .venv.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
photographs=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -m data_prep.build --source="$photographs" --name=photos
mkdir -p runs
[ -f runs/luma.safetensors ] ||
    "$python" -m cqr_jax.weights cqr_jax/weights/colour.safetensors \
        --luma=runs/luma.safetensors
"$python" -m cqr_jax.main --config=configs/deblock.py:compact \
    --config.data.name=photos --config.initial_weights=runs/luma.safetensors \
    --config.ranker_weights=cqr_jax/weights/compact-ranker.safetensors
[ "${SHIP:-}" ] || exit 0

"$python" -m cqr_jax.weights runs/deblock-compact/deblocker.safetensors \
    --ship=cqr_jax/weights/compact.safetensors
