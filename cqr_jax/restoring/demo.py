"""Local web page to try the restoration: `cqr-restore --demo`.

It needs the extra `demo`.
"""

import html
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax import formats
from cqr_jax.data.compression import (
    SUBSAMPLING_NAMES,
    Compression,
    libjpeg,
    nearest_quality,
)
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError, extra
from cqr_jax.restoring import network, pictures, quality, restorer
from cqr_jax.restoring.picture import Picture
from cqr_jax.restoring.quality import Quality
from cqr_jax.restoring.restorer import Restoration

with extra("demo"):
    import gradio

_HOST = "127.0.0.1"
_MAX_PIXELS = 50_000_000
_THUMBNAIL = 320  # longer side in pixels
_DELETE = (3600, 86_400)  # each hour, files older than a day are deleted
_COLUMNS = (
    "File",
    "Quantisation tables",
    "Given to the network",
    "Projected",
    "Ranker's score",
)
_SAMPLINGS = SUBSAMPLING_NAMES | {(2, 1): "4:4:0", (1, 4): "4:1:1"}
_DIAL = "Quality factor for the network"
_DIAL_HELP = (
    "0: that of each file. 1 to 100: this one for all files, without projection; lower "
    "values remove more."
)
_NO_DIAL_HELP = "These weights take no quality factor."


class _Shown(NamedTuple):
    """The page's view of a restored file: paths of PNGs, and the cells of its row."""

    before: str
    after: str
    thumbnail: str
    download: str
    row: tuple[str, ...]


