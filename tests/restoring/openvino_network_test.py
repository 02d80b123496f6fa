"""The network in OpenVINO gives what it gives in JAX, and is cached."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax import linen as nn

from cqr_jax import models, weights
from cqr_jax.data import jpeg
from cqr_jax.data.compression import FEATURES, features, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import metrics
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import jax_network, network
from data_prep import sources
from tests.networks import NETWORKS, SMALL, drawn

pytest.importorskip("openvino")
openvino_compiler = pytest.importorskip("cqr_jax.restoring.openvino_compiler")
openvino_network = pytest.importorskip("cqr_jax.restoring.openvino_network")

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cqr_jax"


def saved(path, deblocker):
    weights.save(path, "deblocker", deblocker.fields, deblocker.variables, {})
    return path


@pytest.mark.parametrize("kind", ["paper", *NETWORKS])
def test_float32_agrees_with_jax(tmp_path, kind):
    paper = {"width": 6, "local_blocks": 0}
    fields = SMALL | NETWORKS[kind] if kind in NETWORKS else paper
    deblocker = drawn(**fields)
    path = saved(tmp_path / "a.safetensors", deblocker)
    run = openvino_network.OpenvinoNetwork(path, "f32")
    expected = jax_network.JaxNetwork(deblocker)
    assert network.channels(run) == network.channels(expected)
    assert network.conditioned(run) == network.conditioned(expected)
    told = np.stack([features(libjpeg(q)) for q in (10, 50, 90)])
    for shape in [(3, 48, 48)] + [(3, 25, 43)] * (kind in ("paper", "pooled")):
        image = RNG.random(shape, np.float32)
        inputs = [(image,), (image, told)]
        if network.channels(run) == 3:
            inputs.append((RNG.random((*shape, 3), np.float32), told))
        for given in inputs:
            found = run(*given)
            assert found.dtype == np.float32
            assert 1e-3 < np.abs(found - given[0]).max() < 20
            np.testing.assert_allclose(found, expected(*given), atol=1e-4)


def test_8_bit_images_are_scaled_to_1(tmp_path):
    run = openvino_network.OpenvinoNetwork(weights.DEBLOCKER, "f32")
    image = RNG.integers(0, 256, (1, 32, 40), np.uint8)
    np.testing.assert_array_equal(run(image), run(image.astype(np.float32) / 255))


def test_bfloat16_loses_at_most_a_hundredth_of_a_decibel():
    core = openvino_compiler.import_openvino().Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    full, half = (
        openvino_network.OpenvinoNetwork(weights.DEBLOCKER, x) for x in ("f32", "bf16")
    )
    clean = jpeg.load_luma(sources.embedded("test")[1])[None, :256, :256]
    for quality in (10, 30, 50, 70, 90):
        image = jpeg.compress(clean[0], quality)[None]
        told = features(libjpeg(quality, gray=True))[None]
        given = (image, told) if network.conditioned(full) else (image,)
        scores = [
            metrics.psnr(clean[0], metrics.to_uint8(x(*given))[0]) for x in (full, half)
        ]
        assert abs(scores[0] - scores[1]) < 0.01, quality


_LATER = """
import json, sys
import numpy as np
from cqr_jax.restoring import network
run = network.load(sys.argv[1])
first = run(np.ones((1, 16, 16), np.float32))
heavy = ("jax", "flax", "onnx", "scipy", "openvino_telemetry")
print(json.dumps([run.engine_name, *(x for x in heavy if x in sys.modules)]))
"""


def _complete(deblocker):
    """The same with all fields of the module, which shipped files have."""
    defaults = dataclasses.asdict(Deblocker(parent=None))
    fields = {k: defaults[k] for k in defaults.keys() - {"parent", "name", "dtype"}}
    return deblocker._replace(fields=fields | deblocker.fields)


def _later(path):
    done = subprocess.run(
        [sys.executable, "-c", _LATER, str(path)], capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_a_later_process_takes_the_compiled_network_from_the_cache(tmp_path, cache):
    path = saved(tmp_path / "a.safetensors", _complete(drawn(width=6, local_blocks=0)))
    engine, *imported = _later(path)
    assert engine.startswith("OpenVINO (")
    assert imported == ["onnx"]
    (file,) = cache.glob("*.openvino")
    assert _later(path) == [engine]

    # Other weights are not taken for these.
    saved(path, drawn(width=6, local_blocks=0, tail=0.1))
    assert {"jax", "onnx"} <= {*_later(path)}  # JAX for the fields that it lacks
    assert len(list(cache.glob("*.openvino"))) == 2
    assert file.exists()


def test_a_picture_that_is_no_jpeg_is_restored_without_jax():
    script = """
