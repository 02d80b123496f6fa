"""Reads the XMP of GIF files, which Pillow does not read."""

import re

SIGNATURES = (b"GIF87a", b"GIF89a")
# XMP is not split into sub-blocks. The bytes after it (the "magic trailer" of the XMP
# specification) lead readers that expect sub-blocks to the end of the extension.
_XMP = re.compile(rb"!\xff\x0bXMP DataXMP(.*?)\x01\xff\xfe\xfd\xfc", re.DOTALL)


def xmp(data: bytes) -> bytes:
    """Returns the XMP of a file; b'' if there is none."""
    found = _XMP.search(data)
    return found[1] if found else b""
