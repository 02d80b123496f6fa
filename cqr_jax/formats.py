"""The formats of image files, by their suffixes; imports nothing that is slow."""

import os
import pathlib

# Written formats -> suffixes, the first of which is given to files of that format.
FORMATS = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",),
}
# Read formats -> suffixes. Files of those that aren't written become PNGs.
READ = FORMATS | {
    "mpo": (".mpo",),  # JPEGs one behind the other
    "gif": (".gif",),
    "avif": (".avif",),
    "heic": (".heic", ".heif", ".hif"),
    "jxl": (".jxl",),
}
# Images that aren't read: what they are -> suffixes.
_KNOWN = {
    "a raw file of a camera": (
        *(".3fr", ".ari", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf"),
        *(".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
        *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf"),
        *(".srw", ".x3f"),
    ),
    "a file of a painting program": (".psd", ".psb", ".xcf", ".kra", ".ora", ".clip"),
    "a drawing": (".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf", ".cdr"),
    "another image": (
        *(".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".j2c", ".jxr", ".wdp", ".hdp"),
        *(".jls", ".djvu", ".exr", ".hdr", ".dpx", ".cin", ".pfm", ".pbm", ".pgm"),
        *(".ppm", ".pnm", ".pam", ".tga", ".dds", ".ktx", ".qoi", ".flif", ".bpg"),
        *(".pcx", ".ico", ".cur", ".icns", ".xbm", ".xpm", ".sgi", ".ras", ".apng"),
        *(".mng", ".jng", ".heics", ".heifs", ".avifs", ".avci", ".fits", ".dcm"),
    ),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
READ_SUFFIXES = frozenset(suffix for suffixes in READ.values() for suffix in suffixes)
_KNOWN_SUFFIXES = frozenset(suffix for all_ in _KNOWN.values() for suffix in all_)
_FORMAT_OF = {suffix: name for name, all_ in FORMATS.items() for suffix in all_}


def format_of(path: str | os.PathLike) -> str | None:
    """The written format that a path's suffix names, None if it names none."""
    return _FORMAT_OF.get(_suffix(path))


def is_read(path: str | os.PathLike) -> bool:
    """Whether a path's suffix names a format that is read."""
    return _suffix(path) in READ_SUFFIXES


def is_known(path: str | os.PathLike) -> bool:
    """Whether a path's suffix names images of a format that isn't read."""
    return _suffix(path) in _KNOWN_SUFFIXES


def extension(name: str, path: str | os.PathLike = "") -> str:
    """The suffix for a file of a format.

    Args:
      name: of a format of `FORMATS`.
      path: a file whose own suffix is kept if it names the same format.
    """
    own = pathlib.Path(path).suffix
    return own if format_of(path) == name else FORMATS[name][0]


def _suffix(path: str | os.PathLike) -> str:
    return pathlib.Path(path).suffix.lower()
