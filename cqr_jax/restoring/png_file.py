"""Chunks of PNG files: metadata, and pixels that Pillow does not read correctly.

Pillow reduces 16 bits to 8 except in gray, rejects files with damaged or long metadata,
and misreads the transparency of gray images of fewer or more than 8 bits.
"""

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import png
from PIL import Image

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata, photoshop
from cqr_jax.restoring.metadata import Found, Metadata, Text
from cqr_jax.restoring.picture import Picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR = (b"cICP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI")
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_XMP = b"XML:com.adobe.xmp"
# Metadata that ImageMagick stores as hexadecimal digits.
_RAW = b"Raw profile type "
_RAW_EXIF = (_RAW + b"exif", _RAW + b"APP1")
_RAW_XMP, _RAW_IPTC = _RAW + b"xmp", (_RAW + b"iptc", _RAW + b"8bim")
_LEVEL = 4  # of zlib: benchmarks/results/restoring_choices.md
_LONGEST_TEXT = 1 << 20  # bytes; many readers, such as Pillow, reject longer texts
_LONGEST_TEXTS = 1 << 25  # bytes of all texts together
_LONGEST = 1 << 26  # bytes of decompressed metadata
_INCH = 0.0254  # metres
_GRAY = 0  # colour type
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel
# Adam7: first row, first column, row step and column step of each pass.
_PASSES = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


class Header(NamedTuple):
    """Format of the pixels, from IHDR, and from tRNS of gray images.

    Attributes:
      width, height: size of the image in pixels.
      depth: bits per sample.
      colours: PNG's number of the colour type.
      interlaced: whether the image is interlaced (Adam7).
      clear: transparent gray value, if any.
    """

    width: int
    height: int
    depth: int
    colours: int
    interlaced: bool
    clear: int | None = None


class Opened(NamedTuple):
    """A parsed PNG file.

    Attributes:
      found: metadata, and a file that holds only the pixels.
      header: format of the pixels.
      ended: whether the original file has its end chunk.
    """

    found: Found
    header: Header
    ended: bool


def read(data: bytes) -> Opened:
    """Parses a PNG file.

    Args:
      data: bytes of the file, which begin with `SIGNATURE`.

    Raises:
      ImageError: if the file is an animation, or is truncated before its first pixel.
    """
    pieces, notes, ended, others = [SIGNATURE], [], False, []
    header = clear = None
    for name, start, content in _chunks(data):
        piece = data[start : start + 12 + len(content)]
        if name == b"IDAT" and start + 12 + len(content) >= len(data):  # truncated
            piece = _chunk(name, content)
        if name == b"IHDR" and len(content) == 13:
            width, height, depth, colours, _, _, interlaced = struct.unpack(
                ">IIBBBBB", content
            )
            header = Header(width, height, depth, colours, bool(interlaced))
        elif name == b"tRNS" and header and header.colours == _GRAY:
            if len(content) >= 2:
                clear = int.from_bytes(content[:2], "big") & (2**header.depth - 1)
            continue
        if name in _PIXELS:
            pieces.append(piece)
            ended |= name == b"IEND"
        elif zlib.crc32(piece[4:-4]) != int.from_bytes(piece[-4:], "big"):
            notes.append(f"The chunk {name.decode()} is damaged and was dropped.")
        else:
            others.append((name, content))
        if name == b"acTL" and int.from_bytes(content[:4], "big") > 1:
            frames = int.from_bytes(content[:4], "big")
            limits.check_frames(frames, "ffmpeg -i FILE frame_%04d.png")
    if header is None or header.colours not in _SAMPLES:
        raise ImageError("damaged or truncated: the header of the PNG can't be read")
    if not ended:
        pieces.append(_chunk(b"IEND", b""))
    meta, more = _metadata(others)
    found = Found(b"".join(pieces), meta, (*notes, *more))
    return Opened(found, header._replace(clear=clear), ended)


def missing(opened: Opened) -> str:
    """Describes the pixels that are missing in a file, as a clause; '' if none are."""
    expected, found = _length(opened.header), len(_rows(opened))
    if found >= expected:
        return ""
    height = opened.header.height
    if opened.header.interlaced:
        return "its finest details are missing"
    return f"its rows below row {height * found // expected} of {height} are missing"


