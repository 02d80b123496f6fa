"""Measures how many values of a deblocker's masks are saturated.

    python -m cqr_jax.evaluation.masks WEIGHTS
    python -m cqr_jax.evaluation.masks WEIGHTS --renew=OUTPUT

A mask near 0 or 1 passes on hardly any gradient. If all masks of a block are saturated,
its branch does not learn any more, and computes nothing but a choice of channels.

The table has a row for each block with a mask branch: the number of its channels, the
number of channels whose mask is constant, and the share of saturated values. They are
measured on four photographs that are included in scikit-image, at QF 10, 40 and 80.

--renew initialises each mask branch anew of which nearly all values are saturated. Its
masks are then constant, with the mean of the former masks, until it is trained again.
"""

import argparse
from collections.abc import Mapping

import jax
import numpy as np

from cqr_jax import models, tables, weights
from cqr_jax.data import degradations, held_out, jpeg
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.errors import UserError, one_line_errors
from cqr_jax.export.program import deblocker_of
from cqr_jax.models import colour, init
from cqr_jax.models.layers import MaskBranch

_SIDE = 96  # of the crops in pixels
_QUALITIES = (10, 40, 80)
_NEAR = 0.02  # distance to 0 or 1 of a saturated value
_CONSTANT = 0.01  # standard deviation of a constant mask
_DEAD = 0.99  # share of saturated values from which on a branch is renewed


def measure(held: weights.Weights) -> dict[str, np.ndarray]:
    """Returns the masks of each block that has a mask branch.

    Args:
      held: a deblocker.

    Returns:
      Name of the block -> float32, (positions, channels), the masks at all positions of
      all crops.
    """
    model = deblocker_of(held)

    @jax.jit
    def run(*inputs):
        _, kept = model.apply(
            {"params": held.variables["params"]},
            *inputs,
            capture_intermediates=lambda module, _: isinstance(module, MaskBranch),
            mutable=["intermediates"],
        )
        return kept.get("intermediates", {})

    found: dict[str, list[np.ndarray]] = {}
    for image in map(_crop, held_out.embedded("train")[:4]):
        for quality in _QUALITIES:
            for block, kept in run(*_inputs(model, image, quality)).items():
                mask, _ = kept["mask"]["__call__"][0]
                masks = np.asarray(mask).reshape(-1, mask.shape[-1])
                found.setdefault(block, []).append(masks)
    return {block: np.concatenate(masks) for block, masks in found.items()}


def _crop(path) -> np.ndarray:
    """Returns the middle of an image, uint8 RGB, (_SIDE, _SIDE, 3)."""
    image = jpeg.load_rgb(path)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    top, left = ((n - _SIDE) // 2 for n in image.shape[:2])
    return image[top : top + _SIDE, left : left + _SIDE]


def _inputs(model, image: np.ndarray, quality: int) -> list[np.ndarray]:
    """Returns the inputs of a deblocker for a JPEG of an RGB image."""
    compression = libjpeg(quality)
    if models.channels(model) == 1:
        y = jpeg.compress(jpeg.luma(image), quality)
        x = y[None, ..., None] / np.float32(255)
        compression = libjpeg(quality, gray=True)
    else:
        rgb = jpeg.load_rgb(degradations.encode(image, compression))
        x = np.asarray(colour.to_ycbcr(rgb[None] / np.float32(255)))
    if models.conditioned(model):
        return [x, features(compression)[None]]
    return [x]


def saturated(masks: np.ndarray) -> float:
    """Returns the share of values that are near 0 or 1."""
    return float(np.mean((masks < _NEAR) | (masks > 1 - _NEAR)))


def table(found: Mapping[str, np.ndarray]) -> tables.Table:
    """Returns the table of the masks that `measure` found."""
    rows = [
        [
            block,
            str(masks.shape[1]),
            str(np.sum(masks.std(0) < _CONSTANT)),
            f"{100 * saturated(masks):.0f} %",
        ]
        for block, masks in found.items()
    ]
    return [["block", "channels", "constant", "saturated"], *rows]


def renew(held: weights.Weights, found: Mapping[str, np.ndarray]) -> list[str]:
    """Initialises saturated mask branches anew, in the parameters of `held`.

    Args:
      held: a deblocker.
      found: its masks, as `measure` returns them.

    Returns:
      The names of the blocks of which the branch is new.
    """
    dead = [block for block, x in found.items() if saturated(x) >= _DEAD]
    fresh = jax.device_get(init.init(held.model, _SIDE, 0)["params"])
    for block in dead:
        branch = fresh[block]["mask"]
        mean = np.clip(found[block].mean(0), 0.03, 0.97)
        branch["mask"] = {
            "kernel": np.zeros_like(branch["mask"]["kernel"]),
            "bias": np.log(mean / (1 - mean)),
        }
        held.variables["params"][block]["mask"] = branch
    return dead


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.evaluation.masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="file of a deblocker")
    parser.add_argument(
        "--renew", metavar="OUTPUT", help="write weights with new branches"
    )
    args = parser.parse_args()
    with one_line_errors():
        held = weights.load(args.weights, "deblocker")
        found = measure(held)
        if not found:
            raise UserError(f"{args.weights}: the network has no mask branches")
        print(tables.text(table(found)))
        if args.renew:
            renewed = renew(held, found)
            if not renewed:
                raise UserError(f"{args.weights}: no mask branch has to be renewed")
            provenance = {**held.provenance, "renewed": renewed}
            weights.save(
                args.renew, "deblocker", held.fields, held.variables, provenance
            )


if __name__ == "__main__":
    main()
