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


def extension(name: str, path: str | os.PathLike = "") -> str:
    """The suffix for a file of a format.

    Args:
      name: of a format of `FORMATS`.
      path: a file whose own suffix is kept if it names the same format.
    """
    own = pathlib.Path(path).suffix
    return own if format_of(path) == name else FORMATS[name][0]