def page(weights: str | None = None) -> gradio.Blocks:
    """Builds the page.

    Args:
      weights: path of a deblocker's weights; None for those in the package.

    Raises:
      UserError: if the weights can't be read.
    """
    run = restorer.load(weights)
    folder = tempfile.TemporaryDirectory(prefix="cqr-restore-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # uploads are deleted with the folder

    def restore(
        paths: list[str] | None,
        strength: float,
        factor: float,
        former: str,
        progress=gradio.Progress(),  # noqa: B008  # Gradio finds it by its default
    ):
        """Restores all files; returns the values of the output components below."""
        own = tempfile.mkdtemp(dir=folder.name)
        values = _restore_all(
            run, paths or [], pathlib.Path(own), strength, int(factor) or None, progress
        )
        _delete(former)
        return (*values, own)

    with gradio.Blocks(
        title="cqr-restore", analytics_enabled=False, delete_cache=_DELETE
    ) as blocks:
        gradio.Markdown(
            "# Restore JPEGs\nDrop images here that are JPEGs, or once were. They are "
            "processed on this machine. Each may have up to "
            f"{_MAX_PIXELS / 1e6:g} megapixels."
        )
        file = gradio.File(
            label="Images",
            file_count="multiple",
            file_types=sorted(formats.READ_SUFFIXES),
            elem_id="file",
        )
        strength, dial = _sliders(restorer.takes_compression(run))
        comparison = gradio.ImageSlider(
            label="Before and after", interactive=False, elem_id="comparison"
        )
        gallery = _gallery()
        scores = gradio.Markdown(elem_id="quality")
        with gradio.Row():
            png = gradio.DownloadButton(
                "Download the PNG", elem_id="download", visible=False
            )
            archive = gradio.DownloadButton(
                "Download all (ZIP)", elem_id="archive", visible=False
            )
        pairs = gradio.State([])
        own = gradio.State("", delete_callback=_delete)  # folder of the results
        blocks.folder = folder  # the folder is deleted with this object
        gradio.on(
            [file.change, strength.release, dial.release],
            restore,
            [file, strength, dial, own],
            [pairs, comparison, gallery, scores, png, archive, own],
            show_progress_on=comparison,
            trigger_mode="always_last",
        )
        gallery.select(_select, pairs, comparison)
    return blocks


def _sliders(takes_compression: bool) -> tuple[gradio.Slider, gradio.Slider]:
    """Adds the sliders of the strength and of the quality factor to the page."""
    with gradio.Row():
        strength = gradio.Slider(
            0, 1, 1, step=0.05, label="Strength", info="0 leaves images unchanged.",
            elem_id="strength",
        )  # fmt: skip
        dial = gradio.Slider(
            0, 100, 0, step=1, label=_DIAL, interactive=takes_compression,
            info=_DIAL_HELP if takes_compression else _NO_DIAL_HELP, elem_id="dial",
        )  # fmt: skip
    return strength, dial


def _gallery() -> gradio.Gallery:
    return gradio.Gallery(
        label="Restored images: click one to compare it",
        columns=6,
        height=220,
        object_fit="contain",
        fit_columns=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="gallery",
    )


def _delete(folder: str) -> None:
    """Deletes a folder of results that are no longer shown."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _select(pairs: list[tuple[str, str]], event: gradio.SelectData):
    """Returns the pair of the image that was clicked in the gallery."""
    return pairs[event.index] if event.index < len(pairs) else None


def _restore_all(
    run: network.Run,
    paths: list[str],
    folder: pathlib.Path,
    strength: float,
    factor: int | None,
    progress: gradio.Progress,
) -> tuple:
    """Restores files into a folder.

    Returns:
      The values of the page's pairs, comparison, gallery, table and downloads.
    """
    found: list[_Shown] = []
    rows: list[tuple[str, ...]] = []
    names = [pathlib.Path(path).name for path in paths]
    targets = distinct(names, ".png")
    for i, (path, target) in enumerate(zip(paths, targets, strict=True)):
        progress((i, len(names)), desc=names[i], unit="images")
        try:
            done = _restore(run, path, folder / target, strength, factor)
        except (ImageError, OSError) as error:
            rows.append((f"{names[i]}: {error}",))
        else:
            found.append(done)
            rows.append(done.row)
    pairs = [(done.before, done.after) for done in found]
    archive = _archive(folder, [done.download for done in found]) if found else None
    single = found[0].download if len(names) == len(found) == 1 else None
    return (
        pairs,
        pairs[0] if pairs else None,
        gradio.Gallery(
            [(done.thumbnail, pathlib.Path(done.download).name) for done in found],
            selected_index=0 if found else None,
        ),
        table(rows),
        gradio.DownloadButton(value=single, visible=bool(single)),
        gradio.DownloadButton(value=archive, visible=bool(archive)),
    )


def _restore(
    run: network.Run,
    path: str,
    target: pathlib.Path,
    strength: float,
    factor: int | None,
) -> _Shown:
    """Restores a file to `target`, and writes the images to show in a folder beside it.

    Raises:
      ImageError: if the file can't be restored.
    """
    data = pathlib.Path(path).read_bytes()
    before = pictures.decode(data, _MAX_PIXELS, stored=factor is None)
    (done,) = restorer.restorations(run, [before], strength, quality_factor=factor)
    target.write_bytes(pictures.encode(done.picture, "png"))
    found = quality.measure(before)
    after = quality.score(done.picture)
    height, width = before.pixels.shape[:2]
    row = (
        f"{pathlib.Path(path).name}, {width}x{height}",
        tables_say(before.compression, found),
        condition_of(done),
        projection_of(done),
        f"{found.score:.2f} → {after:.2f}",
    )
    folder = target.parent / "shown"
    folder.mkdir(exist_ok=True)
    seen = [
        str(folder / target.with_suffix(f".{name}.png").name)
        for name in ("before", "after", "thumbnail")
    ]
    _image(before).save(seen[0], compress_level=1)
    image = _image(done.picture)
    image.save(seen[1], compress_level=1)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(seen[2])
    return _Shown(seen[0], seen[1], seen[2], str(target), row)


def _image(picture: Picture) -> Image.Image:
    """Converts a picture to upright 8-bit RGB."""
    picture = pictures.upright(picture)
    if picture.pixels.dtype == np.uint16:
        pixels = (picture.pixels >> 8).astype(np.uint8)
        picture = picture._replace(pixels=pixels, alpha=None)
    return pictures.to_rgb(pictures.to_pillow(picture), picture.metadata)


def distinct(names: Iterable[str], suffix: str) -> list[str]:
    """Replaces the suffixes of file names and makes the names distinct.

    Args:
      names: names of files, which may have equal stems.
      suffix: suffix of the results, such as '.png'.

    Returns:
      The stems with the suffix. If stems are equal, ignoring case, a number is appended
      to the later ones.
    """
    found: dict[str, str] = {}  # lower-case stem -> name; some systems ignore case
    for name in names:
        stem = pathlib.PurePath(name).stem
        number, own = 1, stem
        while own.lower() in found:
            number += 1
            own = f"{stem}-{number}"
        found[own.lower()] = own + suffix
    return list(found.values())


def _archive(folder: pathlib.Path, paths: list[str]) -> str:
    """Writes a ZIP of files under their own names, without compressing them again."""
    target = folder / "restored.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            archive.write(path, pathlib.Path(path).name)
    return str(target)


def tables_say(compression: Compression | None, found: Quality) -> str:
    """Returns the page's description of a file's quantisation tables.

    Args:
      compression: compression of a JPEG; None for other files.
      found: quality of the picture from `quality.measure`.
    """
    if compression is None:
        said = {
            "pixels": f"its pixels tell QF {found.quality_factor}",
            "ranker": f"the ranker estimates QF {found.quality_factor}",
        }
        return f"no tables; {said.get(found.quality_factor_from, 'quality unknown')}"
    factor, equal = nearest_quality(compression.luma)
    # Some encoders use the first table for all components, as Pillow does for CMYK.
    usual = (None, compression.luma, libjpeg(factor).chroma)
    known = equal and compression.chroma in usual
    sampling = "gray"
    if compression.chroma:
        down, across = compression.sampling
        sampling = _SAMPLINGS.get((down, across), f"chroma 1/{across} x 1/{down}")
    kind = "libjpeg's" if known else "not libjpeg's"
    return f"{'' if known else 'about '}QF {factor}, {sampling}, {kind}"


def condition_of(done: Restoration) -> str:
    """Returns the page's description of the compression given to the network."""
    if done.quality_factor is None:
        return "nothing"
    origin = {
        "tables": "from its tables",
        "hand": "set by hand",
        "pixels": "found from its pixels",
    }
    return f"QF {done.quality_factor}, {origin[done.quality_factor_from]}"


def projection_of(done: Restoration) -> str:
    """Returns the page's text on whether the result was projected, or why not."""
    if done.projected:
        return "yes"
    if done.compressed_before:
        return "no: compressed before"
    if done.quality_factor_from == "hand":
        return "no: QF set by hand"
    return "no: no stored coefficients"


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns an HTML table for use in Markdown; a row of one cell spans all columns.

    Args:
      rows: texts of the cells, which are escaped. Rows of one cell are failures.
    """
    if not rows:
        return ""
    lines = [_row("th", "", _COLUMNS)]
    for row in rows:
        across = f' colspan="{len(_COLUMNS)}"' if len(row) == 1 else ""
        lines.append(_row("td", across, row))
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, attributes: str, cells: Iterable[str]) -> str:
    inner = "".join(f"<{tag}{attributes}>{html.escape(x)}</{tag}>" for x in cells)
    return f"<tr>{inner}</tr>"


def serve(weights: str | None, port: int) -> None:
    """Serves the page on loopback until Ctrl-C.

    Args:
      weights: as in `page`.
      port: port number; 0 for any free port.

    Raises:
      UserError: if the port is in use, or the weights can't be read.
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
    print(f"{url} (Ctrl-C stops the server)", flush=True)
    blocks.block_thread()
    blocks.folder.cleanup()
    sys.stdout.flush()
    os._exit(0)  # a normal exit sometimes waits forever for the server's threads
