"""Metrics of plain JPEG and of deblockers on sets of images: Table 2."""

import collections
import concurrent.futures
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import ml_collections
import numpy as np

from cqr_jax import files, progress, tables, weights
from cqr_jax.config import split_list
from cqr_jax.data import jpeg, kinds, test_sets
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.data.held_out import embedded, held_out_images
from cqr_jax.errors import UserError
from cqr_jax.evaluation import drawing, metrics, published
from cqr_jax.evaluation.metrics import METRICS
from cqr_jax.prefetch import prefetch
from cqr_jax.restoring import network

_log = logging.getLogger(__name__)

JPEG = "jpeg"
HELD_OUT = ":validation"  # behind a folder: its images held out from training
_AHEAD = 4  # images loaded, and scored, ahead of the network, per core
_LARGE = 2_000_000  # pixels of an image from which on its qualities go one by one


class Image(NamedTuple):
    """An image of one or more of the evaluated sets.

    Attributes:
      path: of the file.
      sets: that it is in.
      expected: what the literature's image is; None if it isn't of a named set.
    """

    path: pathlib.Path
    sets: list[str]
    expected: test_sets.Expected | None

    def is_expected(self, y: np.ndarray) -> bool:
        """Whether `y`, of its file, is the literature's image, if it is to be one."""
        return self.expected is None or self.expected.is_equal(y)


def table2(
    config: ml_collections.ConfigDict,
    workdir: str,
    paths: Iterable[str],
    folders: Iterable[str] = (),
) -> None:
    """Evaluates as `configs/eval.py` says, prints the table and what was published.

    Writes WORKDIR/rows.json, rows.csv, images.csv (a row for each image) and table.md.

    Args:
      config: the fields of `configs/eval.py`, but for workdir, weights and restored.
      workdir: where the results go.
      paths: of the deblockers' weights.
      folders: of images restored by other methods.

    Raises:
      UserError: as `measure`; or two methods have one name.
    """
    restored = by_name(folders, [JPEG])
    methods = by_name(paths, [JPEG, *restored])
    rows, images = measure(config, workdir, methods, restored)
    write(workdir, rows, images, rows, published.table2)


