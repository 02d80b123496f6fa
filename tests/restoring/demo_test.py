"""The page in a real browser, headless.

Runs where the extra `demo`, playwright and Chromium are installed (.ci/run gives it an
environment of its own).
"""

import io
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.conftest import start

CHROMIUM = shutil.which("chromium")
pytest.importorskip("gradio", reason="needs the extra 'demo'")
playwright = pytest.importorskip("playwright.sync_api")
if not CHROMIUM:
    pytest.skip("needs Chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def url():
    process = start("cqr_jax.restore", "--demo")
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


def test_dropping_an_image(url, browser, tmp_path):
    path = tmp_path / "photo.jpg"
    data = pytest.importorskip("skimage.data")
    Image.fromarray(data.coffee()[96:216, 200:360]).save(path, quality=10)
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator("#file input[type=file]").set_input_files(path)
    table = page.locator("#quality table")
    table.wait_for(timeout=120_000)
    rows = [
        row.split("\t") for row in table.inner_text().splitlines() if "QF" not in row
    ]
    (_, before, factor), (_, after, _) = [row for row in rows if len(row) == 3][-2:]
    assert factor == "10 (tables)"
    assert float(after) > float(before) + 1

    playwright.expect(page.locator("#comparison img")).to_have_count(2)
    with page.expect_download() as caught:
        page.locator("#download").click()
    found = np.asarray(Image.open(caught.value.path()))
    assert found.shape == (120, 160, 3)
    local = (url, "data:", f"blob:{url}")
    assert [x for x in asked if not x.startswith(local)] == []
    shot = page.screenshot(full_page=True)
    assert len(Image.open(io.BytesIO(shot)).convert("RGB").getcolors(2**24)) > 5000

    # Without strength the picture is what it was.
    number = page.locator("input[type=number]")
    number.fill("0")
    number.press("Enter")
    page.locator("input[type=range]").dispatch_event("pointerup")
    page.wait_for_function(
        "before => document.querySelector('#quality').innerText"
        ".split('after')[1].includes(before)",
        arg=before,
        timeout=60_000,
    )


def test_what_is_no_image(url, browser, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    page = browser.new_page()
    page.goto(url)
    page.locator("#file input[type=file]").set_input_files(path)
    page.get_by_text("broken.jpg: not an image").wait_for(timeout=60_000)


def test_what_fails_leaves_nothing_of_the_picture_before(url, browser, tmp_path):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    Image.new("RGB", (64, 48), "teal").save(good, quality=97)
    bad.write_bytes(b"no image")
    page = browser.new_page()
    page.goto(url)
    page.locator("#file input[type=file]").set_input_files(good)
    page.get_by_text("From QF 95 on, JPEGs lose").wait_for(timeout=60_000)
    page.locator("#file button[aria-label='Clear']").first.click()
    page.locator("#file input[type=file]").set_input_files(bad)
    page.get_by_text("bad.jpg: not an image").wait_for(timeout=60_000)
    playwright.expect(page.locator("#comparison img")).to_have_count(0)
    playwright.expect(page.locator("#quality table")).to_have_count(0)
