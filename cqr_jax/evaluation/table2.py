"""Evaluation of plain JPEG and of deblockers on sets of images: Table 2."""

import collections
import concurrent.futures
import functools
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from cqr_jax import files, progress, tables, weights
from cqr_jax.config import split_list
from cqr_jax.data import jpeg, test_sets
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.data.held_out import embedded, held_out_images
from cqr_jax.errors import UserError
from cqr_jax.evaluation import drawing, metrics, published
from cqr_jax.evaluation.metrics import METRICS
from cqr_jax.prefetch import cancelling, prefetch
from cqr_jax.restoring import jax_network, network

_log = logging.getLogger(__name__)

JPEG = "jpeg"
# Suffix of a folder in `config.sets` that stands for its held-out images.
HELD_OUT = ":validation"
_AHEAD = 4  # images per core to prefetch, in loading and in scoring


class Image(NamedTuple):
    """An image of one or more of the evaluated sets.

    Attributes:
      path: path of the file.
      sets: names of the sets that contain the image.
      expected: shape and hash of the literature's image; None if the image isn't in a
        named set.
    """

    path: pathlib.Path
    sets: list[str]
    expected: test_sets.Expected | None

    def is_expected(self, y: np.ndarray) -> bool:
        """Returns whether `y`, read from the file, is the expected image.

        Returns true if no particular image is expected.
        """
        return self.expected is None or self.expected.is_equal(y)


def table2(
    config: ml_collections.ConfigDict,
    workdir: str,
    paths: Iterable[str],
    folders: Iterable[str] = (),
) -> None:
    """Evaluates all methods; prints the measured and the published tables.

    Writes WORKDIR/rows.json, rows.csv, images.csv (a row for each image) and table.md.

    Args:
      config: fields of `configs/eval.py`. Its workdir, weights and restored are not
        used.
      workdir: folder for the results.
      paths: paths of the deblockers' weights.
      folders: folders of images restored by other methods.

    Raises:
      UserError: as in `measure`, or if two methods have the same name.
    """
    restored = by_name(folders, [JPEG])
    methods = by_name(paths, [JPEG, *restored])
    rows, images = measure(config, workdir, methods, restored)
    write(workdir, rows, images, rows, published.table2)


