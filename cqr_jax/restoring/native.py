"""Captures the messages that libjpeg and libtiff print to standard error.

These messages do not name a file, and files are decoded on several threads. The callers
turn the captured messages into notes on the file concerned.
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
_LIBJPEG_WARNING = re.compile(
    rb"(Corrupt JPEG|Premature end of JPEG|Warning: unknown JFIF|Unknown Adobe|"
    rb"Invalid SOS|Inconsistent progression|Application transferred)[^\n]*\n"
)
_redirect_lock = threading.Lock()
_current = threading.local()  # .messages: the list of the thread's open `libtiff`
_Handler = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p
)  # arguments: module, format string, va_list


@contextlib.contextmanager
def libjpeg() -> Iterator[list[str]]:
    """Captures libjpeg's warnings while the context is open.

    Standard error of the whole process is redirected. Other output is printed when the
    context closes. Only one thread can be in the context at a time, so use it around
    calls that take milliseconds.

    Yields:
      A list, to which the warnings are added when the context closes.
    """
    lines: list[str] = []
    with _redirect_lock, contextlib.ExitStack() as stack:
        try:
            saved = os.dup(_STDERR)
        except OSError:  # standard error is closed
            yield lines
            return
        stack.callback(os.close, saved)
        file = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(file.fileno(), _STDERR)
        try:
            yield lines
        finally:
            os.dup2(saved, _STDERR)
            file.seek(0)
            printed = file.read()
            lines += (x[0].decode().strip() for x in _LIBJPEG_WARNING.finditer(printed))
            if others := _LIBJPEG_WARNING.sub(b"", printed):
                os.write(_STDERR, others)


@contextlib.contextmanager
def libtiff() -> Iterator[list[str]]:
    """Captures libtiff's errors while Pillow decodes a TIFF in this thread.

    The first call replaces libtiff's handlers. From then on, the process prints no
    errors or warnings of libtiff. If libtiff is linked statically into Pillow, its
    handlers can't be replaced, and nothing is captured.

    Yields:
      A list, to which the errors are added. They are format strings without values.
    """
    _install_libtiff_handlers()
    messages: list[str] = []
    _current.messages = messages
    try:
        yield messages
    finally:
        del _current.messages


@_Handler
def _on_libtiff_error(module, message, values):
    del module, values
    messages = getattr(_current, "messages", None)
    if messages is not None:
        messages.append((message or b"").decode(errors="replace"))


@functools.cache
def _install_libtiff_handlers() -> None:
    home = pathlib.Path(PIL.__file__).parent
    places = [
        *home.parent.glob("[Pp]illow.libs/libtiff*"),  # in wheels for Linux
        *home.glob(".dylibs/libtiff*"),  # in wheels for macOS
        ctypes.util.find_library("tiff"),
    ]
    with contextlib.suppress(OSError, AttributeError, StopIteration):
        library = ctypes.CDLL(str(next(x for x in places if x)))
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetWarningHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(_on_libtiff_error)
        library.TIFFSetWarningHandler(None)
