"""Metrics of the ranker for scores made by hand, and the command as a process."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from configs import eval as evaluation
from cqr_jax.errors import UserError
from cqr_jax.evaluation import ranker
from tests.conftest import save_fresh

LEVELS = ((1, 10), (11, 20), (21, 30))


def test_metrics_of_a_perfect_ranker():
    scores = np.stack([np.arange(100.0), np.arange(100.0) * 2 + 7])
    result = ranker.summary(scores, np.array([200.0, 90.0]), LEVELS)
    assert result["accuracy"] == 1
    assert result["accuracy_by_levels"] == {"1-2": 1, "1-3": 1, "2-3": 1}
    assert set(result["accuracy_by_distance"].values()) == {1}
    assert list(result["accuracy_by_distance"]) == [str(d) for d in range(1, 30)]
    for name in ("spearman", "kendall"):
        assert result[name]["mean"] == pytest.approx(1)
        assert result[name]["pooled"] < 1  # two images, two scales
    clean = result["clean"]
    assert (clean["mean"], clean["std"]) == (145, 55)
    assert (clean["fraction_above_q30"], clean["fraction_above_q100"]) == (1, 0.5)
    # By hand, at QF 20: the first image scores 19, as the second at QF 7; the second
    # scores 45, as the first at QF 46. At QF 50: 49, as the second at QF 22; 105, above
    # the first at QF 100.
    error = result["qf_error"]
    assert error["20"] == {"mean": 19.5, "max": 26}
    assert error["50"] == {"mean": 39, "max": 50}


def test_metrics_of_a_ranker_with_one_swap_and_one_tie():
    """QF 10 and 11 are swapped; QF 21 and 22 are tied, which counts as an error."""
    scores = np.arange(1.0, 101)[None]
    scores[0, [9, 10]] = scores[0, [10, 9]]
    scores[0, 21] = scores[0, 20]
    result = ranker.summary(scores, np.array([50.0]), LEVELS)
    assert result["accuracy"] == pytest.approx(1 - 1 / 300)
    assert result["accuracy_by_levels"] == pytest.approx(
        {"1-2": 0.99, "1-3": 1, "2-3": 1}
    )
    assert result["accuracy_by_distance"]["1"] == pytest.approx(27 / 29)
    assert result["accuracy_by_distance"]["2"] == 1
    # tau-b: 435 pairs, one discordant, one tied in score.
    assert result["kendall"]["mean"] == pytest.approx(432 / (435 * 434) ** 0.5)
    assert result["clean"]["fraction_above_q30"] == 1
    assert result["clean"]["fraction_above_q100"] == 0
    assert result["qf_error"] == {}  # there is no other image


def test_the_plot_shows_the_scores():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 100)).cumsum(axis=1)
    flat = np.zeros_like(scores)

    def drawn(scores):
        with Image.open(io.BytesIO(ranker.plot(scores, scores[:, -1]))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    coloured = [np.ptp(drawn(x), axis=-1) > 50 for x in (scores, flat)]
    assert coloured[0].sum() > 500
    assert (coloured[0] != coloured[1]).sum() > 500


def test_the_task_writes_scores_and_metrics(photographs, tmp_path, capsys):
    path = save_fresh(tmp_path, "ranker")
    config = evaluation.get_config("ranker")
    config.sets, config.workdir = str(photographs), str(tmp_path / "out")
    config.weights, config.side = str(path), 64
    ranker.evaluate_ranker(config)
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "ranker.json").read_text())
    assert result["images"] == 4
    assert f"{result['accuracy']:.4f}" in out.splitlines()[1]
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [len(row) for row in rows] == [102] * 4
    scores = np.array([[float(row[str(q)]) for q in range(1, 101)] for row in rows])
    clean = np.array([float(row["clean"]) for row in rows])
    typical = (tmp_path / "out" / "typical.tsv").read_text().splitlines()
    assert typical[:2] == ["qf\tscore", f"1\t{np.median(scores[:, 0]):.4f}"]
    assert typical[100] == f"100\t{np.median(scores[:, 99]):.4f}"
    summary = ranker.summary(scores, clean, LEVELS)
    for name, value in summary.items():
        assert result[name] == value

    config = evaluation.get_config("ranker")
    config.sets, config.workdir = str(photographs), str(tmp_path / "out")
    with pytest.raises(UserError, match="name the ranker's weights"):
        ranker.evaluate_ranker(config)
    config.weights = str(path)
    with pytest.raises(UserError, match="smaller than 256 pixels; lower config"):
        ranker.evaluate_ranker(config)
