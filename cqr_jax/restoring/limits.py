"""What is refused for its size or for its number of pictures."""

from cqr_jax.data.jpeg import ImageError


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises an ImageError for an image that is too large."""
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} is above {max_pixels / 1e6:g} megapixels")


def check_frames(count: int, split: str = "magick FILE frame_%04d.png") -> None:
    """Raises an ImageError for an animation, which names a command that splits it."""
    if count > 1:
        raise ImageError(
            f"an animation of {count} frames, of which each is to be a file; "
            f"split it first, for example by {split}"
        )


def check_pages(count: int) -> None:
    """Raises an ImageError for several pages, which names commands that split them."""
    if count > 1:
        raise ImageError(
            f"a TIFF of {count} pages, of which each is to be a file; split it first, "
            "for example by tiffsplit FILE, or by magick FILE page_%04d.tif"
        )
