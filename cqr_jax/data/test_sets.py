"""Test sets of Table 2: their images, and where to download them.

test_sets.tsv holds the shape of each image and the SHA-256 of its Y. `images` downloads
missing images; `python -m data_prep.test_sets` does so for all sets. The images are for
research use. Never train on them.
"""

import concurrent.futures
import csv
import functools
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from cqr_jax import files, formats, progress
from cqr_jax.data import jpeg
from cqr_jax.errors import UserError, extra
from cqr_jax.prefetch import cancelling

with extra("train"):
    import requests

# Name of a set -> folder of its images under the folder of all sets.
SETS = {
    "classic5": "classic5",
    "live1": "live1",
    "bsds500-test": "bsds500/test",
    "bsds500": "bsds500",
}

HOST = "https://raw.githubusercontent.com"
# Folder -> address of each of its images under HOST. {} is the rest of the key.
_ADDRESSES = {
    "classic5": "JingyunLiang/SwinIR/33f616625268d08ba600f8db89388eec0328edb1/"
    "testsets/classic5/{}.bmp",
    "live1": "cszn/DnCNN/badb6530935b23b2f2fcb40885898a2bab80eb73/"
    "testsets/LIVE1/{}.bmp",
    "bsds500": "BIDS/BSDS500/master/BSDS500/data/images/{}.jpg",
}
_CONNECTIONS = 8


class Expected(NamedTuple):
    """Shape of an image and SHA-256 of its Y, from test_sets.tsv."""

    shape: tuple[int, int]
    sha256: str

    def is_equal(self, y: np.ndarray) -> bool:
        """Returns whether `y`, uint8 (height, width), equals this image exactly."""
        same_shape = y.shape == self.shape
        return same_shape and hashlib.sha256(y.tobytes()).hexdigest() == self.sha256


@functools.cache
def expected(name: str) -> dict[str, Expected]:
    """Returns key -> expected shape and hash of each image in a set of `SETS`.

    The key of an image is its path under the folder of all sets, without its suffix.
    """
    table = pathlib.Path(__file__).with_name("test_sets.tsv")
    with table.open(newline="") as file:
        return {
            row["image"]: Expected(
                (int(row["height"]), int(row["width"])), row["sha256"]
            )
            for row in csv.DictReader(file, delimiter="\t")
            if row["image"].startswith(SETS[name] + "/")
        }


def images(name: str, set_dir: str) -> dict[str, pathlib.Path]:
    """Returns key -> path of each image in a named set, sorted.

    Downloads the missing images if a folder is missing. A file may have the suffix of
    any format in `formats.FORMATS`.

    Raises:
      UserError: if the set is incomplete and can't be downloaded, or if two files
        differ in their suffix only.
    """
    folder = pathlib.Path(set_dir) / SETS[name]
    found, missing = _find(name, set_dir)
    if not all((pathlib.Path(set_dir) / k).parent.is_dir() for k in missing):
        fetch(name, set_dir)
        found, missing = _find(name, set_dir)
    if missing:
        raise UserError(
            f"{folder}: lacks {len(missing)} of the {len(found) + len(missing)} images "
            f"of {name}, among them {missing[0]}; download them by `python -m "
            f"data_prep.test_sets --set_dir={set_dir}`, or name the folder of other "
            "images in config.sets"
        )
    return found


def fetch(name: str, set_dir: str) -> None:
    """Downloads the missing images of a set and checks each before writing it.

    Raises:
      UserError: if there is no network, if an image differs from the expected one, or
        if the folder can't be written to.
    """
    _, missing = _find(name, set_dir)
    if not missing:
        return
    wanted = expected(name)

    def fetch_one(image: str) -> None:
        folder, rest = image.split("/", 1)
        address = f"{HOST}/{_ADDRESSES[folder].format(rest)}"
        try:
            answer = session.get(address, timeout=20)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise UserError(
                f"{name} is not in {set_dir} and could not be fetched from {address} "
                f"({type(error).__name__}); put its {len(wanted)} images into "
                f"{set_dir}/{SETS[name]}, or name the folder that holds the sets with "
                "config.set_dir (--set_dir of data_prep.test_sets)"
            ) from error
        try:
            whole = wanted[image].is_equal(jpeg.load_luma(answer.content))
        except jpeg.ImageError:
            whole = False
        if not whole:
            raise UserError(f"{address}: is not the image that it was (SHA-256 of Y)")
        path = pathlib.Path(set_dir) / f"{image}{pathlib.Path(address).suffix}"
        files.write(path, answer.content)

    with (
        requests.Session() as session,
        cancelling(concurrent.futures.ThreadPoolExecutor(_CONNECTIONS)) as pool,
    ):
        fetch_one(missing[0])  # fail before trying the others
        fetched = pool.map(fetch_one, missing[1:])
        for _ in progress.over(fetched, len(missing) - 1, f"fetching {name}", "image"):
            pass


def _find(name: str, set_dir: str) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Returns the present images of a set, and the keys of the missing ones."""
    present = by_key(pathlib.Path(set_dir), SETS[name])
    keys = sorted(expected(name))
    found = {k: present[k] for k in keys if k in present}
    return found, [k for k in keys if k not in present]


def key(path: pathlib.Path, root: str | os.PathLike) -> str:
    """Returns the path of an image under `root`, without suffix."""
    return path.relative_to(root).with_suffix("").as_posix()


def by_key(root: pathlib.Path, folder: str = "") -> dict[str, pathlib.Path]:
    """Returns key -> path of the images in a folder under `root`.

    Raises:
      UserError: if two images have the same key.
    """
    found: dict[str, pathlib.Path] = {}
    for path in sorted((root / folder).rglob("*")):
        if formats.format_of(path):
            other = found.setdefault(key(path, root), path)
            if other != path:
                raise UserError(f"{other} and {path} differ only in their suffix")
    return found
