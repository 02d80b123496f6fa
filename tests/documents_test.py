"""Tests of the commands, the code and the links in the documents.

Each shell command has to match a pattern of `WAYS`, which says how it is tested. A new
kind of command needs a new pattern.
"""

import copy
import functools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

import cqr_jax.main  # noqa: F401  # defines the flags
from cqr_jax import tasks
from tests.conftest import ROOT

DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "cqr_jax" / "weights" / "README.md",
)
RUN, CONFIG, FLAGS = "run", "config", "flags"
# Pattern of the start of a command -> how it is tested. RUN: it runs and writes the
# files that it names. CONFIG: its config is loaded, overridden and checked, because the
# rest takes hours or a cluster. FLAGS: its module has its flags. Any other text is the
# reason why the command is not tested here.
WAYS = {
    r".*--config\.loss\.edge=": "needs a patch; tests/extending_test.py applies it",
    r".*-m cqr_jax\.main ": CONFIG,
    r".*-m (data_prep|benchmarks)\.\w+|build ": FLAGS,
    r"(cat \S+ \| )?cqr-restore (?!--demo)": RUN,
    r"python -m cqr_jax\.(evaluation\.(panels|activity)|weights|export) ": RUN,
    r".*python -m docs\.configs ": RUN,
    r".*-m cqr_jax\.restoring\.on_beam ": "tests/restoring/on_beam_test.py, with Beam",
    r".*python notebooks/execute\.py": "tests/notebooks_test.py runs the notebooks",
    r"PDOC.*python -m pdoc ": "tests/reference_test.py runs it",
    r"python3 -m venv ": "installs packages; .ci/run runs the README's command",
    r"\.venv/bin/python -m pytest": "runs the tests, these among them",
    r"\.venv/bin/ruff ": "changes the repository; .ci/run runs the checks",
    r"recipes/": "trains for hours; its commands are tested one by one",
    r"\.ci/run\b": "runs the tests, these among them",
}
# Lines that only hold commands together.
SYNTAX = r"#|for \w+ in .*; do$|done$|wait$|$"
PLACEHOLDERS = {
    ".venv/bin/": "",  # the tests run in this environment
    "LEFT,TOP,WIDTH,HEIGHT": "8,16,48,40",
    "$core": "0",
    "$i": "0",
}


def _blocks(path: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def _commands() -> list[str]:
    """Returns the commands of the documents and of the recipes, one per line."""
    blocks = [block for path in DOCUMENTS for block in _blocks(path, "sh")]
    recipes = [path.read_text() for path in (ROOT / "recipes").glob("*.sh")]
    lines = re.sub(r"\\\n *", "", "\n".join(blocks)).splitlines()
    found = [line.strip().removesuffix(" &") for line in lines]
    for line in re.sub(r"\\\n *", "", "\n".join(recipes)).splitlines():
        if line.startswith('"$python" '):
            found.append(line.replace('"$python"', "python").replace("$", ""))
    return [line for line in found if not re.match(SYNTAX, line)]


def _way(command: str) -> str | None:
    return next((way for x, way in WAYS.items() if re.match(x, command)), None)


def _those(way: str) -> list[str]:
    found = [command for command in _commands() if _way(command) == way]
    # Commands that differ in their comments alone are one.
    return list({x.partition(" #")[0].strip(): x for x in reversed(found)}.values())


def _filled(command: str) -> str:
    """Returns the command with values in place of its placeholders."""
    for name, value in PLACEHOLDERS.items():
        command = command.replace(name, value)
    return command


def _bash(command: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", _filled(command)],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_command_matches_one_of_the_ways():
    assert [command for command in _commands() if not _way(command)] == []


@pytest.fixture
def workplace(tmp_path, image):
    """A folder with the files that the commands name."""
    runs = ("runs/NAME", "runs/deblock-colour", "runs/deblock-compact")
    folders = ("holidays/beach", *runs, "runs/ranker-compact")
    for folder in (*folders, "cqr_jax/weights", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    picture = Image.fromarray(image)
    picture.convert("RGB").save(tmp_path / "IMAGE", "png")
    for name in ("photo.jpg", "holidays/a.jpg", "holidays/beach/b.jpg"):
        picture.save(tmp_path / name, quality=10)
    shipped = ROOT / "cqr_jax" / "weights"
    for path in shipped.glob("*.safetensors"):  # which some commands overwrite
        shutil.copy(path, tmp_path / "cqr_jax" / "weights")
    for name, weights in (
        ("A", "compact"),
        ("RANKER", "compact-ranker"),
        ("runs/ranker-compact/ranker", "compact-ranker"),
        *((f"{run}/deblocker", "compact") for run in runs),
    ):
        path = tmp_path / f"{name}.safetensors"
        shutil.copy(shipped / f"{weights}.safetensors", path)
    return tmp_path


@pytest.mark.parametrize("command", _those(RUN))
def test_command_runs_and_writes_its_outputs(command, workplace):
    made = _bash(command, workplace)
    assert made.returncode == 0, made.stderr
    outputs = re.findall(
        r"(?:-o |> |--(?:output|ship|luma)=|export |# writes )(\w\S+)", command
    )
    assert outputs or made.stdout
    for output in outputs:
        path = workplace / output
        assert path.stat().st_size
        if path.is_dir():
            assert _stems(path) == _stems(workplace / "holidays")


def _stems(folder: pathlib.Path) -> set[str]:
    found = (x.relative_to(folder) for x in folder.rglob("*.*"))
    return {str(x.with_suffix("")) for x in found}


# ml_collections imports config files in a deprecated way.
LOADING = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@LOADING
@pytest.mark.parametrize("command", _those(CONFIG))
def test_config_of_a_command_is_valid(command, monkeypatch):
    _check(command, monkeypatch)


@LOADING
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("none.py", "No such file"),
        ("eval.py:blnd", "unknown preset 'blnd'"),
        ("ranker.py --config.setps=8", "setps"),
        ("ranker.py --config.steps=many", "invalid literal"),
        ("ranker.py --config.steps=0", "must be at least 1"),
        ("ranker.py --distribute", "Unknown command line flag"),
    ],
)
def test_invalid_config_is_rejected(arguments, words, monkeypatch):
    with pytest.raises(Exception, match=words):
        _check(f"python -m cqr_jax.main --config=configs/{arguments}", monkeypatch)


def _check(command: str, monkeypatch) -> None:
    """Parses the flags of a command and checks its config."""
    text = re.findall(r"-m cqr_jax\.main ([^'&|>]*)", _filled(command))[0]
    arguments = ["main", *shlex.split(text)]
    monkeypatch.chdir(ROOT)
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=parsed, sys_argv=arguments[1:]
    )
    for name in ("distributed", "coordinator", "processes", "process"):
        parsed[name] = copy.deepcopy(flags.FLAGS[name])
    parsed(arguments)
    tasks.check(parsed.config)


