"""The comparison of the variants of an ablation with the full method."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from cqr_jax.evaluation import table1

# PSNR of the images a, b and c by seed.
OURS = {"seed0": (30.0, 31.0, 32.0), "seed1": (30.2, 31.2, 32.2)}
OTHER = {"seed0": (30.1, 31.3, 32.2), "seed1": (30.2, 31.4, 32.2)}


def _rows(variant, title, runs, quality=10):
    return [
        {
            "dataset": "live1",
            "quality": quality,
            "method": f"{variant}/{seed}",
            "title": title,
            "image": image,
            "psnr": value,
            "ssim": 0.9,
            "psnr_b": value - 1,
        }
        for seed, values in runs.items()
        for image, value in zip("abc", values, strict=True)
    ]


def test_differences_are_taken_on_the_same_images_and_seeds():
    # seed2 of the variant has no partner, and plain JPEG is no variant.
    extra = {"seed2": (1.0, 1.0, 1.0)}
    rows = [
        *_rows("none", "ours", OURS),
        *_rows("dc", "w/o DC", OTHER | extra),
        {**_rows("jpeg", "jpeg", OURS)[0], "method": "jpeg"},
    ]
    psnr, ssim, psnr_b = table1.differences(rows)
    # seed0: 0.1, 0.3, 0.2; seed1: 0.0, 0.2, 0.0
    assert psnr["variant"] == "w/o DC"
    assert psnr["difference"] == pytest.approx(0.4 / 3)
    # With two variants, the interval is that of the paired t-test over seeds.
    test = stats.ttest_rel([31.2, 93.8 / 3], [31, 31.2])
    bounds = test.confidence_interval()
    assert psnr["interval"] == pytest.approx((bounds.high - bounds.low) / 2)
    assert psnr["p"] == stats.wilcoxon([0.05, 0.25, 0.1]).pvalue == 0.25
    assert (psnr["images"], psnr["seeds"]) == (3, 2)
    assert psnr_b["difference"] == pytest.approx(psnr["difference"])
    assert (ssim["difference"], ssim["interval"], ssim["p"]) == (0, 0, 1)


def test_infinite_values_are_left_out_and_one_seed_has_no_interval():
    rows = [
        *_rows("none", "ours", {"seed0": (30.0, math.inf, 32.0)}),
        *_rows("q10", "one QF each", {"seed0": (30.5, math.inf, 32.5)}),
    ]
    psnr = table1.differences(rows)[0]
    assert (psnr["difference"], psnr["images"]) == (0.5, 2)
    assert psnr["interval"] is None
    assert table1.differences(_rows("dc", "w/o DC", OTHER)) == []


def test_interval_is_that_of_a_linear_model_of_variant_and_seed():
    """The oracle is a least-squares fit with an indicator of each variant and seed."""
    values = np.random.default_rng(0).normal(30, 0.1, (3, 3))  # variants, seeds
    rows = []
    for name, title, seeds in zip(
        ("none", "dc", "lq"), ("ours", "w/o DC", "w/o L_Q"), values, strict=True
    ):
        runs = {f"seed{i}": (x, x + 1, x + 5) for i, x in enumerate(seeds)}
        rows += _rows(name, title, runs)
    variant, seed = np.divmod(np.arange(9), 3)
    indicators = np.concatenate([np.eye(3)[variant], np.eye(3)[seed]], axis=1)
    fitted = indicators @ np.linalg.lstsq(indicators, values.ravel())[0]
    degrees = 9 - np.linalg.matrix_rank(indicators)
    deviation = np.sqrt(np.sum((values.ravel() - fitted) ** 2) / degrees)
    expected = stats.t.ppf(0.975, degrees) * deviation * np.sqrt(2 / 3)
    for row in table1.differences(rows):
        if row["metric"] == "psnr":
            assert row["interval"] == pytest.approx(expected)


def test_a_variant_without_some_seeds_does_not_change_the_interval_of_others():
    rows = [*_rows("none", "ours", OURS), *_rows("dc", "w/o DC", OTHER)]
    alone = table1.differences(rows)
    fewer = {"seed0": OTHER["seed0"]}
    both = table1.differences([*rows, *_rows("lq", "w/o L_Q", fewer)])
    assert [row for row in both if row["variant"] == "w/o DC"] == alone
    psnr = next(row for row in both if row["variant"] == "w/o L_Q")
    assert psnr["seeds"] == 1
    assert psnr["interval"] == pytest.approx(alone[0]["interval"] * math.sqrt(2))


def test_the_mean_over_qualities_is_compared_too():
    better = {seed: tuple(x + 0.4 for x in psnr) for seed, psnr in OURS.items()}
    rows = [
        *_rows("none", "ours", OURS, 10),
        *_rows("none", "ours", OURS, 20),
        *_rows("q10", "one QF each", better, 10),
        *_rows("q20", "one QF each", OURS, 20),
    ]
    found = {x["quality"]: x for x in table1.differences(rows) if x["metric"] == "psnr"}
    assert list(found) == [10, 20, "mean"]
    assert [x["difference"] for x in found.values()] == pytest.approx([0.4, 0, 0.2])


def test_models_for_one_quality_share_a_column_at_their_own_quality(monkeypatch):
    def measure(config, workdir, methods, restored):
        rows = [
            {"method": name, "quality": quality}
            for name in ("jpeg", *methods)
            for quality in config.qualities
        ]
        return rows, rows[:1]

    monkeypatch.setattr(table1.table2, "measure", measure)
    config = ConfigDict({"qualities": (10, 20)})
    methods = dict.fromkeys(("none/seed0", "q10/seed0", "q20/seed0", "q20/seed1"), "")
    rows, images = table1._measure(config, "", methods)
    assert [(x["method"], x["quality"], x["title"]) for x in rows] == [
        *(("jpeg", quality, "jpeg") for quality in (10, 20)),
        *(("none/seed0", quality, "ours") for quality in (10, 20)),
        ("q10/seed0", 10, "one QF each"),
        ("q20/seed0", 20, "one QF each"),
        ("q20/seed1", 20, "one QF each"),
    ]
    assert [x["method"] for x in images] == ["jpeg"]
    assert config.qualities == (10, 20)