import sys
import numpy as np
import cqr_jax
cqr_jax.restore(np.full((40, 40), 128, np.uint8))
assert "onnx" in sys.modules
assert not {"jax", "flax"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_shipped_weights_have_the_fields_that_spare_the_import_of_jax():
    held = weights.header(weights.DEBLOCKER, "deblocker")
    fields = openvino_network.LATER_FIELDS | held.fields
    assert fields.keys() >= _complete(drawn()).fields.keys() - {"remat"}
    defaults = {x.name: x.default for x in dataclasses.fields(Deblocker)}
    assert openvino_network.LATER_FIELDS.items() <= defaults.items()


def test_a_damaged_cache_is_replaced(tmp_path, cache):
    path = saved(tmp_path / "a.safetensors", drawn(width=6, local_blocks=0))

    def restored():
        run = openvino_network.OpenvinoNetwork(path)
        return run(np.full((1, 16, 16), 0.25, np.float32))

    expected = restored()
    (file,) = cache.glob("*.openvino")
    whole = file.read_bytes()
    for damaged in (b"", whole[:1000], b"x" * 1000):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(restored(), expected)
        assert len(file.read_bytes()) > len(whole) // 2


def test_the_compiled_networks_used_last_are_kept(tmp_path, cache):
    path = saved(tmp_path / "a.safetensors", drawn(width=6, local_blocks=0))
    cache.mkdir(parents=True)
    others = [cache / f"{i}.openvino" for i in range(10)]
    for age, other in enumerate(others):
        other.touch()
        os.utime(other, (0, 1000 - age))
    openvino_network.OpenvinoNetwork(path)(np.zeros((1, 16, 16), np.float32))
    (new,) = set(cache.glob("*.openvino")) - set(others)
    assert [x.exists() for x in others] == [True] * 7 + [False] * 3

    os.utime(new, (0, 0))
    openvino_network.OpenvinoNetwork(path)(np.zeros((1, 16, 16), np.float32))
    assert new.stat().st_mtime > 1000  # it was used


def test_a_cache_that_cannot_be_written_is_done_without(cache, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    run = openvino_network.OpenvinoNetwork(weights.DEBLOCKER)
    assert run(np.zeros((1, 16, 16), np.float32)).shape == (1, 16, 16)
    assert not cache.exists()


def test_openvino_is_the_default_on_cpus_alone(monkeypatch):
    for platforms, engine in (("cpu", "openvino"), ("cuda", "jax")):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert network.load(weights.DEBLOCKER).engine == engine
    assert network.load(weights.DEBLOCKER, "jax").engine == "jax"
    assert network.load(weights.DEBLOCKER, "openvino").engine == "openvino"
    monkeypatch.delenv("JAX_PLATFORMS")
    assert network.only_cpu()


def test_without_openvino_jax_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert network.load(weights.DEBLOCKER).engine == "jax"
    with pytest.raises(UserError, match="install openvino; use --engine=jax"):
        network.load(weights.DEBLOCKER, "openvino")


def test_a_bad_file_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such weights file"):
        network.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a weights file"):
        network.load(path)
    with pytest.raises(UserError, match="holds a ranker, not a deblocker"):
        network.load(weights.SHIPPED / "compact-ranker.safetensors")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"missing params/body/bias \(and \d+ more\); the file is damaged"),
        ({"extra": np.zeros(3)}, r"more\); extra params/extra; the file is damaged"),
        (None, r"head/bias of shape \(7,\) instead of \(6,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, params, message):
    deblocker = drawn(width=6, local_blocks=0)
    if params is None:
        params = deblocker.variables["params"]
        params = {**params, "head": {**params["head"], "bias": np.zeros(7)}}
    path = saved(
        tmp_path / "a.safetensors",
        _complete(deblocker)._replace(variables={"params": params}),
    )
    run = network.load(path)
    with pytest.raises(UserError, match=message):
        run(np.zeros((1, 16, 16), np.float32))


def test_jax_runs_a_network_that_is_not_the_packages_deblocker(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "other", _Shift)
    variables = {"params": {"shift": np.float32(0.5)}}
    deblocker = weights.Weights(_Shift(), variables, {"name": "other"}, {})
    path = saved(tmp_path / "a.safetensors", deblocker)
    run = network.load(path)
    assert run.engine == "jax"
    image = RNG.random((1, 16, 16), np.float32)
    np.testing.assert_array_equal(run(image), image + np.float32(0.5))
    with pytest.raises(UserError, match="which it can't run; use --engine=jax"):
        network.load(path, "openvino")


class _Shift(nn.Module):
    """A network that adds a number to the image."""

    @nn.compact
    def __call__(self, image):
        return image + self.param("shift", nn.initializers.zeros, ())


def test_self_ensemble_keeps_what_is_known_of_a_network():
    run = openvino_network.OpenvinoNetwork(weights.DEBLOCKER)
    both = network.self_ensemble(run)
    assert network.attributes(both) == network.attributes(run)
    assert network.tile_batch(run) == 4 * len(os.sched_getaffinity(0))
    assert network.parallel(both) == len(os.sched_getaffinity(0))
    assert network.multiple(both) == 16


def test_features_that_are_not_given_are_unknown(tmp_path):
    deblocker = drawn(**SMALL, **NETWORKS["modulation"])
    run = openvino_network.OpenvinoNetwork(saved(tmp_path / "a.safetensors", deblocker))
    image = RNG.random((2, 16, 16, 3), np.float32)
    unknown = np.zeros((2, FEATURES), np.float32)
    np.testing.assert_array_equal(run(image), run(image, unknown))


def test_few_sizes_of_large_images_stay_in_memory(tmp_path):
    path = saved(tmp_path / "a.safetensors", _complete(drawn(width=6, local_blocks=0)))
    run = openvino_network.OpenvinoNetwork(path, "f32")
    for width in (16, 520, 528, 24, 536):
        run(np.zeros((1, 16, width), np.float32))
    assert len(run._queues) == 2
