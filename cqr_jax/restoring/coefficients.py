"""Reads the DCT coefficients that a JPEG file stores."""

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jpegio
import numpy as np

from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.ycbcr import ZERO
from cqr_jax.restoring import native

_MIDDLE = 128  # level shift, subtracted from samples before the DCT


class Component(NamedTuple):
    """The stored coefficients of one plane.

    Attributes:
      coefficients: quantised coefficients, int16, (height, width), multiples of 8. The
        coefficients of a block are at the place of its samples.
      steps: quantisation steps, float32, (8, 8).
      sampling: pixels per sample, vertically and horizontally.
      middle: value in a plane, [0, 1], of the sample 128, which the level shift of JPEG
        maps to 0. It is 128/255 for Y, and 0.5 (neutral) for Cb and Cr.
    """

    coefficients: np.ndarray
    steps: np.ndarray
    sampling: tuple[int, int]
    middle: float = _MIDDLE / 255


class Stored(NamedTuple):
    """The coefficients of a JPEG file.

    Attributes:
      components: gray, or Y, Cb and Cr. None if the file can't be read, has another
        number of components, lacks blocks, or has a component whose sampling factor
        does not divide the largest one.
      warnings: warnings of libjpeg.
    """

    components: tuple[Component, ...] | None
    warnings: list[str]


def read(
    data: bytes, height: int, width: int, tables: Mapping[int, Sequence[int]]
) -> Stored:
    """Reads the coefficients of a gray or YCbCr JPEG file.

    Args:
      data: bytes of a file that Pillow can decode.
      height, width: size of the image in pixels.
      tables: slot -> quantisation table of 64 steps, row by row, as in Pillow. jpegio
        returns the tables without their slots.
    """
    with tempfile.TemporaryDirectory() as folder:  # jpegio reads only files
        path = os.path.join(folder, "image.jpg")
        pathlib.Path(path).write_bytes(data)
        with native.libjpeg() as warnings:
            try:
                file = jpegio.read(path)
            except (RuntimeError, ValueError, OSError):
                return Stored(None, warnings)
    return Stored(_components(file, height, width, tables), warnings)


def _components(
    file, height: int, width: int, tables: Mapping[int, Sequence[int]]
) -> tuple[Component, ...] | None:
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
        steps = np.array(tables[info.quant_tbl_no], np.float32).reshape(BLOCK, BLOCK)
        middle = _MIDDLE / 255 if not found else float(ZERO[1])
        found.append(Component(held, steps, (down, across), middle))
    return tuple(found)
