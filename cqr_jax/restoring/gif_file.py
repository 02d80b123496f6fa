"""GIF files: what Pillow lacks in reading their metadata."""

import re

SIGNATURES = (b"GIF87a", b"GIF89a")
# XMP stands as it is, with bytes behind it that lead readers of blocks to the end.
_XMP = re.compile(rb"!\xff\x0bXMP DataXMP(.*?)\x01\xff\xfe\xfd\xfc", re.DOTALL)


def xmp(data: bytes) -> bytes:
    """The XMP of a file, if there is some."""
    found = _XMP.search(data)
    return found[1] if found else b""
