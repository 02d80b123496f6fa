"""Directories of EXIF and TIFF files.

Values are copied byte for byte. A directory holds entries by tag. A tag of a
sub-directory (EXIF, GPS, interoperability) maps to that directory instead of to its
offset, so that directories can be written at other offsets.
"""

import struct
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from PIL import ExifTags

NAME = b"Exif\0\0"  # prefix of EXIF in a JPEG file
ORIENTATION = int(ExifTags.Base.Orientation)
MAKER_NOTE = int(ExifTags.Base.MakerNote)
EXIF, GPS = int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)
_INTEROP = int(ExifTags.IFD.Interop)

# Tags of the first directory that describe the picture rather than the file.
_PICTURE_TAGS = frozenset(
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.Copyright,
        ExifTags.Base.Orientation,
        ExifTags.IFD.Exif,
        ExifTags.IFD.GPSInfo,
    )
)

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SIZES |= {13: 4, 129: 1}  # type -> bytes per value; 129 is UTF-8
_LONG_SIZES = {16: 8, 17: 8, 18: 8}  # types of BigTIFF
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}


class Entry(NamedTuple):
    """Values of one tag.

    Attributes:
      kind: TIFF's number of their type.
      number: number of values.
      value: bytes of the values, in the byte order of the file.
    """

    kind: int
    number: int
    value: bytes


Directory = dict[int, Any]  # tag -> an `Entry`, or the directory to which it points


class Tags(NamedTuple):
    """Directories of an EXIF block or a TIFF file.

    Attributes:
      order: byte order, '<' or '>'.
      first: the first directory.
      pages: number of directories in the chain that starts with the first.
      damaged: whether unreadable entries were dropped.
    """

    order: Literal["<", ">"]
    first: Directory
    pages: int = 1
    damaged: bool = False

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Returns the unsigned integers of a tag in the first directory.

        Args:
          tag: number of the tag.
          default: result if the tag is missing or holds other types.
        """
        entry = self.first.get(tag)
        if not isinstance(entry, Entry) or entry.kind not in _NUMBERS:
            return default
        return struct.unpack(
            f"{self.order}{entry.number}{_NUMBERS[entry.kind]}", entry.value
        )

    def rational(self, tag: int) -> float | None:
        """Returns the first unsigned rational number of a tag in the first directory.

        Returns None if the tag is missing or holds another type, or if the denominator
        is 0.
        """
        entry = self.first.get(tag)
        if not isinstance(entry, Entry) or entry.kind != _RATIONAL or not entry.number:
            return None
        above, below = struct.unpack_from(f"{self.order}II", entry.value)
        return above / below if below else None


class _Reader:
    """Reader of directories; `damaged` is set if an entry can't be read."""

    def __init__(self, data: bytes):
        self.data, self.damaged = data, False
        # Bytes of values that may still be read. Values that overlap could otherwise
        # take memory without limit.
        self.left = 2 * len(data)
        if data[:2] not in (b"II", b"MM"):
            raise ValueError("no byte order")
        self.order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
        (version,) = self.unpack("H", 2)
        if version not in (42, 43):
            raise ValueError(f"unknown version {version}")
        self.big = version == 43
        # Formats of an offset and of the number of entries, and bytes per entry.
        self.offset, self.count = ("Q", "Q") if self.big else ("I", "H")
        self.size = 20 if self.big else 12
        self.sizes = _SIZES | _LONG_SIZES if self.big else _SIZES

    def unpack(self, form: str, at: int) -> tuple:
        if at > len(self.data):  # struct raises an OverflowError for a very large one
            raise ValueError("an offset beyond the end")
        return struct.unpack_from(self.order + form, self.data, at)

    def number(self, value: bytes) -> int:
        return int.from_bytes(value, "little" if self.order == "<" else "big")

    def start(self) -> int:
        return self.unpack(self.offset, 8 if self.big else 4)[0]

    def places(self, at: int) -> tuple[range, int]:
        """Returns the offsets of a directory's entries, and that of the next link."""
        (count,) = self.unpack(self.count, at)
        begin = at + struct.calcsize(f"<{self.count}")
        end = begin + self.size * count
        if end > len(self.data):
            raise ValueError("a truncated directory")
        return range(begin, end, self.size), end

    def chain(self) -> Iterator[int]:
        """Yields the offsets of the directories in the chain."""
        seen: set[int] = set()
        at = self.start()
        while at and at not in seen:
            seen.add(at)
            try:
                _, end = self.places(at)
                yield at
                (at,) = self.unpack(self.offset, end)
            except (ValueError, struct.error):
                if len(seen) == 1:
                    raise
                self.damaged = True
                return

    def directory(self, at: int, depth: int = 1) -> Directory:
        found: Directory = {}
        for place in self.places(at)[0]:
            try:
                tag, entry = self.entry(place)
                if tag in _children(depth):
                    found[tag] = self.directory(self.number(entry.value), depth + 1)
                else:
                    found[tag] = entry
            except (ValueError, struct.error):
                self.damaged = True
        return found

    def entry(self, place: int) -> tuple[int, Entry]:
        tag, kind, count = self.unpack("HH" + self.offset, place)
        if kind not in self.sizes:
            raise ValueError(f"unknown type {kind}")
        length = count * self.sizes[kind]
        room = struct.calcsize(f"<{self.offset}")
        start = place + self.size - room
        if length > room:
            (start,) = self.unpack(self.offset, start)
        if start + length > len(self.data):
            raise ValueError("truncated values")
        self.left -= length
        if self.left < 0:
            raise ValueError("values that overlap")
        value = self.data[start : start + length]
        return tag, Entry(kind, count, value)


