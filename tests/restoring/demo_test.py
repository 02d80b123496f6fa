"""Tests of the page in a real, headless browser.

They run where the extra `demo`, playwright and Chromium are installed (.ci/run makes an
environment for them).
"""

import io
import os
import pathlib
import shutil
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

from cqr_jax.data.compression import Compression, libjpeg
from cqr_jax.restoring.picture import Picture
from cqr_jax.restoring.quality import Quality
from cqr_jax.restoring.restorer import Restoration
from tests.conftest import save_fresh, start

pytest.importorskip("gradio", reason="needs the extra 'demo'")

from cqr_jax.restoring import demo

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if not CHROMIUM:
    pytest.skip("needs Chromium", allow_module_level=True)
SHOTS = os.environ.get("CQR_JAX_SHOTS")  # a folder for screenshots


def _serve(*flags):
    process = start("cqr_jax.restoring", "--demo", *flags)
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def url():
    yield from _serve()


@pytest.fixture(scope="module")
def colour_url(tmp_path_factory):
    """Serves a network whose output depends on the quality factor."""
    path = save_fresh(tmp_path_factory.mktemp("weights"), "colour")
    yield from _serve(f"--weights={path}")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def photograph():
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.coffee()[96:216, 200:360])


def _open(browser, url, *paths):
    """Opens the page and drops files on it."""
    page = browser.new_page(viewport={"width": 1100, "height": 1400})
    page.goto(url)
    page.locator("#file input[type=file]").set_input_files(paths)
    return page


def _rows(page, count):
    """Waits for this number of rows; returns their cells, without the header."""
    rows = page.locator("#quality table tr:has(td)")
    playwright.expect(rows).to_have_count(count, timeout=120_000)
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def _downloaded(page, button):
    with page.expect_download() as caught:
        page.locator(button).click()
    return caught.value


def _shoot(page, name):
    shot = page.screenshot(full_page=True)
    if SHOTS:
        pathlib.Path(SHOTS, f"{name}.png").write_bytes(shot)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def _set(page, dial, value):
    number = page.locator(f"#{dial} input[type=number]")
    number.fill(str(value))
    number.press("Enter")
    page.locator(f"#{dial} input[type=range]").dispatch_event("pointerup")


def _wait_for(page, text):
    page.locator("#quality").get_by_text(text).first.wait_for(timeout=60_000)


def test_dropped_image_is_restored_and_can_be_downloaded(
    url, browser, photograph, tmp_path
):
    path = tmp_path / "photo.jpg"
    photograph.save(path, quality=10)
    page = browser.new_page(viewport={"width": 1100, "height": 1400})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator("#file input[type=file]").set_input_files(path)
    ((name, tables, _, _, scores),) = _rows(page, 1)
    assert (name, tables) == ("photo.jpg, 160x120", "QF 10, 4:2:0, libjpeg's")
    before, after = map(float, scores.split(" → "))
    assert after > before + 1

    playwright.expect(page.locator("#comparison img")).to_have_count(2)
    playwright.expect(page.locator("#gallery img")).to_have_count(1)
    download = _downloaded(page, "#download")
    assert download.suggested_filename == "photo.png"
    found = np.asarray(Image.open(download.path()))
    assert found.shape == (120, 160, 3)
    with zipfile.ZipFile(_downloaded(page, "#archive").path()) as archive:
        assert archive.namelist() == ["photo.png"]
        packed = np.asarray(Image.open(io.BytesIO(archive.read("photo.png"))))
        np.testing.assert_array_equal(packed, found)
    local = (url, "data:", f"blob:{url}")
    assert [x for x in asked if not x.startswith(local)] == []
    shot = Image.fromarray(_shoot(page, "one"))
    assert len(shot.getcolors(2**24)) > 5000

    # Strength 0 leaves the picture unchanged.
    _set(page, "strength", 0)
    _wait_for(page, f"{before:.2f} → {before:.2f}")
    again = np.asarray(Image.open(_downloaded(page, "#download").path()))
    np.testing.assert_array_equal(again, np.asarray(Image.open(path)))


def test_several_files_are_listed_packed_and_shown(
    colour_url, browser, photograph, tmp_path
):
    """Failures are listed, equal names made distinct, and the gallery selects one."""
    photograph.save(tmp_path / "a.jpg", quality=10, subsampling=0)
    photograph.rotate(180).save(tmp_path / "a.png")
    photograph.convert("L").save(tmp_path / "gray.jpg", quality=30)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    names = ("a.jpg", "bad.jpg", "a.png", "gray.jpg")
    page = _open(browser, colour_url, *(tmp_path / name for name in names))
    first, failed, second, third = _rows(page, 4)
    assert len(failed) == 1
    assert failed[0].startswith("bad.jpg: not an image")
    assert first[:3] == [
        "a.jpg, 160x120",
        "QF 10, 4:4:4, libjpeg's",
        "QF 10, from its tables",
    ]
    assert first[3] in ("yes", "no: compressed before")
    assert second[1].startswith("no tables; ")
    assert second[3] == "no: no stored coefficients"
    assert third[1] == "QF 30, gray, libjpeg's"
    playwright.expect(page.locator("#gallery img")).to_have_count(3)
    playwright.expect(page.locator("#download")).to_have_count(0)
    with zipfile.ZipFile(_downloaded(page, "#archive").path()) as archive:
        assert archive.namelist() == ["a.png", "a-2.png", "gray.png"]
        assert archive.testzip() is None
        modes = [
            Image.open(io.BytesIO(archive.read(name))).mode
            for name in archive.namelist()
        ]
        assert modes == ["RGB", "RGB", "L"]
    _shoot(page, "several")

    images = page.locator("#comparison img")
    playwright.expect(images).to_have_count(2)
    before = images.first.get_attribute("src")
    assert "a.before.png" in before
    page.locator("#gallery button:has(img)").nth(2).click()
    page.wait_for_function(
        "document.querySelector('#comparison img').src.includes('gray.before.png')",
        timeout=60_000,
    )
    _shoot(page, "chosen")


