"""Pictures of results."""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 8  # pixels between images


def panel(images: dict[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes images side by side, each above its caption, as a PNG.

    Args:
      images: caption -> uint8 image of shape (height, width), all of one shape.
      path: of the PNG.
    """
    height, width = next(iter(images.values())).shape
    font = ImageFont.load_default(size=14)
    below = 28
    sheet = Image.new("L", (len(images) * (width + _GAP) - _GAP, height + below), 255)
    draw = ImageDraw.Draw(sheet)
    for i, (caption, image) in enumerate(images.items()):
        left = i * (width + _GAP)
        sheet.paste(Image.fromarray(image), (left, 0))
        center = (left + width // 2, height + below // 2)
        draw.text(center, caption, fill=0, font=font, anchor="mm")
    sheet.save(path, "PNG")
