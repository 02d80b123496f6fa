"""What libraries in C print to the terminal, caught, so that it becomes notes.

Such lines name no file, and files are read on several threads.
"""

import contextlib
import ctypes
import ctypes.util
import functools
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterator

import PIL

_STDERR = 2
_LIBJPEG = re.compile(
    rb"(Corrupt JPEG|Premature end of JPEG|Warning: unknown JFIF|Unknown Adobe|"
    rb"Invalid SOS|Inconsistent progression|Application transferred)[^\n]*\n"
)
_capturing = threading.Lock()
_heard = threading.local()
_Handler = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p
)  # the library, the message, its values


@contextlib.contextmanager
def libjpeg() -> Iterator[list[str]]:
    """Around a call that may print libjpeg's warnings: the list gets them.

    What else is printed meanwhile, by other threads, appears when the call is over.
    It is for calls that take milliseconds: one at a time runs.
    """
    lines: list[str] = []
    with _capturing, contextlib.ExitStack() as stack:
        try:
            terminal = os.dup(_STDERR)
        except OSError:  # there is none
            yield lines
            return
        stack.callback(os.close, terminal)
        file = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(file.fileno(), _STDERR)
        try:
            yield lines
        finally:
            os.dup2(terminal, _STDERR)
            file.seek(0)
            printed = file.read()
            lines += (x[0].decode().strip() for x in _LIBJPEG.finditer(printed))
            if others := _LIBJPEG.sub(b"", printed):
                os.write(_STDERR, others)


@contextlib.contextmanager
def libtiff() -> Iterator[list[str]]:
    """Around decoding a TIFF by Pillow: the list gets what its libtiff calls errors.

    The values in them are left out. From the first call on this process prints none of
    them, where libtiff is a library of its own beside Pillow.
    """
    _listen_to_libtiff()
    messages: list[str] = []
    _heard.messages = messages
    try:
        yield messages
    finally:
        del _heard.messages


@_Handler
def _hear(library, message, values):
    del library, values
    heard = getattr(_heard, "messages", None)
    if heard is not None:
        heard.append((message or b"").decode(errors="replace"))


@functools.cache
def _listen_to_libtiff() -> None:
    home = pathlib.Path(PIL.__file__).parent
    places = [
        *home.parent.glob("[Pp]illow.libs/libtiff*"),  # of wheels for Linux
        *home.glob(".dylibs/libtiff*"),  # for macOS
        ctypes.util.find_library("tiff"),
    ]
    with contextlib.suppress(OSError, AttributeError, StopIteration):
        library = ctypes.CDLL(str(next(x for x in places if x)))
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetWarningHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(_hear)
        library.TIFFSetWarningHandler(None)
