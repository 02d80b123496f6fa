"""Makes ICC colour profiles from the colour chunks of a PNG.

PNG can define its colour space by the chunks cICP, sRGB, gAMA and cHRM. Other formats
need a profile for it.
"""

import struct
from typing import NamedTuple

import numpy as np
from PIL import ImageCms

from cqr_jax.data.jpeg import ImageError

_Point = tuple[float, float]


class _Primaries(NamedTuple):
    """Chromaticities (x, y) of the primaries and of white."""

    red: _Point
    green: _Point
    blue: _Point
    white: _Point = (0.3127, 0.3290)  # D65


_SRGB = _Primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_D50 = np.array([0.9642, 1.0, 0.8249])  # white point of the profile connection space
# Primaries and white by their code points in cICP (ITU-T H.273, table 2).
_PRIMARIES = {
    1: _SRGB,
    4: _Primaries((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: _Primaries((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: _Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: _Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: _Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: _Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
# Transfer functions by their code points (ITU-T H.273, table 3).
_BT709, _GAMMAS, _SRGB_CURVE = (1, 6, 14, 15), {4: 2.2, 5: 2.8, 8: 1.0}, 13
_HDR = {16: "PQ", 18: "HLG"}
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def of_chunks(chunks: tuple[tuple[bytes, bytes], ...], gray: bool) -> bytes:
    """Returns the ICC profile of a picture with the colour chunks of a PNG.

    As in PNG, cICP takes precedence over sRGB, and sRGB over gAMA and cHRM.

    Args:
      chunks: (name, content) of each chunk.
      gray: whether the picture is gray.

    Returns:
      The profile; b'' if the chunks define no colour space.

    Raises:
      ImageError: if cICP defines a colour space that these profiles can't describe, for
        example one with PQ or HLG.
    """
    named = dict(chunks)
    primaries, curve = _SRGB, _srgb_curve()
    if len(coded := named.get(b"cICP", b"")) == 4:
        primaries, curve = _of_cicp(*coded)
    elif b"sRGB" in named:
        if not gray:
            return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    else:
        gamma = int.from_bytes(named.get(b"gAMA", b"")[:4], "big") / 1e5
        points = named.get(b"cHRM", b"")
        has_points = len(points) == 32
        if not (gamma or has_points):
            return b""
        if gamma:
            curve = _gamma_curve(1 / gamma)
        if has_points:
            x = [n / 1e5 for n in struct.unpack(">8I", points)]
            white, red, green, blue = zip(x[::2], x[1::2], strict=True)
            primaries = _Primaries(red, green, blue, white)
    return _profile(primaries, curve, gray)


def _of_cicp(
    primaries: int, transfer: int, matrix: int, full: int
) -> tuple[_Primaries, bytes]:
    if transfer in _HDR:
        raise ImageError(
            f"its transfer function is {_HDR[transfer]} (HDR), which is written to PNG "
            "only; take --format=png"
        )
    if transfer in _BT709:
        curve = _bt709_curve()
    elif transfer in _GAMMAS:
        curve = _gamma_curve(_GAMMAS[transfer])
    elif transfer == _SRGB_CURVE:
        curve = _srgb_curve()
    else:
        curve = b""
    if primaries not in _PRIMARIES or not curve or matrix or not full:
        numbers = f"{primaries}/{transfer}/{matrix}/{full}"
        raise ImageError(
            f"its colour space (cICP {numbers}) is written to PNG only; "
            "take --format=png"
        )
    return _PRIMARIES[primaries], curve


def _curve_bytes(values: np.ndarray) -> bytes:
    """Encodes a transfer function, sampled on `_levels`, as a curveType."""
    words = np.rint(65535 * np.clip(values, 0, 1)).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(words)) + words.tobytes()


def _levels() -> np.ndarray:
    return np.linspace(0, 1, 1024)


def _srgb_curve() -> bytes:
    x = _levels()
    return _curve_bytes(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4))


def _bt709_curve() -> bytes:
    x = _levels()
    return _curve_bytes(
        np.where(x < 0.081, x / 4.5, ((x + 0.099) / 1.099) ** (1 / 0.45))
    )


def _gamma_curve(exponent: float) -> bytes:
    return _curve_bytes(_levels() ** exponent)


def _xyz(point: _Point) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_d50(primaries: _Primaries) -> np.ndarray:
    """Returns XYZ of the primaries, adapted to D50; each column is a primary."""
    *three, white = map(_xyz, primaries)
    matrix = np.stack(three, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    return np.linalg.solve(_BRADFORD, scale @ _BRADFORD @ matrix)


def _xyz_bytes(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + np.rint(65536 * values).astype(">i4").tobytes()


def _profile(primaries: _Primaries, curve: bytes, gray: bool) -> bytes:
    """Encodes a display profile of version 2 (ICC.1:2001-04).

    Returns b'' if the primaries are not valid.
    """
    text = b"from the chunks of a PNG\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"CC0\0",
        b"wtpt": _xyz_bytes(_D50),
    }
    if gray:
        tags[b"kTRC"] = curve
    else:
        try:
            columns = _to_d50(primaries).T
        except (np.linalg.LinAlgError, ZeroDivisionError):
            return b""
        tags |= dict(
            zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz_bytes, columns), strict=True)
        )
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = struct.pack(">I", len(tags)), b""
    places: dict[bytes, int] = {}
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        if value not in places:
            places[value] = start + len(body)
            body += value + bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, places[value], len(value))
    space = b"GRAY" if gray else b"RGB "
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"", 0x02100000, b"mntr", space,
        b"XYZ ", struct.pack(">6H", 2000, 1, 1, 0, 0, 0), b"acsp",
    )  # fmt: skip
    head = head.ljust(68, b"\0") + _xyz_bytes(_D50)[8:]
    return head.ljust(128, b"\0") + table + body
