"""Pictures of results, as in the paper's Figures 3 to 6.

    python -m cqr_jax.figures panel IMAGE --weights=A.safetensors,B.safetensors \
        --quality=10 --crop=200,120,96,96 --output=panel.png
    python -m cqr_jax.figures features IMAGE --weights=ranker.safetensors \
        --output=features.png

panel: a crop of the original, of its JPEG and of what each deblocker makes of it, with
PSNR | SSIM | PSNR-B of the whole image beneath. features: how strongly each convolution
of the ranker responds, clean against QF 10, 20 and 30.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cqr_jax import files, metrics, tables
from cqr_jax.data import jpeg
from cqr_jax.errors import UserError, extra, one_line_errors

_GAP = 8  # pixels between images
_LEAST_WIDTH = 256  # of a shown crop: smaller ones are enlarged by a whole number


def caption(name: str, reference: np.ndarray, image: np.ndarray) -> str:
    """Two lines: a method, and PSNR | SSIM | PSNR-B of its (height, width) image."""
    values = (
        tables.shown(figure, metrics.METRICS[figure](reference, image))
        for figure in tables.FIGURES
    )
    return f"{name}\n{' | '.join(values)}"


def panel(images: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes images side by side, each above its caption, as a PNG.

    Args:
      images: caption (of one or two lines) -> uint8 image of shape (height, width), all
        of one shape. Small ones are enlarged by a whole number, pixel for pixel.
      path: of the PNG.
    """
    height, width = next(iter(images.values())).shape
    zoom = -(-_LEAST_WIDTH // width)
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(size=14)
    below = 44
    sheet = Image.new("L", (len(images) * (width + _GAP) - _GAP, height + below), 255)
    draw = ImageDraw.Draw(sheet)
    for i, (words, image) in enumerate(images.items()):
        left = i * (width + _GAP)
        sheet.paste(Image.fromarray(image.repeat(zoom, 0).repeat(zoom, 1)), (left, 0))
        center = (left + width // 2, height + below // 2)
        draw.multiline_text(
            center, words, fill=0, font=font, anchor="mm", align="center"
        )
    files.write(path, jpeg.encode_png(np.asarray(sheet)))


def feature_maps(
    images: dict[str, np.ndarray],
    maps: dict[str, dict[str, np.ndarray]],
    path: pathlib.Path,
) -> None:
    """Writes the mean magnitude of feature maps as a grid of heat maps (Figure 4).

    A column for each image; beneath it a line for each convolution, every map stretched
    to the image's size; one colour scale along a line, from zero.

    Args:
      images: title of the column -> uint8 (height, width), all of one shape.
      maps: title -> name of the convolution -> (height', width', channels).
      path: of the PNG.
    """
    from matplotlib.figure import Figure  # slow to import, and only for this

    names = list(next(iter(maps.values())))
    height, width = next(iter(images.values())).shape
    side = 2.0  # inches
    figure = Figure(
        figsize=(
            side * len(maps) + 1,
            (len(names) + 1) * (side * height / width + 0.2),
        ),
        layout="constrained",
    )
    grid = figure.subplots(len(names) + 1, len(maps), squeeze=False)
    for axes, (title, image) in zip(grid[0], images.items(), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[], title=title)
    for line, name in zip(grid[1:], names, strict=True):
        responses = [np.abs(found[name]).mean(axis=-1) for found in maps.values()]
        top = max(response.max() for response in responses)
        for axes, response in zip(line, responses, strict=True):
            shown = axes.imshow(
                response,
                vmin=0,
                vmax=top,
                cmap="magma",
                extent=(0, width, height, 0),
                interpolation="nearest",
            )
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"mean {response.mean():.3f}", fontsize=8)
        line[0].set_ylabel(name)
        figure.colorbar(shown, ax=list(line), shrink=0.8)
    files.write(path, png(figure, dpi=80))


def png(figure, dpi: int) -> bytes:
    """A Matplotlib figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _draw_panel(args: argparse.Namespace) -> None:
    with extra("train"):  # after the flags, so that help comes at once
        from cqr_jax import evaluate, weights
        from cqr_jax.config import words
        from cqr_jax.restoring import network

    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality={args.quality}: is 1 to 100")
    clean = evaluate.load(args.image)
    compressed = jpeg.compress(clean, args.quality)
    methods = evaluate.by_name(words(args.weights), [evaluate.JPEG])
    images = {caption(f"JPEG, QF {args.quality}", clean, compressed): compressed}
    for name, path in methods.items():
        run = network.Network(weights.load(path, "deblocker"))
        restored = metrics.to_uint8(run(compressed[None])[0])
        images[caption(name, clean, restored)] = restored
    images = {"original": clean, **images}
    rows, columns = _window(args.crop, clean.shape)
    panel({k: x[rows, columns] for k, x in images.items()}, pathlib.Path(args.output))


def _draw_features(args: argparse.Namespace) -> None:
    with extra("train"):
        import jax

        from cqr_jax import weights
        from cqr_jax.models.ranker import MIN_SIDE
        from cqr_jax.steps import to_float

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
                f"the ranker needs {MIN_SIDE} pixels a side, not {cut.shape}"
            )
        score, features = apply(ranker.variables, to_float(cut[None, :, :, None]))
        title = f"{name}\nscore {float(score[0]):.2f}"
        images[title] = cut
        maps[title] = {conv: np.asarray(x[0]) for conv, x in features.items()}
    feature_maps(images, maps, pathlib.Path(args.output))


def _window(crop: str, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of 'left,top,width,height'; of everything if it is empty."""
    height, width = shape
    if not crop:
        return slice(0, height), slice(0, width)
    try:
        left, top, wide, high = map(int, crop.split(","))
    except ValueError:
        raise UserError(f"--crop={crop}: is LEFT,TOP,WIDTH,HEIGHT in pixels") from None
    if min(left, top) < 0 or min(wide, high) < 1:
        raise UserError(f"--crop={crop}: is LEFT,TOP,WIDTH,HEIGHT in pixels")
    if left + wide > width or top + high > height:
        raise UserError(f"--crop={crop}: goes beyond the image of {width}x{height}")
    return slice(top, top + high), slice(left, left + wide)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cqr_jax.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, draw, what in (
        ("panel", _draw_panel, "deblockers, comma between them; may be empty"),
        ("features", _draw_features, "the ranker"),
    ):
        command = commands.add_parser(name)
        command.set_defaults(draw=draw)
        command.add_argument("image", metavar="IMAGE", help="an original")
        command.add_argument("--weights", required=True, help=what)
        command.add_argument("--crop", default="", help="LEFT,TOP,WIDTH,HEIGHT")
        command.add_argument("--output", required=True, help="PNG to write")
        if name == "panel":
            command.add_argument(
                "--quality", type=int, default=10, help="JPEG's, 1 to 100 (%(default)s)"
            )
    args = parser.parse_args()
    with one_line_errors():
        args.draw(args)


if __name__ == "__main__":
    main()
