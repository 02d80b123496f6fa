"""Rejects images that are too large, animations, and files with several pages."""

from cqr_jax.data.jpeg import ImageError


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises an ImageError if an image has more than `max_pixels`."""
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} is above {max_pixels / 1e6:g} megapixels")


def check_frames(count: int, split: str = "magick FILE frame_%04d.png") -> None:
    """Raises an ImageError if a file has several frames.

    Args:
      count: number of frames.
      split: command for the error message that splits a file into its frames.
    """
    if count > 1:
        raise ImageError(
            f"an animation of {count} frames; split it into one file per frame first, "
            f"for example with {split}"
        )


def check_pages(count: int) -> None:
    """Raises an ImageError if a TIFF has several pages."""
    if count > 1:
        raise ImageError(
            f"a TIFF with {count} pages; split it into one file per page first, for "
            "example with tiffsplit FILE, or with magick FILE page_%04d.tif"
        )
