"""A page on this machine to try restoring: `cqr-restore --demo`.

Needs the extra `demo`.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np
from PIL import Image

from cqr_jax import formats
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError, extra
from cqr_jax.restoring import pictures, quality, restorer

with extra("demo"):
    import gradio

_HOST = "127.0.0.1"
_MAX_PIXELS = 50_000_000


def page(weights: str | None = None) -> gradio.Blocks:
    """The page.

    Args:
      weights: a deblocker's file; None for the one that is shipped.
    """
    run = restorer.load(weights)
    folder = tempfile.TemporaryDirectory(prefix="cqr-restore-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # what is dropped goes with it

    def restore(path: str | None, strength: float):
        """What to show: the two pictures, how good they are, a file to download."""
        if not path:
            return None, "", None
        try:
            before = pictures.decode(pathlib.Path(path).read_bytes(), _MAX_PIXELS)
            (after,) = restorer.restore_pictures(run, [before], strength)
            own = tempfile.mkdtemp(dir=folder.name)  # two may have one name
            target = pathlib.Path(own, f"{pathlib.Path(path).stem}.png")
            target.write_bytes(pictures.encode(after, "png"))
            shown = tuple(map(_shown, (before, after)))
        except ImageError as error:
            name = pathlib.Path(path).name
            gradio.Warning(f"{name}: {error}")
            return None, "", None  # nothing of the picture before it stays
        return shown, _qualities(before, after), str(target)

    with gradio.Blocks(title="cqr-restore", analytics_enabled=False) as blocks:
        gradio.Markdown(
            "# Restore a JPEG\nDrop an image that is, or once was, a JPEG. It stays on "
            f"this machine. At most {_MAX_PIXELS / 1e6:g} megapixels."
        )
        file = gradio.File(
            label="Image", file_types=list(formats.SUFFIXES), elem_id="file"
        )
        strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength")
        slider = gradio.ImageSlider(
            label="Before and after", interactive=False, elem_id="comparison"
        )
        scores = gradio.Markdown(elem_id="quality")
        download = gradio.DownloadButton("Download the PNG", elem_id="download")
        blocks.folder = folder  # lives as long as the page
        for changed in (file.change, strength.release):
            changed(restore, [file, strength], [slider, scores, download])
    return blocks


def _shown(picture: pictures.Picture) -> Image.Image:
    """Upright, in RGB and 8 bits."""
    picture = pictures.upright(picture)
    if picture.pixels.dtype == np.uint16:
        pixels = (picture.pixels >> 8).astype(np.uint8)
        picture = picture._replace(pixels=pixels, alpha=None)
    return pictures.to_rgb(pictures.to_pillow(picture), picture.metadata)


def _qualities(before: pictures.Picture, after: pictures.Picture) -> str:
    """A table in Markdown of what the ranker says of both."""
    found = quality.measure(before)
    restored = quality.measure(after._replace(compression=None))
    rows = [
        f"| {name} | {x.score:.2f} | {x.factor} ({x.source}) |"
        for name, x in (("before", found), ("after", restored))
    ]
    if before.compression and found.factor >= quality.TOO_GOOD:
        rows += ["", f"From QF {quality.TOO_GOOD} on, JPEGs {quality.LOSE}."]
    return "\n".join(["| | ranker's score | QF |", "|---|---|---|", *rows])


def serve(weights: str | None, port: int) -> None:
    """Shows the page on loopback until Ctrl-C.

    Args:
      weights: as of `page`.
      port: 0 for any that is free.

    Raises:
      UserError: the port is in use.
    """
    blocks = page(weights)
    try:
        _, url, _ = blocks.launch(
            server_name=_HOST,
            server_port=port or None,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
        )
    except OSError as error:
        raise UserError(f"--port={port}: {error}") from None
    print(f"{url} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
    blocks.folder.cleanup()
    sys.stdout.flush()
    os._exit(0)  # an orderly exit at times waited for ever for the server's threads
