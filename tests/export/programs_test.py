"""Tests that exported networks give the same results in other runtimes."""

import functools
import json

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest

import cqr_jax
from cqr_jax import weights
from cqr_jax.data.compression import FEATURES, features, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.export.__main__ import main as export_command
from cqr_jax.export.__main__ import write
from cqr_jax.models import colour
from cqr_jax.restoring import jax_network
from tests.conftest import call
from tests.networks import NETWORKS, SMALL, drawn

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=["shipped", "paper"])
def deblocker(request):
    """The deblocker of Y in the package, and a small one with the paper's layout."""
    if request.param == "shipped":
        path = weights.SHIPPED / "compact.safetensors"
        return weights.load(path, "deblocker")
    return drawn(1, width=6, local_blocks=1, residual_blocks=2)


@pytest.fixture(scope="module", params=NETWORKS)
def of_colour(request):
    return drawn(**SMALL, **NETWORKS[request.param])


@pytest.fixture(scope="module")
def exported(of_colour, tmp_path_factory):
    """The StableHLO program of `of_colour`, read from its file."""
    path = tmp_path_factory.mktemp("exported") / "a.stablehlo"
    write(path, of_colour)
    return jax.export.deserialize(bytearray(path.read_bytes()))


@functools.cache
def applied(model):
    return jax.jit(colour.on_rgb(model.apply))


def restored(deblocker, images, qualities=()):
    """Returns the network's output for RGB images of given or unknown qualities."""
    told = np.stack([features(libjpeg(q) if q else None) for q in qualities or [0]])
    told = np.broadcast_to(told, (len(images), FEATURES))
    found = applied(deblocker.model)(deblocker.variables, images, told)
    assert 0.01 < np.abs(found - images).max() < 20
    return np.asarray(found)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("side", [None, 48])
def test_onnx_equals_the_network(deblocker, tmp_path, side):
    path = tmp_path / "a.onnx"
    write(path, deblocker, side)
    session = session_of(path)
    for shape in [(2, 48, 48)] + [(1, 16, 24), (1, 3, 45)] * (side is None):
        images = RNG.random(shape, np.float32)
        (found,) = session.run(["restored"], {"image": images[:, None]})
        expected = jax_network.JaxNetwork(deblocker)(images)
        assert np.abs(expected - images).max() > 0.01
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)


def test_onnx_of_colour_equals_the_network(of_colour, tmp_path):
    _compare_onnx(tmp_path / "a.onnx", of_colour, (1, 64, 48), (2, 33, 47), (2, 2, 19))


@pytest.mark.parametrize("of_colour", ["modulation"], indirect=True)
def test_onnx_of_colour_with_a_fixed_side_equals_the_network(of_colour, tmp_path):
    _compare_onnx(tmp_path / "a.onnx", of_colour, (2, 24, 24), side=24)


def _compare_onnx(path, of_colour, *shapes, side=None):
    write(path, of_colour, side)
    session = session_of(path)
    for shape in shapes:
        images = RNG.random((*shape, 3), np.float32)
        tellings = [(), (0,), (10,), (37, 100)[: len(images)]]
        if of_colour.model.conditioning == "none":
            tellings = [()]
        results = []
        for qualities in tellings:
            inputs = {"image": np.moveaxis(images, -1, 1)}
            if qualities:
                inputs["quality"] = np.array(qualities, np.float32)
            (found,) = session.run(["restored"], inputs)
            results.append(np.moveaxis(found, 1, -1))
            expected = restored(of_colour, images, qualities)
            np.testing.assert_allclose(results[-1], expected, atol=1e-4)
        if len(results) > 1:
            np.testing.assert_array_equal(results[0], results[1])
            assert min(np.ptp(results[1:], 0).max((1, 2, 3))) > 1e-3


def test_onnx_rounds_and_clips_the_quality(tmp_path):
    deblocker = drawn(**SMALL, **NETWORKS["modulation"])
    path = tmp_path / "a.onnx"
    write(path, deblocker)
    images = RNG.random((8, 3, 16, 16), np.float32)
    images[:] = images[0]
    given = np.array([19.6, 20, 1000, 100, -1, 0, np.nan, 0], np.float32)
    (found,) = session_of(path).run(None, {"image": images, "quality": given})
    np.testing.assert_array_equal(found[::2], found[1::2])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_onnx_metadata_describe_inputs_and_output(of_colour, tmp_path):
    import onnx

    path = tmp_path / "a.onnx"
    write(path, of_colour)
    session = session_of(path)
    told = of_colour.model.conditioning != "none"
    assert [(x.name, x.shape) for x in session.get_inputs()] == [
        ("image", ["batch", 3, "height", "width"])
    ]
    defaults = session.get_overridable_initializers()
    assert [x.name for x in defaults] == ["quality"] * told
    (out,) = session.get_outputs()
    assert (out.name, out.shape) == ("restored", ["batch", 3, "height", "width"])
    found = session.get_modelmeta()
    assert found.producer_name == "cqr_jax"
    assert "JPEG" in found.description
    held = found.custom_metadata_map
    assert json.loads(held.pop("network")) == json.loads(json.dumps(of_colour.fields))
    made = onnx.load(path)
    assert made.producer_version == cqr_jax.__version__
    values = [*made.graph.input, *made.graph.output]
    assert {x.name: x.doc_string for x in values} == held
    assert held.keys() == {"image", "restored"} | ({"quality"} if told else set())
    assert "RGB in [0, 1]" in held["image"]


def test_stablehlo_equals_the_network(deblocker, tmp_path):
    path = tmp_path / "a.stablehlo"
    write(path, deblocker)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for shape in ((1, 16, 24), (3, 55, 41)):
        images = RNG.random(shape, np.float32)
        found = jax.jit(exported.call)(images[..., None])[..., 0]
        expected = jax_network.JaxNetwork(deblocker)(images)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_stablehlo_of_colour_equals_the_network(of_colour, exported):
    for shape in ((1, 64, 48), (2, 33, 47)):
        images = RNG.random((*shape, 3), np.float32)
        inputs, qualities = [], ()
        if of_colour.model.conditioning != "none":
            qualities = (20, 0)[: len(images)]
            inputs = [np.array(qualities, np.float32)]
        found = jax.jit(exported.call)(images, *inputs)
        expected = restored(of_colour, images, qualities)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_stablehlo_pads_tiny_images_by_repetition(of_colour, exported):
    told = [np.zeros(1, np.float32)] * (of_colour.model.conditioning != "none")
    image = RNG.random((1, 3, 1, 3), np.float32)
    found = jax.jit(exported.call)(image, *told)
    side = 16 if of_colour.model.key_pool == 4 else 8
    filled = np.pad(image, ((0, 0), (0, side - 3), (0, side - 1), (0, 0)), "edge")
    expected = restored(of_colour, filled, (0,))[:, :3, :1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_command_exports_the_default_weights_with_its_side(tmp_path):
    path = tmp_path / "a.onnx"
    code, out, err = call(export_command, path, "--side=48")
    assert (code, out) == (0, ""), err
    inputs = {x.name: x.shape for x in session_of(path).get_inputs()}
    assert inputs["image"][1:] == [3, 48, 48]


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("a.pb", 48, "must end in .onnx or .stablehlo"),
        ("a.onnx", 50, "must be a multiple of 8, at least 16"),
        ("a.stablehlo", 48, "is only for .onnx"),
    ],
)
def test_wrong_suffix_and_side_are_errors(deblocker, tmp_path, name, side, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / name, deblocker, side)
    assert not list(tmp_path.iterdir())
