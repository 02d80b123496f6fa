#!/usr/bin/env bash
# Trains the compact ranker and makes its files in the package.
#
#   recipes/ranker.sh PHOTOGRAPHS
#
# PHOTOGRAPHS is a folder of images that were not compressed visibly, with sides of at
# least 128 pixels.
#
# The script makes the records, trains the ranker, and evaluates it on the held-out
# photographs. With SHIP=1 it also writes the weights, and the median score at each
# quality factor, to the package. If it is stopped and started again, it continues from
# the last checkpoint. STEPS is the number of steps. PYTHON sets the interpreter.
# The default is the one in .venv.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
photographs=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -m data_prep.build --source="$photographs" --name=photos
"$python" -m cqr_jax.main --config=configs/ranker.py:compact \
    --config.data.name=photos ${STEPS:+--config.steps="$STEPS"}
"$python" -m cqr_jax.weights runs/ranker-compact/ranker.safetensors \
    --ship=runs/ranker-compact/shipped.safetensors
"$python" -m cqr_jax.main --config=configs/eval.py:ranker \
    --config.sets="$photographs:validation" \
    --config.weights=runs/ranker-compact/shipped.safetensors
[ "${SHIP:-}" ] || exit 0

cp runs/ranker-compact/shipped.safetensors cqr_jax/weights/compact-ranker.safetensors
cp runs/eval-ranker/typical.tsv cqr_jax/weights/compact-ranker-scores.tsv
