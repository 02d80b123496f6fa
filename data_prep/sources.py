"""Where clean images come from: a folder, the embedded photographs, DIV2K."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

import requests
from etils import epath

from cqr_jax.data import jpeg, kinds
from cqr_jax.errors import UserError

_DIV2K_HOST = "https://data.vision.ee.ethz.ch"

VALIDATION_FRACTION = 0.05  # of a folder's images, unless said otherwise

# Photographs that scikit-image ships in its wheel, by their part in the quickstart.
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


@dataclasses.dataclass(frozen=True)
class Source:
    """Clean images, split by image.

    Attributes:
      name: of the data set made from it.
      origin: what the records say of where they come from.
      counts: images in each split.
      images: split -> (name, path or file bytes) of each image.
      fetch: downloads what has to be, before the first use of `images`.
    """

    name: str
    origin: str
    counts: dict[str, int]
    images: Callable[[str], Iterator[tuple[str, str | bytes]]]
    fetch: Callable[[], None] = lambda: None


def find(
    source: str,
    name: str = "",
    validation_fraction: float = VALIDATION_FRACTION,
    kind: str = kinds.LADDER,
) -> Source:
    """The source that `--source` names.

    Args:
      source: 'div2k', 'embedded', or a folder of images.
      name: of the data set; by default 'div2k', 'embedded' or the folder's name.
      validation_fraction: part of a folder's images kept for validation (at least one
        image). DIV2K and the embedded photographs have splits of their own.
      kind: of the records that are made of them; see `_divide`.

    Raises:
      UserError: no such folder, no images in it, or a name with a separator in it.
    """
    if source == "div2k":
        found = _div2k(name or source)
    elif source == "embedded":
        found = _files(
            name or source,
            "photographs shipped with scikit-image",
            {split: embedded(split) for split in ("train", "validation")},
        )
    else:
        found = _folder(source, name, validation_fraction, kind)
    if not found.name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise UserError(
            f"'{found.name}' can't name a data set: use letters, digits, '.', '_' and "
            "'-', with --name=NAME"
        )
    return found


def embedded(split: str) -> list[pathlib.Path]:
    """Paths of the embedded photographs of a split: train, validation or test."""
    import skimage

    folder = pathlib.Path(skimage.__file__).parent / "data"
    return [folder / file for file in EMBEDDED[split]]


def held_out(folder: str, kind: str = kinds.LADDER) -> list[pathlib.Path]:
    """The images of a folder that are kept for validation where nothing else is said.

    Args:
      folder: of images.
      kind: of the records; see `_divide`.

    Raises:
      UserError: no such folder, or fewer than two images in it.
    """
    found = _divide(epath.Path(folder), VALIDATION_FRACTION, kind)["validation"]
    return [pathlib.Path(folder) / file for file in found]


def _files(name: str, origin: str, splits: dict[str, list[pathlib.Path]]) -> Source:
    return Source(
        name,
        origin,
        {split: len(paths) for split, paths in splits.items()},
        lambda split: ((path.name, str(path)) for path in splits[split]),
    )


def _folder(folder: str, name: str, validation_fraction: float, kind: str) -> Source:
    in_bucket = "://" in folder
    root = epath.Path(folder if in_bucket else pathlib.Path(folder).resolve())
    splits = _divide(root, validation_fraction, kind)

    def images(split):  # lists anew: a worker elsewhere gets no list, but the folder
        for file in _divide(root, validation_fraction, kind)[split]:
            yield file, str(root / file)

    counts = {split: len(files) for split, files in splits.items()}
    return Source(name or root.name, str(root), counts, images)


def _divide(
    root: epath.Path, validation_fraction: float, kind: str
) -> dict[str, list[str]]:
    """The images under `root` by split, as paths relative to it, sorted.

    Which are held out is chosen by a hash of their names, so that it is random yet the
    same everywhere. For the ladder those with the lowest hashes are, an exact share.
    For colour records it is each whose hash, of its name without the suffix, falls
    below that share: so that x.png of a gray folder is held out if x.webp of a coloured
    one is, and one network can train on both.
    """
    files = [path.relative_to(root).as_posix() for path in jpeg.list_images(root)]
    if len(files) < 2:
        raise UserError(f"{root}: one image can't be split; at least two are needed")
    count = min(max(1, round(validation_fraction * len(files))), len(files) - 1)

    def by_hash(file):
        name = file if kind == kinds.LADDER else os.path.splitext(file)[0]
        return hashlib.sha256(name.encode()).digest()

    ordered = sorted(files, key=by_hash)
    if kind != kinds.LADDER:
        below = int(validation_fraction * 2**64).to_bytes(8)
        count = min(max(1, sum(by_hash(x) < below for x in files)), len(files) - 1)
    held_out = set(ordered[:count])
    return {
        "train": [file for file in files if file not in held_out],
        "validation": [file for file in files if file in held_out],
    }


def _div2k(name: str) -> Source:
    """The high-resolution images of TFDS's div2k: 800 to train, 100 to validate."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("div2k/bicubic_x4")  # the smallest that holds the HR

    def fetch():
        if builder.is_prepared():
            return
        try:
            # TFDS would try for minutes before it gives up.
            requests.head(_DIV2K_HOST, timeout=10)
            builder.download_and_prepare()
        except (OSError, tfds.download.DownloadError) as error:
            raise UserError(
                f"DIV2K could not be fetched from {_DIV2K_HOST} "
                f"({type(error).__name__}); without a network run "
                "--config=configs/deblock.py:quickstart, or make "
                "records of your own images: python -m data_prep.build --source=FOLDER "
                "--name=NAME, then train with --config.data.name=NAME"
            ) from error

    def images(split):
        skip = {"hr": tfds.decode.SkipDecoding()}
        records = builder.as_dataset(split=split, decoders=skip)
        for i, record in enumerate(tfds.as_numpy(records)):
            yield f"{split}{i:04d}", record["hr"]

    counts = {"train": 800, "validation": 100}
    return Source(name, "tfds div2k/bicubic_x4 hr", counts, images, fetch)
