"""Tests the reference that pdoc makes with the command in CONTRIBUTING.md."""

import re
import subprocess
import sys

from tests.conftest import ROOT

LEFT_OUT = ("__main__", "demo", "on_beam")  # demo and on_beam need other extras

DOCSTRINGS = (
    ("cqr_jax/restoring/api", "Removes the artifacts of JPEG compression from"),
    (
        "cqr_jax/restoring/api",
        "<strong>strength:</strong>  share of the change to make",
    ),
    ("cqr_jax/models/deblocker", "dilated local blocks between the two non-local"),
    ("cqr_jax/models/deblocker", 'id="Deblocker.local_blocks"'),
    ("data_prep/build", "Makes the records of"),
)


def test_reference_has_a_page_for_each_module_and_the_docstrings(tmp_path):
    document = (ROOT / "CONTRIBUTING.md").read_text()
    (command,) = re.findall("^PDOC.*-m pdoc.*", document, flags=re.M)
    command = command.replace(".venv/bin/python", f"{sys.executable} -W error")
    command = command.replace("-o site", f"-o {tmp_path} --no-show-source")
    made = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    assert "Warn: " not in made.stderr

    modules = {
        path.parent if path.stem == "__init__" else path.with_suffix("")
        for package in ("cqr_jax", "data_prep")
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in LEFT_OUT
    }
    pages = {x.relative_to(tmp_path).with_suffix("") for x in tmp_path.rglob("*.html")}
    assert {str(x) for x in pages} == {
        "index",
        *(str(x.relative_to(ROOT)) for x in modules),
    }
    for page, words in DOCSTRINGS:
        assert words in (tmp_path / f"{page}.html").read_text(), page
    submodules = (tmp_path / "cqr_jax" / "restoring.html").read_text()
    assert 'href="restoring/api.html"' in submodules
    assert 'href="restoring/demo.html"' not in submodules
