"""Tests that docs/configs.md is up to date and explains every field."""

import shutil
import subprocess
import sys

import pytest

from cqr_jax.config import flat
from docs import configs
from tests.conftest import ROOT


def test_page_is_up_to_date():
    page = (ROOT / "docs" / "configs.md").read_text()
    assert page == configs.page(), "python -m docs.configs > docs/configs.md"


@pytest.mark.parametrize("file", configs.FILES)
def test_every_field_is_explained(file):
    missing = [row.field for row in configs.rows(file) if not row.explanation]
    assert not missing, f"configs/{file}.py: every field needs a comment"


def test_every_field_is_in_a_table():
    files = {path.stem for path in configs.FOLDER.glob("*.py")}
    assert files == {*configs.FILES, "common"}
    found = {file: {row.field for row in configs.rows(file)} for file in configs.FILES}
    for file in configs.FILES:
        for preset in configs.presets(file):
            config = configs.module(file).get_config(preset)
            for field in flat(config):
                group, _, rest = field.partition(".")
                places = {
                    "ranker": rest in found["ranker"],
                    "evaluation": rest in found["eval"],
                }
                known = field in found[file] | found["deblock"] | {"task"}
                assert known or places.get(group), f"{file}:{preset} {field}"


@pytest.mark.parametrize(
    ("file", "field", "values", "words"),
    [
        ("deblock", "model.width", "`64` `48` `16` `48`", "channels"),
        (
            "deblock",
            "optimizer.clip_norm",
            "`0.0` `0.1` `0.0` `0.1`",
            "; preset compact, colour: the norm is usually 0.02",
        ),
        (
            "ablation",
            "model.width",
            "`64` `24` `16` `48`",
            "as in [configs/deblock.py]",
        ),
        (
            "deblock",
            "ranker",
            "   ",
            "`grad_accum_steps`, `parallel` and `seed` follow",
        ),
        (
            "deblock",
            "evaluation.panels",
            "`False` `False` `True` `False`",
            "as in [configs/e",
        ),
        ("eval", "levels", "- - `3` - - -", "divide that range equally"),
        (
            "eval",
            "weights",
            '`""` - `""` `""` `""` `""`',
            "a column each; preset ranker: the ranker",
        ),
        (
            "ablation",
            "loss.alpha",
            "`0.01` `0.001` `0.0001` `0.0`",
            "; preset compact: L_Q and L_F have gradients",
        ),
        ("ablation", "seeds", "`0,1,2` `0,1,2` `0,1,2` `0,1,2`", "of each variant"),
    ],
)
def test_rows_have_each_preset_s_value_and_the_explanation(file, field, values, words):
    (row,) = (row for row in configs.rows(file) if row.field == field)
    assert row.values == tuple(values.split(" "))
    assert words in row.explanation


def test_a_comment_above_the_field_is_its_explanation():
    (row,) = (row for row in configs.rows("eval") if row.field == "sets")
    assert row.explanation.startswith("classic5, live1, ")


@pytest.mark.parametrize(
    ("source", "assignment", "file", "field"),
    [
        ("aot", "c.side", "aot", "side"),
        ("common", "c.clip_norm", "ranker", "optimizer.clip_norm"),
        ("common", "c.keep", "ranker", "keep"),
    ],
)
def test_a_field_without_a_comment_has_no_explanation(
    source, assignment, file, field, tmp_path, monkeypatch
):
    shutil.copytree(ROOT / "configs", tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{source}.py"
    lines = path.read_text().splitlines()
    bare = [x.partition("  #")[0] if assignment in x else x for x in lines]
    path.write_text("\n".join(bare))
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    missing = [row.field for row in configs.rows(file) if not row.explanation]
    assert missing == [field]


def test_configs_import_neither_jax_nor_tensorflow():
    modules = ", ".join(f"configs.{file}" for file in configs.FILES)
    code = f"import sys, {modules}; print(*{{'jax', 'tensorflow'}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("\n", "")
