"""The comparison of the variants of an ablation with the full method."""

import math

import pytest
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
    assert psnr["spread"] == pytest.approx((0.2 - 0.2 / 3) / math.sqrt(2))
    assert psnr["p"] == stats.wilcoxon([0.05, 0.25, 0.1]).pvalue == 0.25
    assert (psnr["images"], psnr["seeds"]) == (3, 2)
    assert psnr_b["difference"] == pytest.approx(psnr["difference"])
    assert (ssim["difference"], ssim["spread"], ssim["p"]) == (0, 0, 1)


def test_infinite_values_are_left_out_and_one_seed_has_no_spread():
    rows = [
        *_rows("none", "ours", {"seed0": (30.0, math.inf, 32.0)}),
        *_rows("q10", "one QF each", {"seed0": (30.5, math.inf, 32.5)}),
    ]
    psnr = table1.differences(rows)[0]
    assert (psnr["difference"], psnr["images"]) == (0.5, 2)
    assert psnr["spread"] is None
    assert table1.differences(_rows("dc", "w/o DC", OTHER)) == []


def test_models_for_one_quality_share_a_column_at_their_own_quality():
    rows = [
        row
        for variant in ("q10", "q20", "none")
        for quality in (10, 20)
        for row in _rows(variant, "", {"seed0": (1, 2, 3)}, quality)[:1]
    ]
    found = [
        (row["method"], row["quality"], row["title"])
        for row in table1._with_titles(rows)
    ]
    assert found == [
        ("q10/seed0", 10, "one QF each"),
        ("q20/seed0", 20, "one QF each"),
        ("none/seed0", 10, "ours"),
        ("none/seed0", 20, "ours"),
    ]
