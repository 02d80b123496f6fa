"""Tests that each notebook runs, and that its claims are true."""

import configparser
import os
import pathlib
import shutil

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, digest, execute
from tests.conftest import FAST_COMPILING, ROOT

# Name of a notebook -> claims of its text, tested in an additional last cell.
CHECKS = {
    "deblock": """
        assert metrics.psnr_b(clean, good) > metrics.psnr_b(clean, bad) + 3
        assert len(masks) == deblocker.model.local_blocks + 2
        assert 0 <= min(m.min() for m in masks.values())
        assert max(m.max() for m in masks.values()) <= 1
        assert np.min([gains["colour", 0], gains["colour", 3]]) > 0.1
        assert gains["compact", 0][-1] < 0 < gains["compact", 0][1]
        assert np.abs(shift).max() < 0.5
        plain, faded = (np.abs(255 * (x - at_once)).max() for x in parts.values())
        assert faded < 3 < plain
        assert float(rows[-1]["psnr"]) > float(rows[0]["jpeg"])
        assert (folder / "mine" / "deblocker.safetensors").exists()
    """,
    "explore_ranker": """
        assert across_levels > 0.99 and accuracy[0] > 0.9 and accuracy[3:].min() == 1
        assert np.all(np.diff(scores[2:30].mean(1)) > 0)
        columns = {k: np.abs(x).reshape(-1, 8).mean(0) for k, x in pulls.items()}
        assert columns["QF 10"][[0, 1, 7]].min() > 1.04 * columns["QF 10"].mean()
        assert columns["clean"][0] < columns["clean"].mean()
        assert curves[0, 1] > curves[-1, 1] and curves[-1, 1] < 1e-3
        assert np.mean(score(restored[10])) > scores[9].mean() + 5
        up, down = (trail for _, trail in climbed.values())
        assert up[-1, 0] > 2 * clean_scores.mean() and up[-1, 1] < up[0, 1] - 2
        assert down[-1, 1] > down[0, 1]
    """,
}

# Name of a notebook -> parts of its code, each with what shortens it for the test.
SHORTER = {
    "deblock": {
        "qualities = [5, 10, 20, 30, 50, 70, 80, 90]": "qualities = [5, 20, 90]",
        "config.steps, config.validate_every = 160, 20": (
            "config.steps, config.validate_every = 80, 40"
        ),
        "config.ranker.steps, config.ranker.validate_every = 100, 20": (
            "config.ranker.steps, config.ranker.validate_every = 20, 10"
        ),
        'config.evaluation.sets = "embedded"': (
            'config.evaluation.sets, config.evaluation.qualities = "embedded", (10,)'
        ),
        # The processes that it starts compile more than they compute.
        "python = sys.executable": (
            f"python, os.environ['XLA_FLAGS'] = sys.executable, {FAST_COMPILING!r}"
        ),
        "--config.steps=20 --config.validate_every=20": (
            "--config.steps=2 --config.validate_every=2 --config.model.local_blocks=0 "
            "--config.optimizer.warmup_steps=0 --config.loss.alpha=0 "
            "--config.loss.beta=0"
        ),
    },
}


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> pathlib.Path:
    return request.param


def kinds(notebook) -> list[list[str]]:
    """Returns the kinds of the outputs of each code cell, in order.

    Consecutive texts count once, because the number of their parts is random.
    """
    found = [
        [kind for x in cell.outputs for kind in x.get("data", {"text": ""})]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [
        [
            kind
            for i, kind in enumerate(cell)
            if kind != "text" or cell[i - 1 : i] != ["text"]
        ]
        for cell in found
    ]


@pytest.mark.slow
def test_notebook_runs_and_gives_the_committed_kinds_of_outputs(
    path, tmp_path, monkeypatch
):
    # Notebooks compute more than they compile.
    flags = os.environ["XLA_FLAGS"].replace(FAST_COMPILING, "").strip()
    monkeypatch.setenv("XLA_FLAGS", flags)
    notebook = nbformat.read(path, as_version=4)
    committed = kinds(notebook)
    for long, short in SHORTER.get(path.stem, {}).items():
        assert sum(long in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    lines = [line.strip() for line in CHECKS[path.stem].strip().splitlines()]
    notebook.cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
    for name in ("configs", "notebooks"):  # the folders that they need
        shutil.copytree(ROOT / name, tmp_path / name)
    executed = execute(notebook, tmp_path / "notebooks")
    assert kinds(executed)[:-1] == committed


def test_committed_outputs_have_pictures_and_no_traces_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in kind for kind in kinds(notebook)) >= 7
    assert notebook.metadata.executed == digest(notebook)  # else execute it again
    assert all(cell.execution_count is None for cell in code)
    for output in (x for cell in code for x in cell.outputs):
        assert output.get("name") != "stderr"
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain"))
        assert not any(x in text for x in ("/home", "/root", "/tmp", "0x", "site-"))


def test_notebook_links_to_the_repository_of_setup_cfg(path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    url = setup["metadata"]["url"]
    repository = url.removeprefix("https://github.com/")
    assert repository != url
    notebook = nbformat.read(path, as_version=4)
    badge, install = notebook.cells[0].source, notebook.cells[2].source
    name = f"notebooks/{path.name}"
    assert f"colab.research.google.com/github/{repository}/blob/main/{name})" in badge
    assert url in install
    assert (ROOT / name).exists()
