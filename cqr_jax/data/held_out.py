"""Division of clean images into training, validation and test splits.

`data_prep` makes records of the training and validation splits. Evaluation uses
held-out images.
"""

import hashlib
import os
import pathlib

from etils import epath

from cqr_jax.data import jpeg
from cqr_jax.errors import UserError, extra

VALIDATION_FRACTION = 0.05  # default fraction of a folder's images

# Photographs in the wheel of scikit-image, by their split in the quickstart.
EMBEDDED = {
    "train": (
        "astronaut.png",
        "brick.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "moon.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "validation": ("camera.png",),
    "test": ("chelsea.png", "coffee.png"),
}


def embedded(split: str) -> list[pathlib.Path]:
    """Returns the paths of the embedded photographs of a split.

    Args:
      split: 'train', 'validation' or 'test'.
    """
    with extra("train"):
        import skimage

    folder = pathlib.Path(skimage.__file__).parent / "data"
    return [folder / file for file in EMBEDDED[split]]


def held_out_images(folder: str) -> list[pathlib.Path]:
    """Returns the images of a folder that are held out with the default fraction.

    Args:
      folder: path of the folder.

    Raises:
      UserError: if there is no such folder, or it holds fewer than two images.
    """
    found = divide(epath.Path(folder), VALIDATION_FRACTION)["validation"]
    return [pathlib.Path(folder) / file for file in found]


def divide(root: epath.Path, validation_fraction: float) -> dict[str, list[str]]:
    """Divides the images under `root` into a training and a validation split.

    A hash of its name without the suffix decides whether an image is held out. The
    choice is therefore random but the same on every machine and in every folder: x.png
    in one folder is held out whenever x.webp in another is. Networks that train on
    several folders, or start from each other, then hold out the same images. Images of
    one name are not divided, unless the folder would have nothing left to train on. The
    number of held-out images is near the fraction. In a folder of fewer than a hundred
    images, no hash may be below the fraction. The image with the lowest hash is then
    held out, although another folder may not hold it out.

    Args:
      root: folder of the images.
      validation_fraction: fraction of the images to hold out; at least one is.

    Returns:
      Split -> sorted paths relative to `root`.

    Raises:
      UserError: if there is no such folder, or it holds fewer than two images.
    """
    files = [path.relative_to(root).as_posix() for path in jpeg.list_images(root)]
    if len(files) < 2:
        raise UserError(f"{root}: one image can't be split; at least two are needed")

    def by_hash(file: str) -> bytes:
        return hashlib.sha256(os.path.splitext(file)[0].encode()).digest()

    below = int(validation_fraction * 2**64).to_bytes(8)
    count = min(max(1, sum(by_hash(x) < below for x in files)), len(files) - 1)
    ordered = sorted(files, key=by_hash)
    last = by_hash(ordered[count - 1])
    more = sum(by_hash(x) == last for x in ordered[count:])
    if count + more < len(files):
        count += more
    held_out = set(ordered[:count])
    return {
        "train": [file for file in files if file not in held_out],
        "validation": [file for file in files if file in held_out],
    }