def completed(opened: Opened) -> Opened:
    """Fills the missing pixels of a file with zeros: black or transparent."""
    raw, length = _rows(opened), _length(opened.header)
    packed = zlib.compress(raw[:length].ljust(length, b"\0"), 1)
    pieces = [SIGNATURE]
    for name, start, content in _chunks(opened.found.data):
        if name == b"IEND":
            pieces.append(_chunk(b"IDAT", packed))
        if name != b"IDAT":
            pieces.append(opened.found.data[start : start + 12 + len(content)])
    return opened._replace(found=opened.found._replace(data=b"".join(pieces)))


def _rows(opened: Opened) -> bytes:
    """Returns the available part of the filtered rows."""
    expander = zlib.decompressobj()
    most, found = _length(opened.header), bytearray()
    for name, _, content in _chunks(opened.found.data):
        if name == b"IDAT" and len(found) < most:
            try:
                found += expander.decompress(content, most - len(found))
            except zlib.error:
                break
    return bytes(found)


def _length(header: Header) -> int:
    """Returns the length of the filtered rows in bytes."""

    def of(width: int, height: int) -> int:
        bits = width * header.depth * _SAMPLES[header.colours]
        return height * (1 + -(-bits // 8)) if width else 0

    if not header.interlaced:
        return of(header.width, header.height)
    return sum(
        of(-(-(header.width - left) // across), -(-(header.height - top) // down))
        for top, left, down, across in _PASSES
        if header.width > left and header.height > top
    )


def pixels(opened: Opened, image: Image.Image) -> np.ndarray | None:
    """Reads the pixels of a file if Pillow does not read them correctly.

    Args:
      opened: the file.
      image: the same file, opened by Pillow.

    Returns:
      uint8 or uint16, (height, width, channels), including alpha; None for a file that
      Pillow reads correctly.
    """
    header = opened.header
    if header.depth == 16 and header.colours != _GRAY:
        reader = png.Reader(bytes=opened.found.data)
        reader.preamble()
        reader.sbit = None  # sBIT would shift the pixels right; keep all 16 bits
        width, height, rows, info = reader.asDirect()
        flat = np.vstack([np.asarray(row, np.uint16) for row in rows])
        return flat.reshape(height, width, info["planes"])
    if header.clear is None:
        return None
    if header.depth == 16:
        gray, scale = np.asarray(image).astype(np.uint16), 1
    else:
        gray, scale = np.asarray(image.convert("L")), 255 // (2**header.depth - 1)
    alpha = np.where(gray == header.clear * scale, 0, np.iinfo(gray.dtype).max)
    return np.stack([gray, alpha.astype(gray.dtype)], axis=-1)


def encode(picture: Picture) -> bytes:
    """Encodes a gray or RGB picture of 8 or 16 bits per channel as a PNG file."""
    stack = picture.stacked()
    height, width, channels = stack.shape
    buffer = io.BytesIO()
    if stack.dtype == np.uint8:
        flat = stack if channels > 1 else stack[..., 0]
        Image.fromarray(flat).save(buffer, "PNG", compress_level=_LEVEL)
    else:
        writer = png.Writer(
            width,
            height,
            greyscale=channels < 3,
            alpha=channels % 2 == 0,
            bitdepth=16,
            compression=_LEVEL,
        )
        writer.write(buffer, stack.reshape(height, -1))
    data, meta = buffer.getvalue(), picture.metadata
    behind = len(SIGNATURE) + 25  # IHDR
    chunks = [_chunk(name, content) for name, content in meta.colour]
    if meta.icc_profile:
        packed = b"icc\0\0" + zlib.compress(meta.icc_profile)
        chunks.append(_chunk(b"iCCP", packed))
    if meta.dpi:
        per_metre = (round(x / _INCH) for x in meta.dpi)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if meta.exif:
        chunks.append(_chunk(b"eXIf", meta.exif.removeprefix(exif.NAME)))
    if meta.xmp:
        chunks.append(_chunk(b"iTXt", _XMP + b"\0" * 5 + meta.xmp))
    if meta.resources:
        chunks.append(_chunk(b"zTXt", _raw(b"iptc", meta.resources)))
    chunks += [_chunk(*_comment(x)) for x in meta.comments]
    chunks += [_chunk(*x.chunk) for x in meta.texts]
    return b"".join([data[:behind], *chunks, data[behind:]])


def _comment(text: bytes) -> tuple[bytes, bytes]:
    """Returns the chunk of a comment: iTXt for UTF-8, otherwise tEXt (Latin-1)."""
    if text.isascii():
        return b"tEXt", metadata.COMMENT + b"\0" + text
    try:
        text.decode()
    except UnicodeDecodeError:
        return b"tEXt", metadata.COMMENT + b"\0" + text
    return b"iTXt", metadata.COMMENT + b"\0" * 5 + text


def _raw(kind: bytes, content: bytes) -> bytes:
    """Returns chunk content in the form that ImageMagick uses for other metadata.

    ImageMagick uses it for metadata for which PNG has no chunk.
    """
    digits = content.hex().encode()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    text = b"\n".join([b"", kind, b"%8d" % len(content), *lines, b""])
    return _RAW + kind + b"\0\0" + zlib.compress(text)


def _chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yields name, offset and content of each chunk, including a truncated IDAT."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        is_cut = place + 12 + length > len(data)
        if not name.isalpha() or (is_cut and name != b"IDAT"):
            return
        yield name, place, content
        if is_cut or name == b"IEND":
            return
        place += 12 + length


def _metadata(
    chunks: list[tuple[bytes, bytes]],
) -> tuple[Metadata, tuple[str, ...]]:
    found_exif = xmp = profile = resources = b""
    dpi, colour, notes = None, [], []
    texts: list[Text] = []
    total = 0
    for name, content in chunks:
        if name in COLOUR:
            colour.append((name, content))
        elif name == b"eXIf":
            found_exif = exif.NAME + content.removeprefix(exif.NAME)
        elif name == b"pHYs" and len(content) == 9 and content[8] == 1:
            across, down, _ = struct.unpack(">IIB", content)
            dpi = metadata.resolution(across * _INCH, down * _INCH)
        elif name == b"iCCP":
            try:
                profile = _expanded(content.split(b"\0", 1)[1][1:])
            except (IndexError, zlib.error):
                notes.append("The colour profile is damaged and was dropped.")
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _text(name, content)
            if key == _XMP:
                xmp = text
            elif key in _RAW_EXIF and not found_exif:
                raw = _raw_profile(text)
                start = raw.find(exif.NAME)
                found_exif = raw[start:] if start >= 0 else b""
            elif key == _RAW_XMP and not xmp:
                xmp = _raw_profile(text)
            elif key in _RAW_IPTC and not resources:
                raw = _raw_profile(text)
                resources, _ = photoshop.read(photoshop.of_iptc(raw) or raw)
            elif key and not key.startswith(_RAW):
                total += len(text)
                if len(text) > _LONGEST_TEXT or total > _LONGEST_TEXTS:
                    shown = f"{key.decode('latin-1')} of {len(text) / 1e6:.1f} MB"
                    notes.append(f"The text {shown} was dropped: it is too long.")
                    continue
                if name != b"iTXt":
                    text = text.decode("latin-1").encode()
                texts.append(Text(key, text, (name, content)))
    if not dpi:
        dpi = metadata.exif_resolution(found_exif)
    meta = Metadata(
        found_exif,
        profile,
        xmp,
        dpi,
        tuple(colour),
        resources=resources,
        texts=tuple(texts),
    )
    return meta, tuple(notes)


def _expanded(packed: bytes) -> bytes:
    expander = zlib.decompressobj()
    found = expander.decompress(packed, _LONGEST)
    if not expander.eof:
        raise zlib.error("truncated or too long")
    return found


def _text(name: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Returns the key and the text of a chunk; the text is b'' if it can't be read."""
    key, _, text = content.partition(b"\0")
    packed = name == b"zTXt"
    if name == b"zTXt":
        text = text[1:]
    elif name == b"iTXt":
        packed, parts = text[:1] == b"\1", text[2:].split(b"\0", 2)
        text = parts[2] if len(parts) == 3 else b""
    try:
        return key, _expanded(text) if packed else text
    except zlib.error:
        return key, b""


def _raw_profile(text: bytes) -> bytes:
    """Decodes metadata that ImageMagick stores as hexadecimal digits."""
    parts = re.fullmatch(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]*)", text)
    found = b""
    if parts:
        with contextlib.suppress(ValueError):
            found = bytes.fromhex(parts[1].decode())
    return found
