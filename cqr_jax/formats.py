"""The formats of image files, by their suffixes; imports nothing that is slow."""

import os
import pathlib

# Format -> suffixes, the first of which is given to files of that format.
FORMATS = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_FORMAT_OF = {suffix: name for name, all_ in FORMATS.items() for suffix in all_}


def format_of(path: str | os.PathLike) -> str | None:
    """The format that a path's suffix names, None if it names none of `FORMATS`."""
    return _FORMAT_OF.get(pathlib.Path(path).suffix.lower())
