"""Recognises formats that are not read, so that error messages can name them."""

import re

# The first bytes of a file, and the name of its format.
_FORMATS = (
    (re.compile(rb"....ftypcr[x3]", re.DOTALL), "CR3 (raw)"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"8BPS"), "PSD (Photoshop)"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL), "SVG"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
    (re.compile(rb"II\xbc\x01"), "JPEG XR"),
    (re.compile(rb"FUJIFILMCCD-RAW|IIRO|IIRS|MMOR|IIU\0"), "a camera (raw)"),
    (re.compile(rb"....ftyp(isom|mp4[12]|qt  |avc1)", re.DOTALL), "a video"),
    (re.compile(rb"P[1-7]\s"), "PNM"),
)


def name(data: bytes) -> str | None:
    """Returns the name of a file's format; None if it is not one of those above."""
    start = data[:4096]
    return next((name for form, name in _FORMATS if form.match(start)), None)
