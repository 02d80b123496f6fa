"""Draws the gain in PSNR of deblockers against their cost, ours beside published ones.

    python -m benchmarks.gain_for_cost --set_dir=data/eval

Evaluates weights of the package on LIVE1, gray and in colour, at QF 10 and writes
docs/gain-for-cost.png and benchmarks/results/gain_for_cost.md. The cost is the number
of multiply-adds of convolutions and matrix products per pixel of the picture. That of
published networks is in published_costs.tsv, with its source.
"""

import argparse
import csv
import pathlib

import numpy as np

from benchmarks import machine
from configs import eval as evaluation
from cqr_jax import files, tables, weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.errors import one_line_errors
from cqr_jax.evaluation import colour, drawing, published, table2
from cqr_jax.export import aot
from cqr_jax.restoring import tiles

QUALITY = 10
_PICTURE = pathlib.Path("docs/gain-for-cost.png")
_REPORT = pathlib.Path("benchmarks/results/gain_for_cost.md")
_SHIPPED = {"gray": ("compact", "colour"), "colour": ("colour",)}
# A network of Y takes Cb and Cr at a quarter of the resolution each (4:2:0).
_PLANES = {"gray": 1.0, "colour": 1.5}


def cost(path: pathlib.Path, kind: str) -> float:
    """Returns millions of multiply-adds per pixel of a picture in tiles."""
    held = weights.load(path, "deblocker")
    side = tiles.SIDE
    channels = held.model.channels
    inputs = [np.zeros((1, side, side, channels), np.float32)]
    if held.model.conditioning != "none":
        inputs.append(np.zeros((1, FEATURES), np.float32))
    variables = {"params": held.variables["params"]}
    each = aot.flop(held.model.apply, variables, *inputs) / 2 / side**2 / 1e6
    return each * (_PLANES[kind] if channels == 1 else 1)


def measured(kind: str, set_dir: str) -> dict[str, float]:
    """Returns method -> PSNR in dB on LIVE1, with that of plain JPEG."""
    names = _SHIPPED[kind]
    paths = [str(weights.SHIPPED / f"{name}.safetensors") for name in names]
    config = evaluation.get_config("colour" if kind == "colour" else "table2")
    config.sets, config.set_dir, config.qualities = "live1", set_dir, (QUALITY,)
    methods = table2.by_name(paths, [table2.JPEG])
    if kind == "colour":
        rows, _ = colour.measure(config, methods)
    else:
        rows, _ = table2.measure(config, config.workdir, methods, {})
    return {row["method"]: row["psnr"] for row in rows}


def points(kind: str, set_dir: str) -> list[tuple[str, float, float, bool]]:
    """Returns the name, the cost, the gain in dB and whether it is ours, of each."""
    ours = measured(kind, set_dir)
    plain = ours.pop(table2.JPEG)
    found = [
        (name, cost(weights.SHIPPED / f"{name}.safetensors", kind), psnr - plain, True)
        for name, psnr in ours.items()
    ]
    psnr = published.psnr("live1", QUALITY, "RGB" if kind == "colour" else "Y")
    path = pathlib.Path(__file__).with_name("published_costs.tsv")
    with path.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["kind"] == kind:
                gain = psnr[row["method"]] - plain
                found.append((row["method"], float(row["multiply_adds"]), gain, False))
    return sorted(found, key=lambda x: x[1])


def draw(found: dict[str, list[tuple[str, float, float, bool]]]) -> None:
    """Writes the picture: a panel for each kind."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    for axes, (kind, rows) in zip(
        figure.subplots(1, len(found)), found.items(), strict=True
    ):
        for name, spent, gain, ours in rows:
            axes.plot(spent, gain, "o", color="C1" if ours else "C0")
            side = {"ha": "right"} if spent > 1 else {}
            offset = (-6, 4) if side else (5, -12)
            axes.annotate(
                name, (spent, gain), offset, textcoords="offset points", **side
            )
        axes.set_xscale("log")
        axes.margins(0.25)
        axes.set_title(f"LIVE1, {kind}, QF {QUALITY}")
        axes.set_xlabel("million multiply-adds per pixel")
        axes.set_ylabel("gain over JPEG in PSNR (dB)")
        axes.grid(alpha=0.3)
    files.write(_PICTURE, drawing.png(figure, dpi=120))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gain_for_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--set_dir", default="data/eval", help="folder of the test sets"
    )
    args = parser.parse_args()
    with one_line_errors():
        found = {kind: points(kind, args.set_dir) for kind in _SHIPPED}
        draw(found)
        text = f"# Gain for cost\n\n    {machine.command(FOLDER=args.set_dir)}\n\n"
        text += f"LIVE1 at QF {QUALITY}: gain over plain JPEG in PSNR, over Y or RGB. "
        text += "Costs of published networks are from benchmarks/published_costs.tsv, "
        text += "their PSNR from cqr_jax/evaluation/published.tsv.\n"
        for kind, rows in found.items():
            head = ["method", "M multiply-adds a pixel", "gain (dB)", "measured here"]
            lines = [
                [name, f"{spent:.3g}", f"{gain:+.2f}", "yes" if ours else "no"]
                for name, spent, gain, ours in rows
            ]
            text += f"\n## {kind.capitalize()}\n\n{tables.markdown([head, *lines])}\n"
        files.write(_REPORT, text)


if __name__ == "__main__":
    main()
