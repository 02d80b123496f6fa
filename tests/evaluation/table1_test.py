"""The comparison of the variants of an ablation with the full method."""

import csv
import math

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from configs.eval import get_config as evaluation_config
from cqr_jax import tables, weights
from cqr_jax.errors import UserError
from cqr_jax.evaluation import table1
from tests.networks import SMALL, drawn

# PSNR of the images a, b and c by seed.
OURS = {"seed0": (30.0, 31.0, 32.0), "seed1": (30.2, 31.2, 32.2)}
OTHER = {"seed0": (30.1, 31.3, 32.2), "seed1": (30.2, 31.4, 32.2)}

HEADER = "dataset,quality,method,image,psnr,ssim,psnr_b,gmsd"


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


@pytest.mark.parametrize("lacking", [[], [(2, 1)], [(0, 0), (1, 2)]])
def test_interval_is_that_of_a_linear_model_of_variant_and_seed(lacking):
    """The oracle is a least-squares fit with an indicator of each variant and seed."""
    values = np.random.default_rng(0).normal(30, 0.1, (3, 3))  # variants, seeds
    cells = [x for x in np.ndindex(values.shape) if x not in lacking]
    rows = []
    for i, (name, title) in enumerate(
        {"none": "ours", "dc": "w/o DC", "lq": "w/o L_Q"}.items()
    ):
        seeds = {f"seed{k}": values[i, k] for of, k in cells if of == i}
        rows += _rows(name, title, {k: (x, x + 1, x + 5) for k, x in seeds.items()})
    variant, seed = np.transpose(cells)
    indicators = np.concatenate([np.eye(3)[variant], np.eye(3)[seed]], axis=1)
    given = values[variant, seed]
    rest = given - indicators @ np.linalg.pinv(indicators) @ given
    degrees = len(cells) - np.linalg.matrix_rank(indicators)
    expected = stats.t.ppf(0.975, degrees) * np.sqrt(2 * np.sum(rest**2) / degrees)
    for row in table1.differences(rows):
        if row["metric"] == "psnr":
            assert row["interval"] == pytest.approx(expected / row["seeds"] ** 0.5)


def test_a_variant_without_some_seeds_does_not_change_the_interval_of_others():
    rows = [*_rows("none", "ours", OURS), *_rows("dc", "w/o DC", OTHER)]
    alone = table1.differences(rows)
    fewer = {"seed0": OTHER["seed0"]}
    both = table1.differences([*rows, *_rows("lq", "w/o L_Q", fewer)])
    psnr = next(row for row in both if row["variant"] == "w/o L_Q")
    assert psnr["seeds"] == 1
    assert psnr["interval"] == pytest.approx(alone[0]["interval"] * math.sqrt(2))
    more = {"seed2": OTHER["seed0"]}
    longer = table1.differences([*rows, *_rows("none", "ours", more)])
    for found in (both, longer):
        kept = [row for row in found if row["variant"] == "w/o DC"]
        assert [x["difference"] for x in kept] == [x["difference"] for x in alone]
        widths = [[row["interval"] for row in x] for x in (kept, alone)]
        assert widths[0] == pytest.approx(widths[1], abs=1e-12)


def test_runs_that_differ_in_more_than_the_variant_are_named(tmp_path, caplog):
    model = drawn(**SMALL)
    methods = {}
    for i, changed in enumerate(({}, {"loss": {"alpha": 0.0}}, {"steps": 9})):
        config = {"steps": 8, "seed": i, "loss": {"alpha": 1.0}} | changed
        path = tmp_path / f"{i}.safetensors"
        ranker = "one" if i < 2 else "two"
        made = {"config": config, "commit": "abc", "ranker": ranker}
        weights.save(path, "deblocker", model.fields, model.variables, made)
        methods[f"dc/seed{i}"] = str(path)
    table1._warn_of_other_trainings(methods)
    assert caplog.messages == [
        "the runs differ in steps: 8 in dc/seed0, dc/seed1; 9 in dc/seed2",
        "the runs differ in ranker: one in dc/seed0, dc/seed1; two in dc/seed2",
    ]


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


def _config(**fields):
    config = evaluation_config("ablation")
    config.update({"sets": "live1", "qualities": (10,), **fields})
    return config


def _images(variant, runs, **fields):
    rows = _rows(variant, "", runs)
    return [{**row, "gmsd": 0.1, "title": "", **fields} for row in rows]


