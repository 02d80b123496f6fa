"""PSNR, SSIM and PSNR-B of plain JPEG and of a deblocker on sets of images."""

import json
import logging
import pathlib
import sys
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from cqr_jax import figures, metrics, weights
from cqr_jax.data import jpeg
from cqr_jax.errors import UserError
from data_prep import sources

_log = logging.getLogger(__name__)

# Folders of the named test sets under `set_dir`.
SETS = {
    "classic5": "classic5",
    "live1": "live1",
    "bsds500-test": "bsds500/test",
    "bsds500": "bsds500",
}
JPEG, OURS = "jpeg", "ours"
_METRICS = {"psnr": metrics.psnr, "ssim": metrics.ssim, "psnr_b": metrics.psnr_b}


def evaluate(
    config: ml_collections.ConfigDict, workdir: str, weights_path: str
) -> list[dict]:
    """Evaluates on every set and quality; writes `workdir`/rows.json, prints a table.

    Args:
      config: the fields of `configs/eval.py`, but for workdir and weights.
      workdir: where rows.json and panels/ go.
      weights_path: of a deblocker; empty for plain JPEG alone.

    Returns:
      A row for each set, quality and method: dataset, quality, method ('jpeg' or
      'ours'), weights (path, for 'ours'), psnr and psnr_b (dB) and ssim, averaged
      over the images, and images (how many).

    Raises:
      UserError: a set or the weights are missing, or an image can't be read.
    """
    methods = {JPEG: lambda y: y}
    if weights_path:
        methods[OURS] = restorer(weights.load(weights_path, "deblocker"))
    paths = {name: set_images(name, config.set_dir) for name in config.sets}
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    total = sum(map(len, paths.values())) * len(config.qualities)
    with tqdm(
        total=total,
        desc="evaluation",
        unit="image",
        mininterval=0.2 if sys.stderr.isatty() else 10,
    ) as progress:
        for dataset, images in paths.items():
            for quality in config.qualities:
                results: dict[str, list] = {method: [] for method in methods}
                for path in images:
                    clean = _load(path)
                    compressed = jpeg.compress(clean, quality)
                    restored = {name: f(compressed) for name, f in methods.items()}
                    for name, y in restored.items():
                        results[name].append([f(clean, y) for f in _METRICS.values()])
                    if config.panels:
                        name = (
                            f"{pathlib.Path(dataset).name}-{path.stem}-q{quality}.png"
                        )
                        _panel(clean, restored, quality, folder / "panels" / name)
                    progress.update()
                for method, values in results.items():
                    row = {"dataset": dataset, "quality": quality, "method": method}
                    if method == OURS:
                        row["weights"] = weights_path
                    means = map(float, np.mean(values, axis=0))
                    row.update(zip(_METRICS, means, strict=True))
                    rows.append({**row, "images": len(images)})
    partial = folder / ".rows.json.partial"
    partial.write_text(json.dumps(rows, indent=2) + "\n")
    partial.replace(folder / "rows.json")
    print(table(rows))
    _log.info("rows in %s", folder / "rows.json")
    return rows


def restorer(deblocker: weights.Weights) -> Callable[[np.ndarray], np.ndarray]:
    """Compressed Y to restored Y, both uint8 of shape (height, width).

    Compiles once for each shape.
    """
    apply = jax.jit(deblocker.model.apply)
    params = {"params": deblocker.variables["params"]}

    def restore(y):
        image = y[None, :, :, None].astype(np.float32) / 255
        return metrics.to_uint8(apply(params, image))[0, :, :, 0]

    return restore


def set_images(name: str, set_dir: str) -> list[pathlib.Path]:
    """Paths of the images of a set: a name of `SETS`, 'embedded', or a folder.

    Raises:
      UserError: it is not there.
    """
    if name == "embedded":
        return sources.embedded("test")
    if name not in SETS:
        return jpeg.list_images(name)
    folder = pathlib.Path(set_dir) / SETS[name]
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {name} is not there; put its images into this folder, name "
            "another one with config.set_dir, or choose other config.sets"
        )
    return jpeg.list_images(folder)


def table(rows: list[dict]) -> str:
    """Rows in the paper's layout: PSNR | SSIM | PSNR-B, a column for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    width = 26
    head = f"{'dataset':<14}{'QF':>3} {'images':>7}"
    lines = [head + "".join(f"{method:>{width}}" for method in methods)]
    cases: dict[tuple, dict] = {}
    for row in rows:
        key = (row["dataset"], row["quality"], row["images"])
        cell = f"{row['psnr']:.2f} | {row['ssim']:.4f} | {row['psnr_b']:.2f}"
        cases.setdefault(key, {})[row["method"]] = cell
    for (dataset, quality, images), cells in cases.items():
        line = f"{pathlib.Path(dataset).name:<14}{quality:>3} {images:>7}"
        lines.append(line + "".join(f"{cells[m]:>{width}}" for m in methods))
    return "\n".join(lines)


def _load(path: pathlib.Path) -> np.ndarray:
    try:
        y = jpeg.load_luma(path)
    except jpeg.ImageError as error:
        raise UserError(f"{path}: {error}") from None
    if min(y.shape) < metrics.MIN_SIDE:
        raise UserError(
            f"{path}: too small for SSIM: its sides must be {metrics.MIN_SIDE} or more"
        )
    return y


def _panel(clean, restored, quality, path) -> None:
    path.parent.mkdir(exist_ok=True)
    images = {}
    for method, y in restored.items():
        label = f"JPEG, QF {quality}" if method == JPEG else method
        psnr, blocking = metrics.psnr(clean, y), metrics.psnr_b(clean, y)
        images[f"{label}: {psnr:.2f} dB, PSNR-B {blocking:.2f}"] = y
    figures.panel({**images, "original": clean}, path)
