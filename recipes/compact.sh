#!/usr/bin/env bash
# Trains a pyramid for Table 2, the successor of compact.safetensors.
#
#   recipes/compact.sh PHOTOGRAPHS
#
# PHOTOGRAPHS is a folder of images that were not compressed visibly, with sides of at
# least 128 pixels.
#
# The script makes the records and trains the network. The training starts from what the
# colour network of the package computes for Y, and the ranker of the package guides its
# last steps. The network is the pyramid of the colour network, for Y alone. With SHIP=1
# the script also writes the weights to the package. If it is stopped and started again,
# it continues from the last checkpoint. PYTHON sets the interpreter.
# The default is the one in .venv.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
photographs=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -m data_prep.build --source="$photographs" --name=photos
mkdir -p runs
"$python" -m cqr_jax.weights cqr_jax/weights/colour.safetensors \
    --luma=runs/luma.safetensors
"$python" -m cqr_jax.main --config=configs/deblock.py:compact \
    --config.data.name=photos --config.initial_weights=runs/luma.safetensors \
    --config.ranker_weights=cqr_jax/weights/compact-ranker.safetensors \
    --config.model.width=48 --config.model.deeper_widths="(96,144)" \
    --config.model.outer_blocks=2 --config.model.local_blocks=2 \
    --config.model.masks=False --config.model.key_pool=1 \
    --config.model.negative_slope=0.1 --config.model.feature_scale=16 \
    --config.loss.pixel=log_mse --config.patch=96 --config.batch_size=16 \
    --config.optimizer.clip_norm=0.1 --config.steps=36000 --config.guided_steps=5400 \
    --config.validate_every=2000 --config.workdir=runs/deblock-pyramid
[ "${SHIP:-}" ] || exit 0

"$python" -m cqr_jax.weights runs/deblock-pyramid/deblocker.safetensors \
    --ship=cqr_jax/weights/compact.safetensors