def test_runs_that_were_evaluated_before_are_added(tmp_path, monkeypatch):
    other = {"seed0": (30.5, 31.5, 32.5), "seed1": (30.7, 31.7, 32.7)}
    given = tmp_path / "given.csv"
    rows = [
        *_images("jpeg", OURS)[:3],
        *_images("none", OURS),
        *_images("dc", other),
        *_images("dc", other, dataset="classic5"),
        *_images("dc", other, quality=20),
    ]
    rows[:3] = [{**row, "method": "jpeg"} for row in rows[:3]]
    given.write_text(tables.to_csv(rows))
    config = _config(measured=str(given))
    table1.table1(config, str(tmp_path))
    with open(tmp_path / "rows.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(x["method"], x["title"]) for x in found] == [
        ("jpeg", "jpeg"),
        ("dc/seed0", "w/o DC"),
        ("dc/seed1", "w/o DC"),
        ("none/seed0", "ours"),
        ("none/seed1", "ours"),
    ]
    assert float(found[3]["psnr"]) == 31
    assert found[3]["images"] == "3"
    with open(tmp_path / "differences.csv", newline="") as file:
        psnr = next(csv.DictReader(file))
    assert float(psnr["difference"]) == pytest.approx(0.5)
    # A file that an evaluation wrote gives the same tables again.
    tables_before = [(tmp_path / x).read_text() for x in ("table.md", "differences.md")]
    config.measured = str(tmp_path / "images.csv")
    table1.table1(config, str(tmp_path / "again"))
    tables_after = [
        (tmp_path / "again" / x).read_text() for x in ("table.md", "differences.md")
    ]
    assert tables_after == tables_before

    # A run must be in one file only, but its sets can be in several.
    config.measured = f"{given},{tmp_path / 'images.csv'}"
    with pytest.raises(UserError, match="two files have the run dc/seed0"):
        table1.table1(config, str(tmp_path))
    other_set = tmp_path / "other.csv"
    other_set.write_text(tables.to_csv([{**x, "dataset": "a"} for x in rows[:6]]))
    config.measured, config.sets = f"{given},{other_set}", "live1,a"
    found = table1.read_measured(config)
    assert sum(x["method"] == "jpeg" for x in found) == 6
    assert sum(x["method"] == "none/seed0" for x in found) == 6
    config.sets = "live1"

    # A run in the folder is measured anew, and plain JPEG with it.
    def measure(config, workdir, methods):
        worse = {"seed0": (29.5, 30.5, 31.5)}
        images = [
            {**row, "title": table1._title(row["method"])}
            for row in [*_images("dc", worse), *rows[:3]]
        ]
        found = [
            {**row, "title": table1._title(row["method"])}
            for row in table1.table2.summarize(images, methods)
        ]
        return found, images

    monkeypatch.setattr(table1, "_measure", measure)
    monkeypatch.setattr(table1, "_warn_of_other_trainings", lambda methods: None)
    run = tmp_path / "new" / "dc" / "seed0" / "deblocker.safetensors"
    run.parent.mkdir(parents=True)
    run.touch()
    config.measured = str(given)
    table1.table1(config, str(tmp_path / "new"))
    with open(tmp_path / "new" / "rows.csv", newline="") as file:
        found = {x["method"]: float(x["psnr"]) for x in csv.DictReader(file)}
    expected = {"jpeg": 31, "none/seed0": 31, "none/seed1": 31.2, "dc/seed1": 31.7}
    assert found == pytest.approx(expected | {"dc/seed0": 30.5})


def test_only_images_of_all_runs_are_compared():
    fewer = _rows("dc", "w/o DC", OTHER)[:-1]  # seed1 lacks the image c
    psnr = table1.differences([*_rows("none", "ours", OURS), *fewer])[0]
    assert psnr["images"] == 2
    assert psnr["difference"] == pytest.approx((0.1 + 0.3 + 0.0 + 0.2) / 4)


def test_runs_without_a_common_image_have_no_interval():
    elsewhere = [{**x, "image": "x"} for x in _rows("lq", "w/o L_Q", OTHER)]
    rows = [*_rows("none", "ours", OURS), *_rows("dc", "w/o DC", OTHER), *elsewhere]
    assert {(x["variant"], x["interval"]) for x in table1.differences(rows)} == {
        ("w/o DC", None)
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read: No such file"),
        ("a,b\n1,2\n", "is not the images.csv of an evaluation"),
        (
            "dataset,quality,method,image,psnr,ssim,psnr_b,gmsd\nlive1,10,jpeg\n",
            "is not",
        ),
        (
            "dataset,quality,method,image,psnr,ssim,psnr_b,gmsd\nx,10,jpeg,a,1,1,1,1\n",
            "has no image of live1 at these quality factors",
        ),
        (
            "dataset,quality,method,image,psnr,ssim,psnr_b\nlive1,10,jpeg,a,1,1,1\n",
            "lacks the metric gmsd; evaluate these runs again",
        ),
    ],
)
def test_a_file_of_earlier_runs_that_does_not_fit_is_one_line(tmp_path, text, message):
    path = tmp_path / "a.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        table1.table1(_config(measured=str(path)), str(tmp_path))


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