def _children(depth: int) -> tuple[int, ...]:
    """Returns the tags of sub-directories in a directory at this depth."""
    return {1: (EXIF, GPS), 2: (_INTEROP,)}.get(depth, ())


def named(data: bytes) -> bytes:
    """Returns an EXIF block that begins with `NAME`, or b'' for no block."""
    return NAME + data.removeprefix(NAME) if data else b""


def read(data: bytes) -> Tags:
    """Reads the directories of an EXIF block or a TIFF file.

    The EXIF block may begin with `NAME`.

    Raises:
      ValueError: if the first directory can't be read.
    """
    try:
        reader = _Reader(data.removeprefix(NAME))
        chain = list(reader.chain())
        if not chain:
            raise ValueError("no directory")
        first = reader.directory(chain[0])
    except struct.error as error:
        raise ValueError(str(error)) from None
    return Tags(reader.order, first, len(chain), reader.damaged)


def directory_bytes(directory: Directory, order: str, start: int) -> bytes:
    """Encodes a directory with its values and sub-directories at an offset.

    Args:
      directory: directory with values in the byte order `order`.
      order: byte order, '<' or '>'.
      start: offset of the directory in the file, an even number.
    """
    items = sorted(
        (tag, x)
        for tag, x in directory.items()
        if isinstance(x, dict) or x.kind in _SIZES
    )
    entries, behind = b"", b""
    place = start + 2 + 12 * len(items) + 4
    for tag, item in items:
        if isinstance(item, dict):
            kind, count, length = _LONG, 1, 5
            value = directory_bytes(item, order, place + len(behind))
        else:
            kind, count, value = item
            length = len(value)
        if length <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", place + len(behind))
            behind += value + bytes(len(value) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + field
    return struct.pack(f"{order}H", len(items)) + entries + bytes(4) + behind


def block(tags: Tags) -> bytes:
    """Encodes the first directory as an EXIF block with `NAME`; b'' if it is empty."""
    if not tags.first:
        return b""
    head = {"<": b"II", ">": b"MM"}[tags.order] + struct.pack(f"{tags.order}HI", 42, 8)
    return NAME + head + directory_bytes(tags.first, tags.order, 8)


def of_the_picture(tags: Tags) -> tuple[Tags, bool]:
    """Keeps the tags that describe the picture rather than its file.

    The size, for example, describes the file. The camera's own notes (MakerNote) are
    removed too, because they hold offsets into their original file.

    Returns:
      The tags, and whether camera notes were removed.
    """
    first = {tag: x for tag, x in tags.first.items() if tag in _PICTURE_TAGS}
    inner = first.get(EXIF)
    noted = isinstance(inner, dict) and MAKER_NOTE in inner
    if isinstance(inner, dict):
        first[EXIF] = {tag: x for tag, x in inner.items() if tag != MAKER_NOTE}
    kept: Directory = {tag: x for tag, x in first.items() if x != {}}
    return tags._replace(first=kept, pages=1), noted


def reset_orientation(exif: bytes) -> bytes:
    """Sets the orientation in EXIF to 1 (upright) and removes the thumbnail.

    The thumbnail is removed by clearing the link to its directory; its bytes stay. All
    other bytes are unchanged.

    Raises:
      ValueError: if the first directory can't be read.
    """
    data = exif.removeprefix(NAME)
    found = bytearray(data)
    try:
        reader = _Reader(data)
        places, end = reader.places(reader.start())
        for place in places:
            if reader.unpack("H", place)[0] == ORIENTATION:
                one = (_SHORT, 1, 1, 0)
                struct.pack_into(f"{reader.order}HIHH", found, place + 2, *one)
        if end + 4 <= len(found):
            struct.pack_into(f"{reader.order}I", found, end, 0)  # no thumbnail
    except struct.error as error:
        raise ValueError(str(error)) from None
    return exif[: len(exif) - len(data)] + bytes(found)
