"""Sources of clean images: a folder, the embedded photographs, DIV2K."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import requests
from etils import epath

from cqr_jax.data import jpeg
from cqr_jax.data.held_out import VALIDATION_FRACTION, divide, embedded
from cqr_jax.errors import UserError

_DIV2K_HOST = "https://data.vision.ee.ethz.ch"


@dataclasses.dataclass(frozen=True)
class Source:
    """Clean images, split by image.

    Attributes:
      name: name of the data set made from the source.
      origin: description of the source, which the records keep.
      counts: number of images in each split.
      images: split -> (name, path or file bytes) of each image.
      fetch: downloads missing files. It is called before the first use of `images`.
      unread: returns the image files that are left out because of their format.
    """

    name: str
    origin: str
    counts: dict[str, int]
    images: Callable[[str], Iterator[tuple[str, str | bytes]]]
    fetch: Callable[[], None] = lambda: None
    unread: Callable[[], list[str]] = list


def find(
    source: str,
    name: str = "",
    validation_fraction: float = VALIDATION_FRACTION,
) -> Source:
    """Returns the source that `--source` names.

    Args:
      source: 'div2k', 'embedded', or a folder of images.
      name: name of the data set; by default 'div2k', 'embedded' or the folder's name.
      validation_fraction: fraction of a folder's images to hold out for validation (at
        least one image). DIV2K and the embedded photographs have their own splits.

    Raises:
      UserError: if there is no such folder, if it holds fewer than two images, or if
        the name has other characters than letters, digits, '.', '_' and '-'.
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
        found = _folder(source, name, validation_fraction)
    if not found.name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise UserError(
            f"'{found.name}' can't name a data set: use letters, digits, '.', '_' and "
            "'-', with --name=NAME"
        )
    return found


def _files(name: str, origin: str, splits: dict[str, list[pathlib.Path]]) -> Source:
    return Source(
        name,
        origin,
        {split: len(paths) for split, paths in splits.items()},
        lambda split: ((path.name, str(path)) for path in splits[split]),
    )


def _folder(folder: str, name: str, validation_fraction: float) -> Source:
    in_bucket = "://" in folder
    root = epath.Path(folder if in_bucket else pathlib.Path(folder).resolve())
    splits = divide(root, validation_fraction)

    def images(split):  # lists again: a worker on Beam gets the folder, not the list
        for file in divide(root, validation_fraction)[split]:
            yield file, str(root / file)

    counts = {split: len(files) for split, files in splits.items()}

    def unread():
        return list(map(str, jpeg.unread_images(root)))

    return Source(name or root.name, str(root), counts, images, unread=unread)


def _div2k(name: str) -> Source:
    """Returns TFDS's div2k in high resolution: 800 training, 100 validation images."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("div2k/bicubic_x4")  # the smallest that holds HR images

    def fetch():
        if builder.is_prepared():
            return
        try:
            # Without this request, TFDS would try for minutes before it fails.
            requests.head(_DIV2K_HOST, timeout=10)
            builder.download_and_prepare()
        except (
            requests.RequestException,
            tfds.download.DownloadError,
            tfds.download.download_manager.NonMatchingChecksumError,
        ) as error:
            raise UserError(
                f"DIV2K could not be fetched from {_DIV2K_HOST} "
                f"({type(error).__name__}); without a network run "
                "--config=configs/deblock.py:quickstart, or make "
                "records of your own images: python -m data_prep.build --source=FOLDER "
                "--name=NAME, then train with --config.data.name=NAME"
            ) from error
        except OSError as error:
            raise UserError(
                f"DIV2K can't be written to {builder.data_dir}: "
                f"{error.strerror or error}"
            ) from error

    def images(split):
        skip = {"hr": tfds.decode.SkipDecoding()}
        records = builder.as_dataset(split=split, decoders=skip)
        for i, record in enumerate(tfds.as_numpy(records)):
            yield f"{split}{i:04d}", record["hr"]

    counts = {"train": 800, "validation": 100}
    return Source(name, "tfds div2k/bicubic_x4 hr", counts, images, fetch)
