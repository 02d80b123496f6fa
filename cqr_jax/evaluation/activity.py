"""Measures which units of a deblocker still take part and learn.

    python -m cqr_jax.evaluation.activity WEIGHTS

A unit whose ReLU is never positive gets no gradient and stops learning. A unit with a
leaky ReLU gets one, but is linear. A mask near 0 or 1 passes on hardly any gradient.
The loss of a training does not show this.

The first table has a row for each ReLU: its units, how many of them are never positive,
and the share of positive values. The second has a row for each mask branch: its
channels, on how many of them the mask is constant, and the share of saturated values.
Both are measured on four photographs that are included in scikit-image, at QF 10, 40
and 80.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cqr_jax import models, tables, weights
from cqr_jax.data import degradations, held_out, jpeg
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.errors import one_line_errors
from cqr_jax.export.program import deblocker_of
from cqr_jax.models import colour
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.layers import MaskBranch, Rectifier

_SIDE = 96  # of the crops in pixels
_QUALITIES = (10, 40, 80)
_NEAR = 0.02  # distance of a saturated value to 0 or 1
_CONSTANT = 0.01  # standard deviation below which a mask is constant


class Channels(NamedTuple):
    """What the outputs of one layer are like on each channel, float32, (channels,).

    Attributes:
      positive: share of positive values.
      saturated: share of values near 0 or 1.
      mean: mean of the values.
      square: mean of their squares.
    """

    positive: jax.Array
    saturated: jax.Array
    mean: jax.Array
    square: jax.Array


def measure(
    held: weights.Weights,
) -> tuple[dict[str, Channels], dict[str, Channels]]:
    """Measures the outputs of all ReLUs and mask branches, over all crops.

    Args:
      held: a deblocker.

    Returns:
      Two dictionaries, of the ReLUs and of the masks: path of the layer -> `Channels`.

    Raises:
      UserError: if the model is another network than `Deblocker`.
    """
    model = deblocker_of(held)
    params = {"params": held.variables["params"]}

    kinds = (Rectifier, MaskBranch)

    @jax.jit
    def run(*inputs: np.ndarray) -> tuple[dict[str, Channels], dict[str, Channels]]:
        _, kept = model.apply(
            params,
            *inputs,
            capture_intermediates=lambda module, _: isinstance(module, kinds),
            mutable=["intermediates"],
        )
        relus: dict[str, Channels] = {}
        masks: dict[str, Channels] = {}
        for (*path, last, _), (output,) in flatten_dict(kept["intermediates"]).items():
            of_mask = isinstance(output, tuple)  # with the term to add
            values = output[0] if of_mask else output
            found = masks if of_mask else relus
            found["/".join(path) or last] = _channels(values)
        return relus, masks

    found = [
        run(*_inputs(model, _crop(path), quality))
        for path in held_out.embedded("train")[:4]
        for quality in _QUALITIES
    ]
    return jax.tree.map(lambda *parts: jnp.stack(parts).mean(0), *found)


def _channels(values: jax.Array) -> Channels:
    values = values.reshape(-1, values.shape[-1])
    saturated = (values < _NEAR) | (values > 1 - _NEAR)
    parts = (values > 0, saturated, values, jnp.square(values))
    return Channels(*(x.mean(0) for x in parts))


def _crop(path: pathlib.Path) -> np.ndarray:
    """Returns the middle of an image, uint8 RGB, (_SIDE, _SIDE, 3)."""
    image = jpeg.load_rgb(path)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    top, left = ((n - _SIDE) // 2 for n in image.shape[:2])
    return image[top : top + _SIDE, left : left + _SIDE]


def _inputs(model: Deblocker, image: np.ndarray, quality: int) -> list[np.ndarray]:
    """Returns the inputs of a deblocker for a JPEG of an RGB image."""
    compression = libjpeg(quality)
    if models.channels(model) == 1:
        y = jpeg.compress(jpeg.luma(image), quality)
        x = y[None, ..., None] / np.float32(255)
        compression = libjpeg(quality, gray=True)
    else:
        rgb = jpeg.load_rgb(degradations.encode(image, compression))
        x = np.asarray(colour.to_ycbcr(jnp.asarray(rgb[None] / np.float32(255))))
    if models.conditioned(model):
        return [x, features(compression)[None]]
    return [x]


def of_relus(found: Mapping[str, Channels]) -> tables.Table:
    """Returns the table of the ReLUs that `measure` returns."""
    rows = []
    for layer, x in found.items():
        never = str(int(jnp.sum(x.positive == 0)))
        share = f"{100 * x.positive.mean():.0f} %"
        rows.append([layer, str(len(x.positive)), never, share])
    return [["ReLU", "units", "never positive", "positive"], *rows]


def of_masks(found: Mapping[str, Channels]) -> tables.Table:
    """Returns the table of the masks that `measure` returns."""
    rows = []
    for layer, x in found.items():
        variance = x.square - jnp.square(x.mean)
        constant = str(int(jnp.sum(variance < _CONSTANT**2)))
        share = f"{100 * x.saturated.mean():.0f} %"
        rows.append([layer, str(len(x.mean)), constant, share])
    return [["mask", "channels", "constant", "saturated"], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.evaluation.activity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="file of a deblocker")
    args = parser.parse_args()
    with one_line_errors():
        relus, masks = measure(weights.load(args.weights, "deblocker"))
        print(tables.text(of_relus(relus)))
        if masks:
            print(f"\n{tables.text(of_masks(masks))}")


if __name__ == "__main__":
    main()
