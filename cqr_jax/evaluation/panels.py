r"""Draws results as in the paper's Figures 3 to 6.

    python -m cqr_jax.evaluation.panels panel IMAGE \
        --weights=A.safetensors,B.safetensors --quality=10 --crop=200,120,96,96 \
        --output=panel.png
    python -m cqr_jax.evaluation.panels panel IMAGE --colour \
        --weights=cqr_jax/weights/colour.safetensors --output=panel.png
    python -m cqr_jax.evaluation.panels features IMAGE --weights=ranker.safetensors \
        --output=features.png

panel draws a crop of the original, of its JPEG and of each deblocker's output, with
PSNR | SSIM | PSNR-B of the whole image below, on Y or, with --colour, over RGB. JPEGs
in colour have 4:2:0 chroma, and are restored as by cqr-restore. features draws how
strongly each convolution of the ranker responds to the clean image and to QF 10, 20 and
30.
"""

import argparse
import pathlib
from collections.abc import Mapping

import numpy as np

from cqr_jax.data import jpeg
from cqr_jax.errors import UserError, extra, one_line_errors
from cqr_jax.evaluation import drawing, metrics


def _draw_panel(args: argparse.Namespace) -> None:
    with extra("train"):  # after parsing the flags, so that --help is fast
        from cqr_jax.config import split_list
        from cqr_jax.data.compression import SUBSAMPLINGS, libjpeg
        from cqr_jax.evaluation import colour, table2
        from cqr_jax.restoring import restorer

    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality={args.quality}: must be 1 to 100")
    methods = table2.by_name(split_list(args.weights), [table2.JPEG])
    results = {}
    if args.colour:
        clean = colour.load(args.image)
        measures: Mapping[str, drawing.Metric] = colour.METRICS
        picture = colour.compress(clean, libjpeg(args.quality, SUBSAMPLINGS["4:2:0"]))
        compressed = picture.pixels
        for name, run in table2.networks(methods).items():
            (restored,) = restorer.restore_pictures(run, [picture], projecting=True)
            results[name] = restored.pixels
    else:
        clean, measures = table2.load(args.image), metrics.METRICS
        compressed = jpeg.compress(clean, args.quality)
        condition = table2.gray_features(args.quality)[None]
        for name, run in table2.networks(methods).items():
            results[name] = metrics.to_uint8(run(compressed[None], condition)[0])
    images = {"original": clean}
    for name, image in {f"JPEG, QF {args.quality}": compressed, **results}.items():
        images[drawing.caption(name, clean, image, measures)] = image
    rows, columns = _window(args.crop, clean.shape[:2])
    drawing.panel(
        {k: x[rows, columns] for k, x in images.items()}, pathlib.Path(args.output)
    )


def _draw_features(args: argparse.Namespace) -> None:
    with extra("train"):
        import jax

        from cqr_jax import weights
        from cqr_jax.models.ranker import MIN_SIDE
        from cqr_jax.training.steps import to_float

    ranker = weights.load(args.weights, "ranker")
    clean = jpeg.load_named(args.image)
    rows, columns = _window(args.crop, clean.shape)
    whole = {"clean": clean}
    for quality in (10, 20, 30):
        whole[f"QF {quality}"] = jpeg.compress(clean, quality)
    apply = jax.jit(ranker.model.apply)
    images, maps = {}, {}
    for name, y in whole.items():
        cut = y[rows, columns]
        if min(cut.shape) < MIN_SIDE:
            raise UserError(
                f"{args.image}: the ranker needs a crop with sides of at least "
                f"{MIN_SIDE} pixels, got {cut.shape}"
            )
        score, features = apply(ranker.variables, to_float(cut[None, :, :, None]))
        title = f"{name}\nscore {float(score[0]):.2f}"
        images[title] = cut
        maps[title] = {conv: np.asarray(x[0]) for conv, x in features.items()}
    drawing.feature_maps(images, maps, pathlib.Path(args.output))


def _window(crop: str, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Returns the rows and columns of 'left,top,width,height'; all if it is empty."""
    height, width = shape
    if not crop:
        return slice(0, height), slice(0, width)
    try:
        left, top, wide, high = map(int, crop.split(","))
    except ValueError:
        raise UserError(
            f"--crop={crop}: must be LEFT,TOP,WIDTH,HEIGHT in pixels"
        ) from None
    if min(left, top) < 0 or min(wide, high) < 1:
        raise UserError(f"--crop={crop}: must be LEFT,TOP,WIDTH,HEIGHT in pixels")
    if left + wide > width or top + high > height:
        raise UserError(f"--crop={crop}: is outside the image of {width}x{height}")
    return slice(top, top + high), slice(left, left + wide)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.evaluation.panels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, draw, what in (
        (
            "panel",
            _draw_panel,
            "deblockers' weights, separated by commas; may be empty",
        ),
        ("features", _draw_features, "the ranker's weights"),
    ):
        command = commands.add_parser(name)
        command.set_defaults(draw=draw)
        command.add_argument("image", metavar="IMAGE", help="original image")
        command.add_argument("--weights", required=True, help=what)
        command.add_argument(
            "--crop", default="", help="LEFT,TOP,WIDTH,HEIGHT in pixels"
        )
        command.add_argument("--output", required=True, help="PNG to write")
        if name == "panel":
            command.add_argument(
                "--colour", action="store_true", help="restore colour, not only Y"
            )
            command.add_argument(
                "--quality",
                type=int,
                default=10,
                help="quality factor, 1 to 100 (default: %(default)s)",
            )
    args = parser.parse_args()
    with one_line_errors():
        if pathlib.Path(args.output).suffix.lower() != ".png":
            raise UserError(f"--output={args.output}: name a .png file")
        args.draw(args)


if __name__ == "__main__":
    main()
