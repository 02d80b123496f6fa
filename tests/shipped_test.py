"""Tests of the weights in the package, on photographs that they were not trained on."""

import csv
import json
import re

import jax
import numpy as np
import pytest

from configs import ablation, deblock
from cqr_jax import weights
from cqr_jax.data import jpeg
from cqr_jax.evaluation import metrics
from cqr_jax.restoring import jax_network
from cqr_jax.training.steps import to_float
from data_prep import sources


@pytest.fixture(scope="module")
def photograph():
    """A uint8 photograph of 192x192 pixels."""
    y = jpeg.load_luma(sources.embedded("test")[1])
    return np.ascontiguousarray(y[96:288, 200:392])


def test_deblocker_improves_every_measure(photograph):
    run = jax_network.JaxNetwork(
        weights.load(weights.SHIPPED / "compact.safetensors", "deblocker")
    )
    qualities = (10, 20, 30)
    compressed = np.stack([jpeg.compress(photograph, q) for q in qualities])
    for image, restored in zip(
        compressed, metrics.to_uint8(run(compressed)), strict=True
    ):
        for metric in ("psnr", "ssim", "psnr_b"):
            measure = metrics.METRICS[metric]
            assert measure(photograph, restored) > measure(photograph, image), metric
        gain = metrics.psnr(photograph, restored) - metrics.psnr(photograph, image)
        assert gain > 0.8


def test_ranker_scores_rise_with_the_quality(photograph):
    ranker = weights.load(weights.SHIPPED / "compact-ranker.safetensors", "ranker")
    qualities = (1, 5, 10, 15, 20, 25, 30)
    images = [jpeg.compress(photograph, q) for q in qualities] + [photograph]
    batch = to_float(np.stack(images)[..., None])
    scores, _ = jax.jit(ranker.model.apply)(ranker.variables, batch)
    assert scores.tolist() == sorted(scores.tolist())


@pytest.mark.parametrize("path", sorted(weights.SHIPPED.glob("*.safetensors")))
def test_provenance_names_no_folder(path):
    _, _, provenance, arrays = weights.read(path)
    latest = provenance.get("mixed", [provenance])[-1]
    data = "colour-photographs" if path.stem == "colour" else "photos"
    assert latest["config"]["data"]["name"] == data
    assert "workdir" not in json.dumps(provenance)
    strings = re.findall(r'"([^"]*)"', json.dumps(provenance))
    assert [x for x in strings if "/" in x] == []
    assert path.stat().st_size < (12e6 if path.stem == "colour" else 3e6)
    assert all(np.isfinite(x).all() for x in arrays.values())
    assert path.name in (weights.SHIPPED / "README.md").read_text()


@pytest.mark.parametrize("name", ["compact", "colour"])
def test_weights_fit_their_preset(name):
    fields = deblock.get_config(name).model.to_dict()
    if name == "compact":  # trained when the preset was flat, as the ablation still is
        fields = ablation.get_config(name).model.to_dict() | {"width": 32}
    weights.load(weights.SHIPPED / f"{name}.safetensors", "deblocker", fields)


def test_the_network_of_cqr_restore_takes_colour_and_the_compression():
    held = weights.load(weights.DEBLOCKER, "deblocker")
    assert (held.model.channels, held.model.conditioning) == (3, "modulation")


def test_every_photograph_is_credited():
    with (weights.SHIPPED / "photographs.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len({row["image"] for row in rows}) == len(rows) == 802
    assert all(row["origin"] and row["path"] and row["licence"] for row in rows)
