"""Tests that messages of libjpeg and libtiff become notes and are not printed."""

import concurrent.futures
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import native, pictures

RGB = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
LIBTIFF = ("libtiff reports that the picture is damaged.",)


def _saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _damaged_jpeg():
    data = bytearray(_saved(Image.fromarray(RGB), "jpeg"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    return bytes(data)


def _fax():
    """Returns a damaged TIFF that libtiff decodes with errors."""
    bits = Image.fromarray(RGB[..., 0] // 200 * 255).convert("1")
    data = bytearray(_saved(bits, "tiff", compression="group4"))
    data[1000:1008] = b"\xff" * 8
    return bytes(data)


def test_libjpeg_warnings_become_a_note(capfd):
    found = pictures.decode(_damaged_jpeg(), stored=True)
    (note,) = found.notes
    assert note.startswith(
        "libjpeg reports that the picture is damaged: Corrupt JPEG data: "
    )
    whole = pictures.decode(_saved(Image.fromarray(RGB), "jpeg"), stored=True)
    assert whole.stored
    assert whole.notes == ()
    assert capfd.readouterr().err == ""


def test_other_output_is_printed_when_the_context_closes(capfd):
    with native.libjpeg() as warnings:
        os.write(2, b"a line\nCorrupt JPEG data: bad Huffman code\nanother\n")
        os.write(2, b"Warning: unknown JFIF revision number 9.96\n")
    assert capfd.readouterr().err == "a line\nanother\n"
    assert warnings == [
        "Corrupt JPEG data: bad Huffman code",
        "Warning: unknown JFIF revision number 9.96",
    ]
    with pytest.raises(KeyError), native.libjpeg():
        raise KeyError
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_libtiff_errors_become_a_note(capfd):
    assert pictures.decode(_fax()).notes == LIBTIFF
    data = bytearray(_saved(Image.fromarray(RGB), "tiff", compression="tiff_lzw"))
    data[5000:5100] = b"\xff" * 100
    with pytest.raises(ImageError, match="damaged or truncated"):
        pictures.decode(bytes(data))
    whole = pictures.decode(
        _saved(Image.fromarray(RGB), "tiff", compression="tiff_lzw")
    )
    assert whole.notes == ()
    assert capfd.readouterr().err == ""


def test_pictures_decoded_on_several_threads_get_their_own_notes(capfd):
    good = _saved(Image.fromarray(RGB), "jpeg")
    good_tiff = _saved(Image.fromarray(RGB), "tiff", compression="tiff_lzw")
    cases = [_damaged_jpeg(), good, _fax(), good_tiff] * 10
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: pictures.decode(x, stored=True), cases))
    notes = [x.notes for x in found]
    for start in range(0, len(cases), 4):
        jpeg, none, tiff, nothing = notes[start : start + 4]
        assert (len(jpeg), none, tiff, nothing) == (1, (), LIBTIFF, ())
    assert all(x.stored for x in found[1::4])
    assert capfd.readouterr().err == ""


def test_jpegs_are_decoded_without_standard_error():
    code = """
import io, sys
import numpy as np
from PIL import Image
from cqr_jax.restoring import pictures
buffer = io.BytesIO()
Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "jpeg")
print(len(pictures.decode(buffer.getvalue(), stored=True).stored))
"""
    run = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "1\n"
