"""Metadata of image files, and the metadata that each format can hold."""

import re
from typing import NamedTuple

from cqr_jax.restoring import exif, photoshop

_JPEG_EXIF, _JPEG_XMP = 65_533, 65_504  # maximum lengths in bytes
_JPEG_COMMENT = 65_533
_JPEG_ICC = 255 * 65_519
_PNG_ICC = 1 << 20  # many readers, Pillow among them, refuse a PNG with a longer one

COMMENT = b"Comment"  # key of a PNG text that corresponds to the comment of a JPEG

# Highest resolutions that formats can hold, in dots per inch.
_INCH = 0.0254  # metres
_DPI = {"jpeg": 65_535, "png": (2**31 - 1) * _INCH, "bmp": (2**31 - 1) * _INCH}
_DPI["tiff"] = 2**31 - 1

_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:\s*=\s*["\']|>))[2-8]')


class Text(NamedTuple):
    """A text in a PNG.

    Attributes:
      key: keyword of the text.
      value: the text in UTF-8.
      chunk: name and content of the chunk that holds key and value.
    """

    key: bytes
    value: bytes
    chunk: tuple[bytes, bytes]


class Metadata(NamedTuple):
    """Metadata of an image file. Missing fields are empty or None.

    Attributes:
      exif: EXIF in the form that a JPEG holds, including the orientation.
      icc_profile: colour profile.
      xmp: XMP, which is XML.
      dpi: horizontal and vertical resolution in dots per inch.
      colour: chunks of a PNG, as (name, content), that define its colour space: gAMA,
        cHRM, sRGB, cICP and the like.
      resources: Photoshop's image resources, including IPTC.
      comments: comments in the form that a JPEG holds.
      texts: texts of a PNG.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    colour: tuple[tuple[bytes, bytes], ...] = ()
    resources: bytes = b""
    comments: tuple[bytes, ...] = ()
    texts: tuple[Text, ...] = ()


class Found(NamedTuple):
    """Result of reading the container of a file.

    Attributes:
      data: a file with the same pixels, and without metadata.
      metadata: metadata of the file.
      notes: sentences on parts that were dropped.
    """

    data: bytes
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()


def resolution(across: float | None, down: float | None) -> tuple[float, float] | None:
    """Returns the resolution in dots per inch.

    Returns None unless both values are above 1, because 0 and 1 mean "unknown".
    """
    if across is None or down is None or not min(across, down) > 1:
        return None
    return float(across), float(down)


def exif_resolution(data: bytes) -> tuple[float, float] | None:
    """Returns the resolution in EXIF in dots per inch; None if it can't be read."""
    try:
        tags = exif.read(data)
    except ValueError:
        return None
    return tiff_resolution(tags)


def tiff_resolution(tags: exif.Tags) -> tuple[float, float] | None:
    """Returns the resolution in the tags of a TIFF or of EXIF, in dots per inch."""
    unit = {1: None, 2: 1.0, 3: 2.54}.get((*tags.numbers(296), 2)[0])
    across, down = tags.rational(282), tags.rational(283)
    if unit is None or across is None or down is None:
        return None
    return resolution(across * unit, down * unit)


def turned(meta: Metadata, transposed: bool) -> Metadata:
    """Returns the metadata of a picture after its pixels were rotated upright.

    The orientation becomes 1 in EXIF and XMP, and the EXIF thumbnail is removed.

    Args:
      meta: metadata of the original picture.
      transposed: whether the rotation swapped width and height.

    Raises:
      ValueError: if the EXIF is missing or can't be read.
    """
    return meta._replace(
        exif=exif.reset_orientation(meta.exif),
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", meta.xmp),
        dpi=meta.dpi[::-1] if meta.dpi and transposed else meta.dpi,
    )


def reset_orientation(meta: Metadata) -> Metadata:
    """Returns the metadata of a picture that its decoder rotated upright.

    The resolution is unchanged. If the EXIF is missing or can't be read, the XMP is
    unchanged as well.
    """
    try:
        return turned(meta, transposed=False)
    except ValueError:
        return meta


def fitted(meta: Metadata, name: str) -> tuple[Metadata, tuple[str, ...]]:
    """Returns the metadata that a format can hold, and a note on each dropped part.

    Args:
      meta: metadata. Its `colour` must be empty, unless the format is PNG.
      name: name of a format in `formats.FORMATS`.
    """
    notes: list[str] = []

    def drop(field: str, what: str, why: str) -> None:
        nonlocal meta
        meta = meta._replace(**{field: Metadata._field_defaults[field]})
        notes.append(f"{what} was dropped: {why}.")

    shown = name.upper().replace("WEBP", "WebP")
    if name == "jpeg":
        meta = _with_comments(meta)
        if any(len(x) > _JPEG_COMMENT for x in meta.comments):
            drop("comments", "The comment", f"{shown} holds at most 65 kB")
    if meta.texts and name != "png":
        keys = b", ".join(sorted({x.key for x in meta.texts})).decode("latin-1")
        drop("texts", f"The PNG's text ({keys})", f"{shown} can't hold it")
    if meta.comments and name not in ("jpeg", "png"):
        drop("comments", "The comment", f"{shown} can't hold it")
    if name == "png" and any(b"\0" in x for x in meta.comments):
        drop("comments", "The comment", "it contains null bytes")
    if meta.resources and name in ("webp", "bmp"):
        is_iptc = photoshop.iptc(meta.resources)
        what = "IPTC" if is_iptc else "Photoshop's data"
        drop("resources", what, f"{shown} can't hold it")
    if name == "bmp":
        for field, title in (
            ("icc_profile", "The colour profile"),
            ("exif", "EXIF"),
            ("xmp", "XMP"),
        ):
            if getattr(meta, field):
                drop(field, title, f"{shown} can't hold it")
    most = {"png": _PNG_ICC, "jpeg": _JPEG_ICC}.get(name)
    if most and (length := len(meta.icc_profile)) > most:
        what = f"The colour profile of {length / 1e6:.1f} MB"
        drop("icc_profile", what, f"it is too long for {shown}; --format=tiff keeps it")
    for field, title, longest in (
        ("exif", "EXIF", _JPEG_EXIF),
        ("xmp", "XMP", _JPEG_XMP),
    ):
        if name == "jpeg" and (size := len(getattr(meta, field))) > longest:
            what = f"{title} of {size / 1e3:.0f} kB"
            drop(field, what, f"{shown} holds at most 65 kB")
    if name == "png" and meta.xmp and not _is_text(meta.xmp):
        drop("xmp", "XMP", "it is not in UTF-8")
    if name == "tiff" and meta.exif:
        meta, more = _fitted_to_tiff(meta)
        notes += more
    if name == "webp":
        meta = meta._replace(dpi=None)
    elif meta.dpi and max(meta.dpi) > _DPI[name]:
        across, down = meta.dpi
        drop(
            "dpi",
            f"The resolution of {across:g} x {down:g} dpi",
            f"{shown} holds at most {_DPI[name]:.0f} dpi",
        )
    return meta, tuple(notes)


def _with_comments(meta: Metadata) -> Metadata:
    """Moves the comments among a PNG's texts to the comments of a JPEG."""
    comments = (x.value for x in meta.texts if x.key == COMMENT)
    return meta._replace(
        comments=(*meta.comments, *comments),
        texts=tuple(x for x in meta.texts if x.key != COMMENT),
    )


def _is_text(xmp: bytes) -> bool:
    try:
        xmp.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in xmp


def _fitted_to_tiff(meta: Metadata) -> tuple[Metadata, list[str]]:
    """Reduces the EXIF to tags about the picture; returns notes on dropped parts."""
    try:
        tags, noted = exif.of_the_picture(exif.read(meta.exif))
    except ValueError as error:
        note = f"EXIF was dropped: it is damaged ({error})."
        return meta._replace(exif=b""), [note]
    notes = []
    if noted:
        notes.append("The camera's own notes (MakerNote) were dropped from EXIF.")
    if tags.damaged:
        notes.append("Damaged entries of EXIF were dropped.")
    return meta._replace(exif=exif.block(tags)), notes
