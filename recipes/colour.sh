#!/usr/bin/env bash
# Trains the colour network of cqr-restore and makes its files in the package.
#
#   recipes/colour.sh COLOUR_PHOTOGRAPHS GRAY_PHOTOGRAPHS
#
# Each argument is a folder of images with sides of at least 256 pixels. If an image is
# in both folders, it must have the same name in both, apart from the suffix. It is then
# in the same split of both.
#
# The script makes the records of both folders and trains the network in two parts. With
# SHIP=1 it also writes the weights to the package, and chooses the limits of projection.
# If it is stopped and started again, it continues from the last checkpoint. PYTHON sets
# the interpreter. The default is the one in .venv.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
colour=$(realpath "$1") gray=$(realpath "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

# Sub-images of up to 512 pixels have room for larger crops than the present ones.
"$python" -m data_prep.build --kind=colour --source="$colour" --name=colour-photographs \
    --side=512 --min_side=256
"$python" -m data_prep.build --kind=colour --source="$gray" --name=gray-photographs \
    --side=512 --min_side=256
"$python" -m cqr_jax.main --config=configs/deblock.py:colour \
    --config.data.gray_name=gray-photographs --config.seed=3 --config.steps=1100 \
    --config.validate_every=275 \
    --config.workdir=runs/deblock-colour-1
"$python" -m cqr_jax.main --config=configs/deblock.py:colour \
    --config.data.gray_name=gray-photographs --config.seed=4 --config.steps=6000 \
    --config.initial_weights=runs/deblock-colour-1/deblocker.safetensors
[ "${SHIP:-}" ] || exit 0

"$python" -m benchmarks.projection "$colour" --count=24 \
    --weights=runs/deblock-colour/deblocker.safetensors \
    --limits=runs/deblock-colour/limits.tsv > runs/deblock-colour/projection.md
"$python" -m cqr_jax.weights runs/deblock-colour/deblocker.safetensors \
    --ship=cqr_jax/weights/colour.safetensors
cp runs/deblock-colour/limits.tsv cqr_jax/weights/projection-limits.tsv
cp runs/deblock-colour/projection.md benchmarks/results/projection.md