def test_dial_sets_the_quality_factor_for_the_network(
    colour_url, browser, photograph, tmp_path
):
    path = tmp_path / "photo.jpg"
    photograph.save(path, quality=50)
    page = _open(browser, colour_url, path)
    ((_, tables, told, _, _),) = _rows(page, 1)
    assert (tables, told) == ("QF 50, 4:2:0, libjpeg's", "QF 50, from its tables")
    former = page.locator("#comparison img").first.evaluate("image => image.src")
    assert page.request.get(former).ok
    found = []
    for factor in (90, 5):
        _set(page, "dial", factor)
        _wait_for(page, f"QF {factor}, set by hand")
        assert _rows(page, 1)[0][3] == "no: QF set by hand"
        found.append(np.asarray(Image.open(_downloaded(page, "#download").path())))
    assert (found[0] != found[1]).any()
    assert not page.request.get(former).ok, "former results are deleted"
    _set(page, "dial", 0)
    _wait_for(page, "QF 50, from its tables")


def test_file_that_is_no_image_is_reported(url, browser, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    page = _open(browser, url, path)
    page.get_by_text("broken.jpg: not an image").wait_for(timeout=60_000)
    playwright.expect(page.locator("#comparison img")).to_have_count(0)
    playwright.expect(page.locator("#archive")).to_have_count(0)


def test_failure_clears_the_previous_picture(url, browser, tmp_path):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    Image.new("RGB", (64, 48), "teal").save(good, quality=97)
    bad.write_bytes(b"no image")
    page = _open(browser, url, good)
    assert _rows(page, 1)[0][0] == "good.jpg, 64x48"
    page.locator("#file button[aria-label='Clear']").first.click()
    page.locator("#file input[type=file]").set_input_files(bad)
    page.get_by_text("bad.jpg: not an image").wait_for(timeout=60_000)
    playwright.expect(page.locator("#comparison img")).to_have_count(0)
    playwright.expect(page.locator("#gallery img")).to_have_count(0)
    playwright.expect(page.locator("#archive")).to_have_count(0)


def test_distinct_numbers_equal_stems():
    names = ["a-2.jpg", "a.jpg", "a.png", "A.webp", "b.tar.jpg", "a"]
    assert demo.distinct(names, ".png") == [
        "a-2.png",
        "a.png",
        "a-3.png",
        "A-4.png",
        "b.tar.png",
        "a-5.png",
    ]
    assert demo.distinct([], ".png") == []


def test_tables_say_gives_quality_factor_sampling_and_origin():
    sure, vague = Quality(1.0, 12, "ranker"), Quality(5.0, 40, "ranker, vague")
    luma = (2,) * 64
    for compression, found, expected in (
        (None, sure, "no tables; the ranker estimates QF 12"),
        (None, Quality(5.0, 70, "pixels"), "no tables; its pixels tell QF 70"),
        (None, vague, "no tables; quality unknown"),
        (libjpeg(30), vague, "QF 30, 4:2:0, libjpeg's"),
        (libjpeg(30, (1, 2)), vague, "QF 30, 4:2:2, libjpeg's"),
        (libjpeg(30, (4, 2)), vague, "QF 30, chroma 1/2 x 1/4, libjpeg's"),
        (libjpeg(30, gray=True), vague, "QF 30, gray, libjpeg's"),
        (
            libjpeg(30)._replace(chroma=luma),
            vague,
            "about QF 30, 4:2:0, not libjpeg's",
        ),
        (Compression(luma), vague, "about QF 99, gray, not libjpeg's"),
    ):
        assert demo.tables_say(compression, found) == expected


def test_page_describes_quality_factor_and_projection():
    done = Restoration(Picture(np.zeros((8, 8, 1), np.uint8)))
    assert demo.condition_of(done) == "nothing"
    assert demo.condition_of(
        done._replace(quality_factor=9, quality_factor_from="pixels")
    ) == ("QF 9, found from its pixels")
    assert demo.projection_of(done._replace(projected=True)) == "yes"
    assert demo.projection_of(done._replace(compressed_before=True)) == (
        "no: compressed before"
    )


def test_table_escapes_names():
    found = demo.table([("<b>*x*|.jpg: not an image",)])
    assert '<td colspan="5">&lt;b&gt;*x*|.jpg: not an image</td>' in found
    assert demo.table([]) == ""
