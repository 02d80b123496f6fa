"""What the steps cost on accelerators, found out without one.

    python -m cqr_jax.main --config=configs/aot.py
    python -m cqr_jax.main --config=configs/aot.py:compact --config.topology=v5e:2x2

Lowers both training steps and restoring for CPU, CUDA and TPU; with a topology,
compiles them for it as well (the extra `tpu` is needed, a TPU is not). Presets and
fields are those of configs/deblock.py.
"""

from ml_collections import ConfigDict

from configs import deblock
from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config at the scale named by `text`."""
    preset = parse(text, "configs/aot.py", preset=deblock.PRESETS)["preset"]

    c = deblock.get_config(preset)
    c.task = "aot"
    c.workdir = f"runs/aot-{preset}"  # gets the table
    c.topology = ""  # TPUs to compile for: v5e:2x2, v4:2x2x1, ...; none: lower only
    c.side = 512  # of the image that is restored, in pixels
    c.memory = 16.0  # GiB of a device, for the largest batch that fits
    return c
