"""Reads the DCT coefficients that a JPEG file stores."""

import os
import pathlib
import tempfile
from typing import NamedTuple

import jpegio
import numpy as np

from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.ycbcr import ZERO
from cqr_jax.restoring import native

_MIDDLE = 128  # is subtracted from samples before the DCT


class Component(NamedTuple):
    """The stored coefficients of one plane.

    Attributes:
      coefficients: int16, in units of their steps, (height, width), multiples of 8. The
        coefficients of a block lie where its samples do.
      steps: quantisation steps, float32, (8, 8).
      sampling: pixels, down and across, per sample.
      middle: value in [0, 1] of a sample of 128, which JPEG maps to zero: 128/255 for
        Y, and 0.5 for Cb and Cr, where it means no colour.
    """

    coefficients: np.ndarray
    steps: np.ndarray
    sampling: tuple[int, int]
    middle: float = _MIDDLE / 255


class Stored(NamedTuple):
    """The coefficients of a JPEG file.

    Attributes:
      components: one, or those of Y, Cb and Cr; None if they can't be read, or if the
        image's sides are not multiples of theirs.
      warnings: what libjpeg reported of the file.
    """

    components: tuple[Component, ...] | None
    warnings: list[str]


def read(data: bytes, height: int, width: int) -> Stored:
    """Reads the coefficients of a gray or YCbCr JPEG file.

    Args:
      data: bytes of a file that Pillow can decode.
      height, width: size of the image in pixels.
    """
    with tempfile.TemporaryDirectory() as folder:  # the library reads only files
        path = os.path.join(folder, "image.jpg")
        pathlib.Path(path).write_bytes(data)
        with native.libjpeg() as warnings:
            try:
                file = jpegio.read(path)
            except (RuntimeError, ValueError, OSError):
                return Stored(None, warnings)
    return Stored(_components(file, height, width), warnings)


def _components(file, height: int, width: int) -> tuple[Component, ...] | None:
    parts = list(zip(file.comp_info, file.coef_arrays, strict=True))
    if len(parts) not in (1, 3):
        return None
    highest, widest = (
        max(getattr(info, name) for info, _ in parts)
        for name in ("v_samp_factor", "h_samp_factor")
    )
    found: list[Component] = []
    for info, coefficients in parts:
        down, rest = divmod(highest, info.v_samp_factor)
        across, more = divmod(widest, info.h_samp_factor)
        blocks = [-(-n // (BLOCK * k)) for n, k in ((height, down), (width, across))]
        sides = tuple(BLOCK * n for n in blocks)
        if (
            rest
            or more
            or any(a < b for a, b in zip(coefficients.shape, sides, strict=True))
        ):
            return None
        held = coefficients[: sides[0], : sides[1]].astype(np.int16)
        steps = np.asarray(file.quant_tables[info.quant_tbl_no], np.float32)
        middle = _MIDDLE / 255 if not found else float(ZERO[1])
        found.append(Component(held, steps, (down, across), middle))
    return tuple(found)