@functools.cache
def _help(module: str) -> subprocess.CompletedProcess:
    return _bash(f"python -m {module} --help", ROOT)


@pytest.mark.parametrize("command", _those(FLAGS))
def test_flags_of_a_command_are_known(command):
    found = re.match(r".*-m (\w+\.\w+)", command)
    told = _help(found[1] if found else "data_prep.build")
    assert told.returncode == 0, told.stderr
    for flag in re.findall(r" (--\w[\w-]*)", command):
        assert re.search(rf"{flag}(?![\w-])", told.stdout), flag


@pytest.mark.parametrize("code", _blocks(ROOT / "README.md", "python"))
def test_code_of_the_readme_runs(code, tmp_path):
    (tmp_path / "code.py").write_text(
        f"import numpy\nimage = numpy.full((48, 40), 99, numpy.uint8)\n{code}"
    )
    made = _bash("python -W error code.py", tmp_path)
    assert made.returncode == 0, made.stderr


def test_code_of_the_page_on_python_runs(workplace, image):
    Image.fromarray(image).save(workplace / "photo.jpg", quality=100)
    blocks = _blocks(ROOT / "docs" / "python.md", "python")
    (workplace / "code.py").write_text("\n".join(blocks))
    made = _bash("python -W error code.py", workplace)
    assert made.returncode == 0, made.stderr
    measured = dict(line.rsplit(" ", 1) for line in made.stdout.splitlines())
    before, after = next(map(float, x) for x in measured.items())
    assert before < after
    assert 0 < float(measured["L_Q"]) < 1
    assert float(measured["L_F"]) > 50 * float(measured["L_MAE"])


def test_links_and_pictures_exist():
    broken = []
    for path in (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")):
        for link in _links(path.read_text()):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def _links(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    found = re.findall(r"""\]\(([^)\s]+)|(?:src|href)=["']([^"']+)""", text)
    return [x or y for x, y in found if not re.match(r"\w+:", x or y)]


def _anchors(path: pathlib.Path) -> list[str]:
    """Returns the anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return [re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in titles]


@pytest.mark.parametrize("name", ["colour", "compact", "ranker"])
def test_recipe_without_folders_prints_its_usage_in_any_folder(name, tmp_path):
    recipe = ROOT / "recipes" / f"{name}.sh"
    command = ["bash", os.path.relpath(recipe, tmp_path)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert f"  recipes/{name}.sh " in found.stderr
    assert found.stderr.endswith("The default is the one in .venv.\n")


def test_recipe_finds_folders_from_the_current_one(tmp_path):
    (tmp_path / "mine").mkdir()
    python = tmp_path / "python"  # prints its arguments and ends the recipe
    python.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    python.chmod(0o755)
    found = subprocess.run(
        ["bash", ROOT / "recipes" / "ranker.sh", "mine"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert f"--source={tmp_path.resolve()}/mine --name=photos" in found.stdout