def by_name(paths: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Returns short name -> path of weights files or folders.

    The name of runs/a/deblocker.safetensors and of a folder other/a is 'a'. The name of
    runs/b.safetensors is 'b'. That of c=PATH is 'c'.

    Raises:
      UserError: if two have the same name, or a name is taken.
    """
    methods: dict[str, str] = {}
    for given in paths:
        name, _, path = given.partition("=")
        if not (name and path) or "/" in name or os.path.exists(given):  # no name
            path = given
            file = pathlib.Path(path).resolve()
            name = file.name.removesuffix(".safetensors")
            if file.name == weights.file_name("deblocker"):
                name = file.parent.name
        if name in methods or name in taken:
            raise UserError(
                f"{given}: another method is called '{name}' too; give it another name "
                f"as NAME={path}"
            )
        methods[name] = path
    return methods


def measure(
    config: ml_collections.ConfigDict,
    workdir: str,
    methods: dict[str, str],
    restored: dict[str, str],
) -> tuple[list[dict], list[dict]]:
    """Measures every method on every set and quality.

    Images are read, compressed and scored on all cores while the network runs. The
    network takes the qualities of an image one after the other. On a CPU, one batch of
    all would be slower, because its features exceed the caches. The network is compiled
    once for each shape. An image in several sets is restored and scored once. A
    conditioned network takes the quantisation table of each JPEG.

    Args:
      config: config with sets, set_dir, qualities, self_ensemble, panels and
        save_images as in `configs/eval.py`.
      workdir: folder for panels and images, if the config asks for them.
      methods: name -> path of a deblocker's weights.
      restored: name -> folder of restored images. The image at QF 10 is
        FOLDER/q10/KEY.png, where KEY is the path of the image under `set_dir`, such as
        live1/caps.

    Returns:
      A tuple of two lists of rows. The first has a row for each set, quality and
      method: dataset, quality, method, weights (their path, if the method has any),
      psnr and psnr_b (dB), ssim and gmsd (each averaged over the images where it is
      finite, None if there are none), images (their number), and identical (number of
      images that equal their original). The second has a row for each image, quality
      and method: dataset, image, quality, method, and the metrics.

    Raises:
      UserError: if a set, weights or a restored image is missing, if an image can't be
        read, or if a restored image has colours or differs in size from its original.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    runs = networks(methods, config.self_ensemble, seconds)
    images = find_images(split_list(config.sets), config.set_dir)
    others = {name: _restored_paths(x, config, images) for name, x in restored.items()}
    conditions = np.stack([gray_features(quality) for quality in config.qualities])
    differing: list[pathlib.Path] = []

    def load_case(key):
        image = images[key]
        restored_paths = {name: paths[key] for name, paths in others.items()}
        case = _load_case(key, image.path, config.qualities, restored_paths)
        if not image.is_expected(case.clean):
            differing.append(image.path)
        return case

    restore = functools.partial(_restore, runs, conditions)
    score = functools.partial(_score, config, pathlib.Path(workdir))
    found = over_images(images, load_case, restore, score, seconds)
    warn_of(differing, config.set_dir)
    return to_rows(config, images, found, methods)


class _Case(NamedTuple):
    """An image with the results of all methods.

    Attributes:
      key: key of the image.
      clean: uint8 (height, width), the original.
      results: method -> uint8 (qualities, height, width), its output for each quality.
    """

    key: str
    clean: np.ndarray
    results: dict[str, np.ndarray]


def _load_case(
    key: str,
    path: pathlib.Path,
    qualities: Sequence[int],
    restored_paths: Mapping[str, list[pathlib.Path]],
) -> _Case:
    """Loads an image, compresses it, and loads the images restored by other methods."""
    clean = load(path)
    results = {JPEG: np.stack([jpeg.compress(clean, x) for x in qualities])}
    for name, paths in restored_paths.items():
        results[name] = np.stack([_load_as(clean, x, path) for x in paths])
    return _Case(key, clean, results)


def _restore(
    runs: Mapping[str, network.Run], conditions: np.ndarray, case: _Case
) -> _Case:
    """Adds the results of the networks, which receive the compression of each JPEG."""
    pairs = list(zip(case.results[JPEG][:, None], conditions[:, None], strict=True))
    results = dict(case.results)
    for name, run in runs.items():
        restored = [metrics.to_uint8(run(*pair)) for pair in pairs]
        results[name] = np.concatenate(restored)
    return case._replace(results=results)


def _score(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, case: _Case
) -> dict[tuple, tuple]:
    """Returns (key, quality, method) -> metrics; writes panels and images if asked."""
    if config.panels:
        _write_panels(case, config.qualities, workdir / "panels")
    if config.save_images:
        _write_images(case, config.qualities, workdir / "images")
    return {
        (case.key, quality, name): tuple(f(case.clean, y) for f in METRICS.values())
        for name, stack in case.results.items()
        for quality, y in zip(config.qualities, stack, strict=True)
    }


def _write_panels(case: _Case, qualities: Sequence[int], folder: pathlib.Path) -> None:
    for i, quality in enumerate(qualities):
        panel = {}
        for method, stack in case.results.items():
            label = f"JPEG, QF {quality}" if method == JPEG else method
            panel[drawing.caption(label, case.clean, stack[i])] = stack[i]
        name = f"{case.key}-q{quality}.png"
        drawing.panel({**panel, "original": case.clean}, folder / name)


def _write_images(case: _Case, qualities: Sequence[int], folder: pathlib.Path) -> None:
    for method, stack in case.results.items():
        for quality, y in zip(qualities, stack, strict=True):
            path = folder / method / f"q{quality}" / f"{case.key}.png"
            files.write(path, jpeg.encode_png(y))


def networks(
    methods: Mapping[str, str],
    self_ensemble: bool = False,
    seconds: dict[str, float] | None = None,
) -> dict[str, network.Run]:
    """Loads the networks of deblockers, by name.

    Args:
      methods: name -> path of the weights.
      self_ensemble: whether to average over flips and rotations, by
        `network.self_ensemble`.
      seconds: as in `jax_network.JaxNetwork`.

    Raises:
      UserError: if a file does not exist, or doesn't hold a deblocker's weights.
    """
    runs: dict[str, network.Run] = {
        name: jax_network.JaxNetwork(weights.load(path, "deblocker"), seconds)
        for name, path in methods.items()
    }
    if self_ensemble:
        runs = {name: network.self_ensemble(run) for name, run in runs.items()}
    return runs


def gray_features(quality: int) -> np.ndarray:
    """Returns the compression features of a gray JPEG by libjpeg.

    They are float32, (FEATURES,).
    """
    return features(libjpeg(quality, gray=True))


def over_images(
    images: Mapping[str, Image],
    load: Callable,
    restore: Callable,
    score: Callable,
    seconds: Mapping[str, float],
) -> dict[tuple, tuple]:
    """Loads, restores and scores all images; shows the progress and logs the time.

    Args:
      images: images by key.
      load: key -> input of `restore`. Runs ahead on all cores.
      restore: result of `load` -> input of `score`. Runs on one image at a time. On a
        CPU, it runs on as many images as there are cores, because several cores restore
        a single image little faster than one.
      score: result of `restore` -> {(key, quality, method): metrics}. Runs on all
        cores.
      seconds: seconds spent in the networks, by activity.

    Returns:
      (key, quality, method) -> metrics.
    """
    begin = time.perf_counter()
    found: dict[tuple, tuple] = {}
    depth = _AHEAD * network.cores()
    at_once = network.cores() if network.only_cpu() else 1
    with (
        cancelling(concurrent.futures.ThreadPoolExecutor()) as pool,
        cancelling(concurrent.futures.ThreadPoolExecutor(at_once)) as restoring,
    ):
        loaded = prefetch(pool, load, images, depth)
        cases = prefetch(restoring, restore, loaded, at_once)
        scored = prefetch(pool, score, cases, depth)
        for results in progress.over(scored, len(images), "evaluation", "image"):
            found.update(results)
    _report_time(time.perf_counter() - begin, seconds, len(found))
    return found


def write(
    workdir: str,
    rows: list[dict],
    images: list[dict],
    titled: list[dict],
    reference: Callable[[Iterable[dict]], dict[str, tables.Table]],
    measured: str = "Measured: PSNR | SSIM | PSNR-B",
) -> None:
    """Prints the measured tables, then the published ones, and writes all results.

    Args:
      workdir: folder for rows.json, rows.csv, images.csv and table.md.
      rows, images: rows as `measure` returns them; gmsd may be missing.
      titled: the rows, with methods named as in the tables.
      reference: rows -> published tables for their sets, by title.
      measured: title of the measured table.
    """
    note = tables.identical_note(rows)
    parts = [(measured, tables.by_method(titled), note)]
    if all("gmsd" in row for row in rows):
        perceptual = tables.by_method(titled, ("gmsd",))
        parts.append(("Measured: GMSD, lower is better", perceptual, ""))
    parts += [(title, known, "") for title, known in reference(rows).items()]
    folder = pathlib.Path(workdir)
    files.write(
        folder / "rows.json", json.dumps(rows, indent=2, allow_nan=False) + "\n"
    )
    files.write(folder / "rows.csv", tables.to_csv(rows))
    files.write(folder / "images.csv", tables.to_csv(images))
    sections = [
        f"{title}\n\n{tables.markdown(lines)}\n" + (f"\n{below}\n" if below else "")
        for title, lines, below in parts
    ]
    files.write(folder / "table.md", "\n".join(sections))
    for title, lines, below in parts:
        print(f"{title}\n{tables.text(lines)}" + (f"\n{below}" if below else ""))
        print()
    _log.info("rows, table and metrics of each image in %s", folder)


def find_images(sets: Iterable[str], set_dir: str) -> dict[str, Image]:
    """Returns key -> image of all images of the sets, each once.

    Args:
      sets: names in `data.test_sets.SETS`, 'embedded', or folders. A folder followed by
        ':validation' stands for the images that `data_prep.build` holds out. The key of
        an image in a folder is its path from the folder's parent, without suffix.
      set_dir: folder of the named sets.

    Raises:
      UserError: if there is no set, if a set is missing, if two sets or images have the
        same name, or if the header of an image in a folder can't be read or says that
        it is too small for SSIM.
    """
    sets = list(sets)
    if not sets:
        raise UserError("config.sets: name a set or a folder of images")
    short = [pathlib.Path(name).name for name in sets]
    if twice := {x for x in short if short.count(x) > 1}:
        raise UserError(f"two of the sets are named {twice.pop()}; rename one")
    found: dict[str, Image] = {}
    for name in sets:
        expected: dict[str, test_sets.Expected] = {}
        if name in test_sets.SETS:
            expected = test_sets.expected(name)
            members = test_sets.images(name, set_dir)
        elif name == "embedded":
            members = {f"embedded/{x.stem}": x for x in embedded("test")}
        else:
            root = name.removesuffix(HELD_OUT)
            folder = pathlib.Path(root).resolve()
            if not folder.exists():
                known = ", ".join((*test_sets.SETS, "embedded"))
                raise UserError(
                    f"{root}: no such folder of images, and not one of the sets {known}"
                )
            list_images = jpeg.list_images if root == name else held_out_images
            paths = list_images(root)
            for path in paths:  # before the work
                _check_side(path, min(jpeg.load_named(path, jpeg.load_shape)))
            members = {
                f"{folder.name}/{test_sets.key(x, root)}": x.resolve() for x in paths
            }
            if len(members) < len(paths):
                raise UserError(
                    f"{name}: two images differ only in their suffix; rename one"
                )
        for key, path in members.items():
            image = found.setdefault(key, Image(path, [], expected.get(key)))
            if image.path != path:
                raise UserError(f"{path} and {image.path} are both {key}; rename one")
            image.sets.append(pathlib.Path(name).name)
    return found


def _restored_paths(
    folder: str, config: ml_collections.ConfigDict, images: dict[str, Image]
) -> dict[str, list[pathlib.Path]]:
    """Returns key -> paths of the restored images, one for each quality."""
    root = pathlib.Path(folder)
    found = test_sets.by_key(root)
    paths: dict[str, list] = {}
    for key, image in images.items():
        for quality in config.qualities:
            path = found.get(f"q{quality}/{key}")
            if path is None:
                raise UserError(
                    f"{root}/q{quality}/{key}.png: is missing; config.restored needs "
                    f"one for each image, and {image.path} has none at QF {quality}"
                )
            paths.setdefault(key, []).append(path)
    return paths


def to_rows(
    config: ml_collections.ConfigDict,
    images: Mapping[str, Image],
    found: Mapping[tuple, tuple],
    methods: Mapping[str, str],
    measures: Iterable[str] = tuple(METRICS),
) -> tuple[list[dict], list[dict]]:
    """Makes the rows of sets and the rows of images, as `measure` returns them.

    Args:
      config: config with sets and qualities.
      images: images by key.
      found: (key, quality, method) -> metrics.
      methods: name -> path of a deblocker's weights.
      measures: names of the metrics, which must include psnr.
    """
    measures = tuple(measures)
    each = []
    names = list(dict.fromkeys(method for _, _, method in found))
    for dataset in (pathlib.Path(name).name for name in split_list(config.sets)):
        keys = [key for key, image in images.items() if dataset in image.sets]
        for quality in config.qualities:
            for method in names:
                case = {"dataset": dataset, "quality": quality, "method": method}
                for key in keys:
                    member = found[key, quality, method]
                    values = dict(zip(measures, member, strict=True))
                    each.append({**case, "image": key, **values})
    return summarize(each, methods, measures), each


def summarize(
    images: Iterable[dict],
    methods: Mapping[str, str],
    measures: Iterable[str] = tuple(METRICS),
) -> list[dict]:
    """Makes the rows of sets from the rows of images; see `measure`.

    Args:
      images: rows of images.
      methods, measures: as in `to_rows`.
    """
    measures = tuple(measures)
    groups: dict[tuple, list[dict]] = {}
    for image in images:
        case = image["dataset"], image["quality"], image["method"]
        groups.setdefault(case, []).append(image)
    rows = []
    for (dataset, quality, method), members in groups.items():
        row = {"dataset": dataset, "quality": quality, "method": method}
        if method in methods:
            row["weights"] = methods[method]
        row |= {name: tables.mean([x[name] for x in members]) for name in measures}
        row["images"] = len(members)
        row["identical"] = sum(math.isinf(x["psnr"]) for x in members)
        rows.append(row)
    return rows


def _report_time(total: float, seconds: Mapping[str, float], count: int) -> None:
    words = "".join(f", {name} {x:.1f} s" for name, x in seconds.items())
    of_threads = f" (summed over threads{words})" if words else ""
    _log.info("%d cases in %.1f s%s", count, total, of_threads)


def check(images: Iterable[Image], set_dir: str) -> None:
    """Warns if images of named sets differ from the literature's.

    Args:
      images: images from `find_images`.
      set_dir: folder of the named sets.
    """
    known = (x for x in images if x.expected)
    differing = [x.path for x in known if not x.is_expected(jpeg.load_named(x.path))]
    warn_of(differing, set_dir)


def warn_of(differing: list[pathlib.Path], set_dir: str) -> None:
    """Warns of images in named sets that differ from the literature's, if any."""
    if differing:
        _log.warning(
            "%d of the images differ from the literature's, %s the first; remove them, "
            "and `python -m data_prep.test_sets --set_dir=%s` fetches them",
            len(differing),
            min(differing),
            set_dir,
        )


def load(
    path: str | os.PathLike, how: Callable[..., np.ndarray] = jpeg.load_luma
) -> np.ndarray:
    """Reads an image to evaluate.

    Args:
      path: path of the image.
      how: `jpeg.load_luma`, `jpeg.load_gray` for an image that holds Y, or
        `jpeg.load_rgb` for a colour image.

    Returns:
      uint8, (height, width), or (height, width, 3) for a colour image.

    Raises:
      UserError: as in `how`, with the name of the file, or if the image is too small
        for SSIM.
    """
    image = jpeg.load_named(path, how)
    _check_side(path, min(image.shape[:2]))
    return image


def _check_side(path: str | os.PathLike, shortest: int) -> None:
    """Raises a UserError if the shortest side of an image is too short for SSIM."""
    if shortest < metrics.MIN_SIDE:
        raise UserError(
            f"{path}: too small for SSIM: its sides must be {metrics.MIN_SIDE} or more"
        )


def _load_as(clean: np.ndarray, path: pathlib.Path, of: pathlib.Path) -> np.ndarray:
    """Loads a restored image and checks that it has the shape of its original."""
    y = load(path, jpeg.load_gray)
    if y.shape != clean.shape:
        (h, w), (height, width) = y.shape, clean.shape
        raise UserError(
            f"{path}: is {w}x{h}, but its original {of} is {width}x{height}"
        )
    return y
