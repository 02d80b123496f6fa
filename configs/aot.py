"""Computes the cost of the steps on accelerators, without an accelerator.

    python -m cqr_jax.main --config=configs/aot.py
    python -m cqr_jax.main --config=configs/aot.py:compact --config.topology=v5e:2x2

Lowers both training steps and restoring for CPU, CUDA and TPU. If a topology is given,
it also compiles them for that topology. This requires the extra `tpu`, but no TPU.
Presets and fields are those of configs/deblock.py.
"""

from ml_collections import ConfigDict

from configs import deblock
from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config at the scale named by `text`."""
    preset = parse(text, "configs/aot.py", preset=deblock.PRESETS)["preset"]

    c = deblock.get_config(preset)
    c.task = "aot"
    c.workdir = f"runs/aot-{preset}"  # folder for the table
    c.topology = ""  # TPUs to compile for: v5e:2x2, v4:2x2x1, ...; empty: lower only
    c.side = 512  # side of the restored image in pixels
    c.memory = 16.0  # memory of a device in GiB, which limits the largest batch
    return c
