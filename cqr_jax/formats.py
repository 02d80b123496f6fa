"""Formats of image files by suffix. This module imports only fast modules."""

import os
import pathlib

# Output format -> suffixes. New files of that format get the first one.
FORMATS = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",),
}
# Input format -> suffixes. Files in formats that can't be written become PNGs.
READ = FORMATS | {
    "mpo": (".mpo",),  # several concatenated JPEGs
    "gif": (".gif",),
    "avif": (".avif",),
    "heic": (".heic", ".heif", ".hif"),
    "jxl": (".jxl",),
}
# Suffixes of image files that can't be read.
_KNOWN_SUFFIXES = frozenset(
    (
        # raw files of cameras
        *(".3fr", ".ari", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf"),
        *(".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
        *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf"),
        *(".srw", ".x3f"),
        # files of painting programs
        *(".psd", ".psb", ".xcf", ".kra", ".ora", ".clip"),
        # vector graphics
        *(".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf", ".cdr"),
        # others
        *(".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".j2c", ".jxr", ".wdp", ".hdp"),
        *(".jls", ".djvu", ".exr", ".hdr", ".dpx", ".cin", ".pfm", ".pbm", ".pgm"),
        *(".ppm", ".pnm", ".pam", ".tga", ".dds", ".ktx", ".qoi", ".flif", ".bpg"),
        *(".pcx", ".ico", ".cur", ".icns", ".xbm", ".xpm", ".sgi", ".ras", ".apng"),
        *(".mng", ".jng", ".heics", ".heifs", ".avifs", ".avci", ".fits", ".dcm"),
    )
)
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
READ_SUFFIXES = frozenset(suffix for suffixes in READ.values() for suffix in suffixes)
_FORMAT_OF = {suffix: name for name, all_ in FORMATS.items() for suffix in all_}


def format_of(path: str | os.PathLike) -> str | None:
    """Returns the output format of a path's suffix, or None if it has none."""
    return _FORMAT_OF.get(_suffix(path))


def is_read(path: str | os.PathLike) -> bool:
    """Returns whether a path has the suffix of a format that can be read."""
    return _suffix(path) in READ_SUFFIXES


def is_known(path: str | os.PathLike) -> bool:
    """Returns whether a path has the suffix of an image format that can't be read."""
    return _suffix(path) in _KNOWN_SUFFIXES


def extension(name: str, path: str | os.PathLike = "") -> str:
    """Returns the suffix for a file of a format.

    Args:
      name: name of a format in `FORMATS`.
      path: a file whose suffix is returned if it has the same format.
    """
    own = pathlib.Path(path).suffix
    return own if format_of(path) == name else FORMATS[name][0]


def _suffix(path: str | os.PathLike) -> str:
    return pathlib.Path(path).suffix.lower()
