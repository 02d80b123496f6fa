"""Drawings of images side by side with their metrics, and of feature maps."""

import io
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cqr_jax import files, tables
from cqr_jax.data import jpeg
from cqr_jax.evaluation import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metric = Callable[[np.ndarray, np.ndarray], float]  # of a reference and an image

_GAP = 8  # pixels between images
_LEAST_WIDTH = 256  # pixels; narrower images are enlarged by an integer factor


def caption(
    name: str,
    reference: np.ndarray,
    image: np.ndarray,
    measures: Mapping[str, Metric] = metrics.METRICS,
) -> str:
    """Returns a caption of two lines: the method, and PSNR | SSIM | PSNR-B.

    Args:
      name: name of the method.
      reference, image: images that the measures take: of shape (height, width) for
        `metrics.METRICS`.
      measures: the measures, by name.
    """
    values = (
        tables.shown(measure, measures[measure](reference, image))
        for measure in tables.MEASURES
    )
    return f"{name}\n{' | '.join(values)}"


def panel(images: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes images side by side as a PNG, with captions below.

    Args:
      images: caption (one or two lines) -> uint8 image of shape (height, width), or
        (height, width, 3) for RGB. All have the same shape. Small images are enlarged
        by an integer factor, without interpolation.
      path: path of the PNG.
    """
    height, width, *channels = next(iter(images.values())).shape
    zoom = -(-_LEAST_WIDTH // width)
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(size=14)
    below = 44
    size = len(images) * (width + _GAP) - _GAP, height + below
    sheet = Image.new("RGB" if channels else "L", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (words, image) in enumerate(images.items()):
        left = i * (width + _GAP)
        sheet.paste(Image.fromarray(image.repeat(zoom, 0).repeat(zoom, 1)), (left, 0))
        center = (left + width // 2, height + below // 2)
        draw.multiline_text(
            center, words, fill="black", font=font, anchor="mm", align="center"
        )
    files.write(path, jpeg.encode_png(np.asarray(sheet)))


def feature_maps(
    images: dict[str, np.ndarray],
    maps: dict[str, dict[str, np.ndarray]],
    path: pathlib.Path,
) -> None:
    """Writes the mean magnitude of feature maps as a grid of heat maps (Figure 4).

    The grid has a column for each image and, below the images, a row for each
    convolution. Every map is stretched to the size of the image. Each row has one
    colour scale, which starts at zero.

    Args:
      images: title of the column -> uint8 (height, width). All have the same shape.
      maps: title -> name of the convolution -> (height', width', channels).
      path: path of the PNG.
    """
    from matplotlib.figure import Figure  # slow to import, and used only here

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


def png(figure: "Figure", dpi: int) -> bytes:
    """Encodes a Matplotlib figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