def by_name(paths: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Short names for weights files or folders -> their paths.

    runs/a/deblocker.safetensors and a folder other/a are 'a', runs/b.safetensors is
    'b'.

    Raises:
      UserError: two have one name, or one has a name that is taken.
    """
    methods: dict[str, str] = {}
    for path in paths:
        file = pathlib.Path(path).resolve()
        name = file.name.removesuffix(".safetensors")
        name = file.parent.name if file.name == weights.file_name("deblocker") else name
        if name in methods or name in taken:
            raise UserError(
                f"{path}: another method is called '{name}' too; rename the file or "
                "folder"
            )
        methods[name] = path
    return methods


def measure(
    config: ml_collections.ConfigDict,
    workdir: str,
    methods: dict[str, str],
    restored: dict[str, str],
) -> tuple[list[dict], list[dict]]:
    """The metrics of every method on every set and quality.

    Images are read, compressed and scored on all cores beside the network, which
    gets all qualities of an image at once, of a large image one after the other, and is
    compiled once for each shape. An image in several sets is restored and scored once.
    A conditioned network is told what each JPEG's file tells, its table.

    Args:
      config: with sets, set_dir, qualities, self_ensemble, panels and save_images as in
        `configs/eval.py`.
      workdir: where panels and images go, if asked for.
      methods: name -> path of a deblocker's weights.
      restored: name -> folder of restored images, FOLDER/q10/KEY.png for QF 10, where
        KEY is an image's path under `set_dir`, as live1/caps.

    Returns:
      A row for each set, quality and method: dataset, quality, method, weights (path,
      where it has some), psnr and psnr_b (dB), ssim and gmsd, averaged over the images
      with finite ones (None if there are none), images (how many), and identical (how
      many equal their original). And one for each image: dataset, image, quality,
      method, and the metrics.

    Raises:
      UserError: a set, weights or a restored image is missing, an image can't be read,
        or a restored one has colours or another size than its original.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    runs = networks(methods, config.self_ensemble, seconds)
    images = find_images(split_list(config.sets), config.set_dir)
    others = {name: _restored_paths(x, config, images) for name, x in restored.items()}
    folder = pathlib.Path(workdir)
    told = np.stack([told_gray(quality) for quality in config.qualities])
    differing: list[pathlib.Path] = []

    def loaded(key):
        path = images[key].path
        clean = load(path)
        if not images[key].is_expected(clean):
            differing.append(path)
        compressed = np.stack([jpeg.compress(clean, q) for q in config.qualities])
        results = {JPEG: compressed}
        for name, paths in others.items():
            results[name] = np.stack([_load_as(clean, x, path) for x in paths[key]])
        return key, clean, results

    def restore(case):
        key, clean, results = case
        count = len(told) if clean.size > _LARGE else 1
        parts = [np.split(x, count) for x in (results[JPEG], told)]
        for name, run in runs.items():
            restored = (run(*part) for part in zip(*parts, strict=True))
            results[name] = np.concatenate(list(map(metrics.to_uint8, restored)))
        return key, clean, results

    def score(case):
        key, clean, results = case
        for i, quality in enumerate(config.qualities):
            shown = {name: stack[i] for name, stack in results.items()}
            if config.panels:
                name = f"{key.replace('/', '-')}-q{quality}.png"
                _panel(clean, shown, quality, folder / "panels" / name)
            if config.save_images:
                for name, y in shown.items():
                    path = folder / "images" / name / f"q{quality}" / f"{key}.png"
                    files.write(path, jpeg.encode_png(y))
        return {
            (key, quality, name): tuple(f(clean, stack[i]) for f in METRICS.values())
            for name, stack in results.items()
            for i, quality in enumerate(config.qualities)
        }

    found = over_images(images, loaded, restore, score, seconds)
    warn_of(differing, config.set_dir)
    return to_rows(config, images, found, methods)


def networks(
    methods: Mapping[str, str],
    self_ensemble: bool = False,
    seconds: dict[str, float] | None = None,
) -> dict[str, network.Run]:
    """The networks of deblockers' weights by their names.

    Args:
      methods: name -> path of the weights.
      self_ensemble: take the mean over flips and turns, `network.self_ensemble`.
      seconds: as of `network.Network`.

    Raises:
      UserError: no such file, or not a deblocker's weights.
    """
    runs: dict[str, network.Run] = {
        name: network.Network(weights.load(path, "deblocker"), seconds)
        for name, path in methods.items()
    }
    if self_ensemble:
        runs = {name: network.self_ensemble(run) for name, run in runs.items()}
    return runs


def told_gray(quality: int) -> np.ndarray:
    """What a network is told of a gray JPEG by libjpeg, float32, (FEATURES,)."""
    return features(libjpeg(quality, gray=True))


def over_images(
    images: Mapping[str, Image],
    load: Callable,
    restore: Callable,
    score: Callable,
    seconds: Mapping[str, float],
) -> dict[tuple, tuple]:
    """What `score` finds in all images; tells the progress, and the time at the end.

    Args:
      images: by their keys.
      load: key -> what `restore` takes; on all cores, ahead.
      restore: that -> what `score` takes; one image at a time, in their order.
      score: that -> (key, quality, method) -> figures; on all cores.
      seconds: spent in the networks, by what.

    Returns:
      (key, quality, method) -> figures.
    """
    begin = time.perf_counter()
    found: dict[tuple, tuple] = {}
    depth = _AHEAD * (os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        cases = map(restore, prefetch(pool, load, images, depth))
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
    """Prints tables with the published ones beneath, and writes all results.

    Args:
      workdir: of rows.json, rows.csv, images.csv and table.md.
      rows, images: as `measure` returns them; gmsd may be missing.
      titled: the rows with their methods called as the tables are to call them.
      reference: rows -> tables of what was published for their sets, by title.
      measured: what the tables' figures are.
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
    _log.info("rows, table and figures of each image in %s", folder)


def find_images(
    sets: Iterable[str], set_dir: str, kind: str = kinds.LADDER
) -> dict[str, Image]:
    """Key -> image, of all images of the sets, each once.

    Args:
      sets: names of `data.test_sets.SETS`, 'embedded', or folders; of a folder
        with ':validation' behind it, the images that `data_prep.build` holds out. The
        key of a folder's image is its path from the folder's parent, without suffix.
      set_dir: folder of the named sets.
      kind: of the records of a folder, which tells what is held out of it.

    Raises:
      UserError: no set, one that is not there, or two sets or images of one name.
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
            if root == name:
                paths = jpeg.list_images(root)
            else:
                paths = held_out_images(root, kind)
            members = {
                f"{folder.name}/{test_sets.key(x, root)}": x.resolve() for x in paths
            }
            if len(members) < len(paths):
                raise UserError(f"{name}: two images differ in their suffix alone")
        for key, path in members.items():
            image = found.setdefault(key, Image(path, [], expected.get(key)))
            if image.path != path:
                raise UserError(f"{path} and {image.path} are both {key}; rename one")
            image.sets.append(pathlib.Path(name).name)
    return found


def _restored_paths(
    folder: str, config: ml_collections.ConfigDict, images: dict[str, Image]
) -> dict[str, list[pathlib.Path]]:
    """Key -> somebody's restored image of each quality."""
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
    figures: Iterable[str] = tuple(METRICS),
) -> tuple[list[dict], list[dict]]:
    """The rows of sets and those of images, as `measure` returns them.

    Args:
      config: with sets and qualities.
      images: by their keys.
      found: (key, quality, method) -> figures.
      methods: name -> path of a deblocker's weights.
      figures: their names, psnr among them.
    """
    figures = tuple(figures)
    rows, each = [], []
    names = list(dict.fromkeys(method for _, _, method in found))
    for dataset in (pathlib.Path(name).name for name in split_list(config.sets)):
        keys = [key for key, image in images.items() if dataset in image.sets]
        for quality in config.qualities:
            for method in names:
                case = {"dataset": dataset, "quality": quality, "method": method}
                members = [found[key, quality, method] for key in keys]
                columns = dict(zip(figures, zip(*members, strict=True), strict=True))
                row = dict(case)
                if method in methods:
                    row["weights"] = methods[method]
                row |= {name: tables.mean(values) for name, values in columns.items()}
                row["images"] = len(keys)
                row["identical"] = sum(np.isinf(columns["psnr"]).tolist())
                rows.append(row)
                for key, member in zip(keys, members, strict=True):
                    values = dict(zip(figures, member, strict=True))
                    each.append({**case, "image": key, **values})
    return rows, each


def _report_time(total: float, seconds: Mapping[str, float], count: int) -> None:
    shares = {"all": total, **seconds}
    words = [f"{name} {x:.1f} s ({x / total:.0%})" for name, x in shares.items()]
    _log.info("%d cases, on all cores at once: %s", count, ", ".join(words))


def check(images: Iterable[Image], set_dir: str) -> None:
    """Warns if images of named sets are not the literature's.

    Args:
      images: of `find_images`.
      set_dir: folder of the named sets.
    """
    known = (x for x in images if x.expected)
    differing = [x.path for x in known if not x.is_expected(jpeg.load_named(x.path))]
    warn_of(differing, set_dir)


def warn_of(differing: list[pathlib.Path], set_dir: str) -> None:
    """Warns of images of named sets that are not the literature's, if there are any."""
    if differing:
        _log.warning(
            "%d images differ from the literature's, %s the first; remove them, and "
            "`python -m data_prep.test_sets --set_dir=%s` fetches them",
            len(differing),
            min(differing),
            set_dir,
        )


def load(
    path: str | os.PathLike, how: Callable[..., np.ndarray] = jpeg.load_luma
) -> np.ndarray:
    """Reads an image that is to be measured.

    Args:
      path: of the image.
      how: `jpeg.load_luma`, `jpeg.load_gray` for what holds Y already, or
        `jpeg.load_rgb` for colours.

    Returns:
      uint8, (height, width), or (height, width, 3) of colours.

    Raises:
      UserError: as `how`, with the file named; or it is too small for SSIM.
    """
    image = jpeg.load_named(path, how)
    if min(image.shape[:2]) < metrics.MIN_SIDE:
        raise UserError(
            f"{path}: too small for SSIM: its sides must be {metrics.MIN_SIDE} or more"
        )
    return image


def _load_as(clean: np.ndarray, path: pathlib.Path, of: pathlib.Path) -> np.ndarray:
    """A restored image, of the shape of its original."""
    y = load(path, jpeg.load_gray)
    if y.shape != clean.shape:
        (h, w), (height, width) = y.shape, clean.shape
        raise UserError(
            f"{path}: is {w}x{h}, but its original {of} is {width}x{height}"
        )
    return y


def _panel(clean, restored, quality, path) -> None:
    images = {}
    for method, y in restored.items():
        label = f"JPEG, QF {quality}" if method == JPEG else method
        images[drawing.caption(label, clean, y)] = y
    drawing.panel({**images, "original": clean}, path)
