"""Tests of the command line as a process: bad configs, stages, resuming, stopping."""

import contextlib
import csv
import errno
import functools
import itertools
import json
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tensorflow as tf
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from tensorboard.compat.proto import event_pb2

from configs import ablation, deblock, ranker
from configs import eval as evaluation
from cqr_jax import config as config_lib
from cqr_jax import losses, models, tasks, weights
from cqr_jax.data import records
from cqr_jax.errors import UserError
from cqr_jax.models import layers
from cqr_jax.models import ranker as ranker_model
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker
from cqr_jax.training import ablation as table1
from cqr_jax.training import checkpoint, loop, stages, state
from cqr_jax.training.interrupts import Interrupts
from cqr_jax.training.reporter import Reporter
from cqr_jax.training.start import check_start, initial_params
from cqr_jax.training.workdir import Workdir
from cqr_jax.weights import __main__ as weights_command
from cqr_jax.weights import provenance
from tests.conftest import ROOT, call, overridden, run, start
from tests.networks import NETWORKS, SMALL, drawn

# A ranker and a deblocker that train in seconds.
RANKER = (
    "--config.model.width=2",
    "--config.batch_size=4",
    "--config.validation.examples=16",
    "--config.validation.batch_size=8",
    "--config.log_every=5",
)
DEBLOCKER = (
    "--config.ranker.model.width=2",
    "--config.ranker.steps=4",
    "--config.ranker.validate_every=4",
    "--config.ranker.optimizer.warmup_steps=0",
    "--config.ranker.validation.examples=8",
    "--config.model.width=6",
    "--config.model.local_blocks=0",
    "--config.model.masks=False",
    "--config.batch_size=2",
    "--config.steps=6",
    "--config.optimizer.warmup_steps=0",
    "--config.validation.examples=4",
    "--config.validation.batch_size=4",
    "--config.validate_every=3",
    "--config.log_every=2",
)


def _train_ranker(data_dir, workdir, steps, validate_every, *more):
    return (
        "cqr_jax.main",
        "--config=configs/ranker.py:quickstart",
        f"--config.workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        f"--config.steps={steps}",
        f"--config.validate_every={validate_every}",
        *RANKER,
        *more,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config=FILE.py is needed"),
        (["--config=configs/none.py"], "does not exist"),
        (["--config=configs/common.py"], "has no function get_config"),
        (["--config=README.md"], "; --config needs a Python file like those in conf"),
        (
            ["--config=tests/main_test.py"],
            "the file has no function get_config; --conf",
        ),
        (["--config=configs/deblock.py", "--config.task=eval"], "is set by the file"),
        (["--config=configs/none.py", "--config.steps=3"], "does not exist"),
        (["--config=configs/deblock.py:fast"], "unknown preset 'fast'; choose paper"),
        (["--config=configs/deblock.py:compact,ablation=x"], "unknown ablation 'x'"),
        (["--config=configs/deblock.py:dc"], "colour or ablation=dc"),
        (["--config=configs/deblock.py", "--config.typo=1"], "no such config field"),
        (["--config=configs/deblock.py:without=dc"], "unknown 'without'; known: pres"),
        (["--config=configs/deblock.py", "-config.typo=1"], "no such config field"),
        (["--config=configs/deblock.py", "--config.batch-size=1"], "batch-size"),
        (["--config=configs/deblock.py", "--config.workdir.x=1"], "workdir.x=1"),
        (["--config=configs/deblock.py", "--config.steps=x"], "--config.steps=x"),
        (["--config=configs/deblock.py", "stray"], "'stray' is not a flag"),
        (["--config=configs/deblock.py", "--processes=2"], "need --coordinator"),
        (["--config=configs/deblock.py", "--coordinator=host"], "is not HOST:PORT"),
        (["--config=configs/eval.py", "--distributed"], "runs in one process"),
        (
            ["--config=configs/eval.py", "--config.workdir=README.md/x"],
            "config.workdir=README.md/x: can't be written to: README.md is a file",
        ),
        (
            ["--config=configs/deblock.py", "--config.ranker.workdir=README.md/x"],
            "config.ranker.workdir=README.md/x: can't be written to: README.md is",
        ),
    ],
)
def test_bad_command_lines_get_one_line(arguments, words):
    code, out, err = run("cqr_jax.main", *arguments)
    assert code != 0
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert words in err


@pytest.mark.parametrize(
    ("file", "field"), [("eval.py", "weights"), ("deblock.py", "initial_weights")]
)
def test_mistakes_are_reported_before_tensorflow_is_imported(file, field):
    """TensorFlow takes seconds. An evaluation does not need it."""
    code, _, err = run(
        "cqr_jax.main",
        f"--config=configs/{file}",
        f"--config.{field}=x",
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert code == 1
    assert "error: x: no such weights file" in err
    imported = [line.rpartition("|")[2].strip() for line in err.splitlines()]
    assert "jax" in imported
    assert "tensorflow" not in imported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.name=nothing"], "no records of 'nothing'"),
        (["--config.ranker_weights=none.safetensors"], "no such weights file"),
        ([f"--config.ranker.workdir={ROOT}/README.md"], "can't be written to "),
    ],
)
def test_bad_paths_are_reported(arguments, words, data_dir, tmp_path):
    flags = (
        f"--config.workdir={tmp_path}/run",
        f"--config.ranker.workdir={tmp_path}/ranker",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        *DEBLOCKER,
        *arguments,
    )
    with pytest.raises(UserError, match=words):
        tasks.train_deblocker(overridden(deblock.get_config("quickstart"), flags))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("levels", 4, "30 quality factors from 1 to 30 can't be divided into 4"),
        ("max_quality", 40, "must be within 1 to 30"),
        ("margin", 0.0, "must be positive"),
        ("patch", 50, "multiple of 8"),
        ("parallel", "mpi", "choose jit or pmap"),
        ("sync_batch_norm", False, "needs config.parallel=pmap"),
        ("compute_dtype", "float16", "choose float32 or bfloat16"),
        ("grad_accum_steps", 0, "at least 1"),
        ("steps", 0, "at least 1"),
        ("seed", 2**31, r"must be in \[0, 2147483647\]"),
        ("ema_decay", 1.0, r"must be in \[0, 1\)"),
    ],
)
def test_ranker_fields_out_of_range_are_rejected(field, value, words):
    config = ranker.get_config()
    config[field] = value
    with pytest.raises(UserError, match=words):
        tasks.check(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("qualities", (10, 40), "the records hold 1 to 30, not 40"),
        ("qualities", (10, 10), "given twice"),
        ("qualities", ("10,a",), "must be whole numbers"),
        ("qualities_per_crop", 4, r"must be in \[0, 3\]"),
        ("feature_layers", ("conv10",), "choose from conv0, conv1, .* or conv9"),
        ("data.gray_name", "x", "gray_name=x: needs degradation=colour"),
        ("model.deeper_widths", (2,), "at most as many as the smallest width"),
        ("guided_steps", 400_001, r"must be in \[0, 400000\]"),
        (
            "degradation",
            "blind",
            "qualities_per_crop=0: must be 1 with degradation=blind",
        ),
        ("degradation", "noise", "choose ladder, blind or colour"),
        ("blind.qualities", (0, 95), "must be within 1 to 100"),
        ("blind.qualities", (5,), "needs two numbers"),
        ("model.feature_scale", 0.0, r"must be in \[0.01, 1000\]"),
        ("blind.double", 1.5, r"must be in \[0, 1\]"),
        ("optimizer.name", "sgd", "choose adam or muon"),
        ("optimizer.schedule", "halving", "'halving': choose step_decay"),
        ("loss.beta", -1.0, "=-1.0: must be finite and at least 0"),
        ("loss.beta", math.nan, "=nan: must be finite and at least 0"),
        ("optimizer.learning_rate", math.nan, "=nan: must be positive and finite"),
        ("optimizer.clip_norm", math.nan, "clip_norm=nan: must be positive, or 0"),
        ("optimizer.decay_steps", 5, r"decay_steps=5: needs .*\.schedule=stable_decay"),
        ("loss.pixel", "l1", "choose mae or log_mse"),
        ("loss.quality", 0.5, r"config\.loss\.alpha sets the weight of this term"),
        ("loss.mae", 0.5, r"config\.loss\.pixel sets the weight of this term"),
        ("model.dilations", (), "needs one or more dilations"),
        ("model.dilations", (1.5,), "must be whole numbers"),
        ("ranker.levels", 7, r"config\.ranker\.levels=7"),
        ("ranker.workdir", "runs/deblock-paper", r"ranker\.workdir=.* must not be"),
        ("workdir", "gs://b/x", r"config\.workdir=gs://b/x: must be a local or"),
        ("ranker.workdir", "s3://b/x", r"config\.ranker\.workdir=s3://b/x: must be"),
        ("evaluation.set_dir", "gs://b", r"config\.evaluation\.set_dir=gs://b: must"),
    ],
)
def test_deblocker_fields_out_of_range_are_rejected(field, value, words):
    config = deblock.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        tasks.check(config)


@pytest.mark.parametrize(
    ("preset", "field", "value", "words"),
    [
        ("table2", "qualities", (0,), "1 to 100"),
        ("table2", "qualities", (10.5,), "must be whole numbers"),
        ("ranker", "levels", 7, "can't be divided into 7"),
        ("ranker", "max_quality", 101, "must be within 1 to 100"),
        ("ranker", "side", 36, "multiple of 8"),
    ],
)
def test_evaluation_fields_out_of_range_are_rejected(preset, field, value, words):
    config = evaluation.get_config(preset)
    tasks.check(config)
    config[field] = value
    with pytest.raises(UserError, match=words):
        tasks.check(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("variants", "cqr,nothing", "'nothing': choose cqr"),
        ("variants", "cqr,x", "'x': choose cqr, dc, lq, .* q10, q20 or q30"),
        ("variants", "q40", "'q40': choose"),
        ("loss.beta", 0.0, "'cqr' and 'lq' are the same training with the other"),
        ("seeds", (), "one or more"),
        ("variants", "", "one or more"),
        ("seeds", (1, 1), "none of them twice"),
        ("seeds", (-1,), "must be 0 to"),
        ("steps", 0, "at least 1"),
    ],
)
def test_ablation_fields_out_of_range_are_rejected(field, value, words):
    config = ablation.get_config("compact")
    tasks.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        tasks.check(config)


def test_a_variant_of_a_quality_that_is_not_evaluated_is_rejected():
    config = ablation.get_config("compact")
    config.variants, config.evaluation.qualities = "none,q10", (20, 30)
    with pytest.raises(UserError, match=r"'q10' would be in no table, .* lacks 10"):
        tasks.check(config)
    config.evaluation.sets = ""
    tasks.check(config)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"variants": "q10,none"}, False),
        ({"variants": "q10,none", "degradation": "blind"}, True),
        ({"variants": "early,none", "loss.beta": 0.0}, True),
    ],
)
def test_variants_that_are_the_same_training_are_rejected(changed, same):
    config = ablation.get_config("compact")
    config.update_from_flattened_dict(changed)
    if not same:
        tasks.check(config)
        return
    with pytest.raises(UserError, match="are the same training"):
        tasks.check(config)


def test_ablated_fields_are_those_that_a_variant_changes():
    full, changed = deblock.get_config("compact"), set()
    full.qualities_per_crop = 2
    for variant in config_lib.variants(full.qualities):
        config = ConfigDict(full.to_dict())
        config_lib.ablate(config, variant)
        before, after = config_lib.flat(full), config_lib.flat(config)
        changed |= {field for field in before if before[field] != after[field]}
    assert changed == set(config_lib.ABLATED_FIELDS)


@pytest.mark.parametrize("preset", deblock.PRESETS)
def test_variants_of_each_preset_are_accepted(preset):
    tasks.check(ablation.get_config(preset))


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        (deblock, "ranker.initial_weights", "x", "x: no such weights file"),
        (deblock, "ranker.model.name", "x", r"config.ranker.model.name='x': choose"),
        (deblock, "evaluation.sets", "live-1", "live-1: no such folder"),
        (ablation, "ranker_weights", "x", "x: no such weights file"),
        (ablation, "evaluation.sets", "live-1", "live-1: no such folder"),
    ],
)
def test_mistakes_are_reported_before_records_are_made(
    file, field, value, words, monkeypatch
):
    def never(*args):
        raise AssertionError("records were made")

    monkeypatch.setattr(tasks, "_make_missing_records", never)
    config = file.get_config("quickstart")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        tasks.TASKS[config.task].run(config)


@pytest.mark.parametrize(
    ("name", "words"), [("x", "choose ranker or deblocker"), ("ranker", "unexpected")]
)
def test_a_model_that_does_not_exist_is_reported_at_the_start(name, words):
    config = deblock.get_config("quickstart")
    config.model.name = name
    with pytest.raises(UserError, match=f"config.model.*{words}"):
        check_start(config, "deblocker")


def test_gray_crops_must_divide_among_the_processes(monkeypatch):
    config = deblock.get_config("colour")
    config.data.gray_name = "gray"
    check_start(config, "deblocker")
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    with pytest.raises(UserError, match=r"gray_crops=4: must be a multiple of .* 8"):
        check_start(config, "deblocker")


def test_too_large_crops_are_reported_before_the_ranker_is_trained(
    data_dir, monkeypatch
):
    def never(*args):
        raise AssertionError("the ranker was trained")

    monkeypatch.setattr(loop, "train_ranker", never)
    config = deblock.get_config("quickstart")
    config.data.update({"data_dir": str(data_dir), "name": "photos"})
    config.degradation, config.qualities_per_crop = "blind", 1
    config.validation.patch = 128
    with pytest.raises(UserError, match="crops of 144 pixels don't fit"):
        loop.train_deblocker(config)


def test_a_missing_ranker_is_reported_before_any_variant_is_trained(monkeypatch):
    def never(*args):
        raise AssertionError("a variant was trained")

    monkeypatch.setattr(loop, "train_deblocker", never)
    config = ablation.get_config("quickstart")
    config.ranker_weights = "none.safetensors"
    with pytest.raises(UserError, match="safetensors: no such weights file"):
        table1.train_variants(config)


def test_default_config_has_the_values_of_the_paper():
    config = deblock.get_config()
    tasks.check(config)
    assert (config.loss.alpha, config.loss.beta) == (0.01, 0.9)
    assert config.ranker.margin == 0.5
    assert config_lib.level_ranges(config.ranker) == ((1, 10), (11, 20), (21, 30))
    assert config.qualities == (10, 20, 30)
    assert config.data.name == config.ranker.data.name == "div2k"
    for optimizer in (config.optimizer, config.ranker.optimizer):
        assert optimizer.learning_rate == 1e-4
        assert (optimizer.schedule, optimizer.halve_every) == ("step_decay", 100_000)


@pytest.mark.parametrize("preset", deblock.PRESETS)
def test_logged_config_is_the_flags_that_set_it(preset):
    config = deblock.get_config(preset)
    config.update(seed=3, qualities=(5, 15), workdir="runs/a b")
    given = shlex.split(" ".join(config_lib.as_flags(config)))
    parsed = overridden(deblock.get_config(), given)
    assert parsed.to_json() == config.to_json()


def test_ranker_config_follows_the_deblocker_config_but_not_vice_versa():
    config = deblock.get_config()
    config.seed, config.data.name = 3, "mine"
    assert (config.ranker.seed, config.ranker.data.name) == (3, "mine")
    config.ranker.seed, config.ranker.data.name = 4, "others"
    assert (config.seed, config.data.name) == (3, "mine")
    config.seed = 5
    assert config.ranker.seed == 4


# No ranker guides the preset colour.
GUIDED = [preset for preset in deblock.PRESETS if preset != "colour"]


@pytest.mark.parametrize("preset", GUIDED)
def test_each_ablation_changes_only_its_own_fields(preset):
    full = deblock.get_config(preset)
    changed = {}
    for without in config_lib.ABLATIONS[:-1]:
        config = deblock.get_config(f"{preset},ablation={without}")
        tasks.check(config)
        changed[without] = {
            "alpha": config.loss.alpha != full.loss.alpha,
            "beta": config.loss.beta != full.loss.beta,
            "dilations": config.model.dilations != full.model.dilations,
        }
        assert config.workdir == f"{full.workdir}-without-{without}"
    assert [name for name, on in changed["cqr"].items() if on] == ["alpha", "beta"]
    assert [name for name, on in changed["dc"].items() if on] == ["dilations"]
    assert [name for name, on in changed["lq"].items() if on] == ["alpha"]
    assert [name for name, on in changed["lf"].items() if on] == ["beta"]


def test_further_variants_change_the_layers_or_the_qualities():
    full = deblock.get_config("compact")
    for variant in config_lib.variants(full.qualities)[5:]:
        config = deblock.get_config("compact")
        config_lib.ablate(config, variant)
        tasks.check(config)
        if variant.startswith("q"):
            assert config.qualities == (int(variant[1:]),)
            config.qualities = full.qualities
        else:
            assert config.feature_layers
            config.feature_layers = ()
        assert config == full
    parts = config_lib.FEATURE_LAYERS.values()
    assert sum(parts, ()) == ranker_model.FEATURES


def test_feature_layers_are_those_of_the_feature_matching_loss():
    config = deblock.get_config("compact")
    config.feature_layers = ("conv1", "conv3")
    model = Ranker(4)
    variables = state.init(model, 48, 0)
    image = np.random.default_rng(0).random((1, 48, 48, 1), np.float32)
    step = stages.deblock_steps(config, model).train_step
    score, features = step.keywords["rank"](variables, image)
    every = model.apply(variables, image)
    assert set(features) == {"conv1", "conv3"}
    np.testing.assert_array_equal(score, every[0])
    np.testing.assert_array_equal(features["conv3"], every[1]["conv3"])


def test_ranker_is_trained_only_if_a_variant_needs_it(data_dir, monkeypatch, tmp_path):
    trained, rankers = [], []
    monkeypatch.setattr(loop, "train_deblocker", trained.append)
    monkeypatch.setattr(
        loop, "train_ranker", lambda *args: rankers.append(args) or "R.safetensors"
    )
    for variants, count in (("cqr", 0), ("cqr,none", 1)):
        config = ablation.get_config("quickstart")
        config.variants, config.seeds, config.workdir = variants, (0,), str(tmp_path)
        config.data.update({"data_dir": str(data_dir), "name": "photos"})
        config.evaluation.sets = ""
        table1.train_variants(config)
        assert len(rankers) == count
    alone, beside, whole = trained
    assert alone == beside  # the other variants do not affect a run
    assert whole.ranker_weights == "R.safetensors"


@contextlib.contextmanager
def _when(words, act):
    """Calls `act` when a logged line contains `words`."""
    handler, log = logging.Handler(), logging.getLogger("cqr_jax")
    handler.emit = lambda record: act() if words in record.getMessage() else None
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _share_steps(monkeypatch):
    """Lets trainings of equal configs share their steps, which JAX compiles once."""
    make, made = stages.ranker_steps, {}

    def shared(config):
        fields = json.loads(config.to_json())
        del fields["workdir"]
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            made[key] = make(config)
        return made[key]

    monkeypatch.setattr(stages, "ranker_steps", shared)


def _save_untrained(config, stage, manager, train_state, workdir):
    """Replaces `loop.train`: saves the state with which the run begins as its best."""
    end = train_state.replace(step=np.array(config.steps, np.int32))
    checkpoint.save(manager, end, {stage.best[0]: 1.0})
    checkpoint.wait(manager)
    return end


@pytest.mark.slow
def test_killed_stopped_and_resumed_run_equals_an_uninterrupted_one(
    data_dir, tmp_path, monkeypatch, caplog
):
    """The state includes Muon's momenta and the average of the weights."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    more = ("--config.ema_decay=0.9", "--config.optimizer.name=muon")
    _share_steps(monkeypatch)
    _, _, *flags = _train_ranker(data_dir, unbroken, 60, 10, *more)
    loop.train_ranker(overridden(ranker.get_config("quickstart"), flags))
    command = _train_ranker(data_dir, broken, 60, 10, *more)
    process = start(*command)
    deadline = time.time() + 120
    while not (broken / "checkpoints" / "20").is_dir() and time.time() < deadline:
        time.sleep(0.02)
    assert (broken / "checkpoints" / "20").is_dir(), "no checkpoint in time"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (broken / "ranker.safetensors").exists()
    config = overridden(ranker.get_config("quickstart"), command[2:])
    with (
        caplog.at_level("INFO", "cqr_jax"),
        pytest.raises(SystemExit) as caught,
        _when("ranker 35/", lambda: signal.raise_signal(signal.SIGTERM)),
    ):
        loop.train_ranker(config)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not (broken / "ranker.safetensors").exists()
    stopped = json.loads((broken / "stopped.json").read_text())
    assert f"stopped at step {stopped['step']}, saved" in caplog.messages[-1]
    stopped["hours"] += 100  # as after a long run, to recognise them below
    (broken / "stopped.json").write_text(json.dumps(stopped))
    with caplog.at_level("INFO", "cqr_jax"):
        loop.train_ranker(config)
    assert f"resuming at step {stopped['step']}" in caplog.text
    first, second = (
        safetensors.numpy.load_file(workdir / "ranker.safetensors")
        for workdir in (unbroken, broken)
    )
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)
    steps = sorted(int(path.name) for path in (broken / "checkpoints").glob("[0-9]*"))
    assert {50, 60} <= set(steps)  # the latest two, and the best
    assert len(steps) <= 3

    # The curve has each validation once, with its hours. The weights contain the curve.
    with (broken / "validation.csv").open() as file:
        curve = [{k: float(x) for k, x in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in curve] == [10, 20, 30, 40, 50, 60]
    hours = [row["hours"] for row in curve]
    assert hours == sorted(hours)
    later = [row["hours"] for row in curve if row["step"] > stopped["step"]]
    assert min(later) >= stopped["hours"]
    _, _, provenance, _ = weights.read(broken / "ranker.safetensors")
    assert provenance["curve"] == curve
    assert provenance["data"] == {"photos": records.digest(str(data_dir), "photos")}
    assert provenance["earlier"] == []

    # Another run starts from these weights.
    config = ConfigDict(json.loads((broken / "config.json").read_text()))
    config.initial_weights = str(broken / "ranker.safetensors")
    config.workdir, config.steps, config.validate_every = str(tmp_path / "next"), 1, 1
    monkeypatch.setattr(loop, "train", _save_untrained)
    _, _, after, arrays = weights.read(loop.train_ranker(config))
    del provenance["earlier"]
    assert after["earlier"] == [provenance]
    for name, x in arrays.items():
        if name.startswith("params/"):
            np.testing.assert_array_equal(x, second[name], name)

    # Another config in the same workdir is rejected. A finished run is not repeated.
    config = overridden(ranker.get_config("quickstart"), command[2:])
    config.margin = 0.4
    with pytest.raises(UserError, match=r"begun with margin=0\.5, now 0\.4;"):
        loop.train_ranker(config)
    config.margin = 0.5
    monkeypatch.setattr(loop, "train", None)
    assert loop.train_ranker(config) == broken / "ranker.safetensors"


def test_second_run_in_a_workdir_waits_for_the_first(
    data_dir, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(loop, "train", _save_untrained)
    _, _, *flags = _train_ranker(data_dir, tmp_path, 2, 2)
    locked, waits, untouched = threading.Event(), threading.Event(), []

    def first():
        with Workdir(str(tmp_path)).lock():
            locked.set()
            waits.wait(60)
            untouched.append(not (tmp_path / "config.json").exists())

    thread = threading.Thread(target=first)
    thread.start()
    assert locked.wait(60)
    words = "waiting for the run that is training there"
    with caplog.at_level("INFO", "cqr_jax"), _when(words, waits.set):
        loop.train_ranker(overridden(ranker.get_config("quickstart"), flags))
    thread.join()
    assert waits.is_set()
    assert untouched == [True]
    assert (tmp_path / "ranker.safetensors").exists()


def _toy_step(state, ranker_variables, batch):
    return state.replace(step=state.step + 1), {"loss": batch["x"].mean()}


def _toy_stage(train_step, unguided_step=None, **fields) -> stages.Stage:
    """A stage whose batches are ones. Its validation loss is their mean."""
    ones = {"x": np.ones((jax.device_count(), 1), np.float32)}

    def eval_step(*args):
        return {"loss": args[-1]["x"].mean()}

    usual = {
        "name": "ranker",
        "steps": stages.Steps(None, None, train_step, eval_step, unguided_step),
        "ranker_variables": {},
        "batches": lambda first: itertools.repeat(ones),
        "validation": [ones],
        "digests": dict,
        "fingerprints": {},
        "summarize": lambda sums: sums,
        "best": ("loss", "min"),
        "images_per_step": 1,
    }
    return stages.Stage(**usual | fields)


@contextlib.contextmanager
def _toy_training(folder, stage, steps, size, start=0, every=None):
    """Yields a function that trains a toy stage, and the manager of its checkpoints.

    The only parameter is w, an array of `size` zeros.
    """
    config = ranker.get_config("quickstart")
    config.workdir, config.steps = str(folder), steps
    config.validate_every = every or steps
    weight = {"w": np.zeros(size, np.float32)}
    begin = state.TrainState(np.array(start, np.int32), weight, {}, {}, weight)
    with checkpoint.open_manager(folder, 1, *stage.best) as manager:
        yield (
            lambda: loop.train(config, stage, manager, begin, Workdir(str(folder))),
            manager,
        )


@pytest.mark.parametrize("start", [0, 2, 3])
def test_the_first_steps_are_unguided_also_after_resuming(tmp_path, start):
    def step(kind, state, ranker_variables, batch):
        params = {"w": state.params["w"].at[state.step].set(kind)}
        metrics = {"loss": batch["x"].mean()}
        return state.replace(step=state.step + 1, params=params), metrics

    stage = _toy_stage(
        functools.partial(step, 2),
        unguided_step=functools.partial(step, 1),
        unguided_steps=3,
        name="deblocker",
    )
    with _toy_training(tmp_path, stage, 4, 4, start) as (train, _):
        end = train()
    taken = [0] * start + [1, 1, 1, 2][start:]
    np.testing.assert_array_equal(end.params["w"], taken)


@pytest.mark.parametrize(("better", "step"), [("min", 2), ("max", 3)])
def test_the_file_holds_the_averaged_weights_of_the_best_validation(
    tmp_path, better, step
):
    config = ranker.get_config("quickstart")
    config.model.width, config.model.hidden, config.patch = 2, 4, 32
    config.workdir, config.steps, config.validate_every = str(tmp_path), 4, 1
    ones = {"x": np.ones((jax.device_count(), 1), np.float32)}
    results = iter([3.0, 1.0, 4.0, 2.0])

    def filled(tree, value):
        return jax.tree.map(lambda x: jnp.full_like(x, value), tree)

    def train_step(held, ranker_variables, batch):
        number = held.step + 1
        params, average = filled(held.params, number), filled(held.params, number / 2)
        held = held.replace(step=number, params=params, ema_params=average)
        return held, {"loss": batch["x"].mean()}

    def make_stage(config):
        steps = stages.ranker_steps(config)._replace(
            train_step=train_step, eval_step=lambda *args: {"x": args[-1]["x"].sum()}
        )
        return stages.Stage(
            "ranker",
            steps,
            ranker_variables={},
            batches=lambda first: itertools.repeat(ones),
            validation=[ones],
            digests=dict,
            fingerprints={},
            summarize=lambda sums: {"loss": next(results)},
            best=("loss", better),
            images_per_step=1,
        )

    path = loop._run(config, "ranker", make_stage)
    _, _, provenance, arrays = weights.read(path)
    assert provenance["step"] == step
    for name, x in arrays.items():
        if name.startswith("params/"):
            np.testing.assert_array_equal(x, np.full_like(x, step / 2), name)


def test_after_unguided_steps_the_best_weights_are_the_last(tmp_path):
    """The ranker guides the last two of four steps, which reduces the PSNR."""
    results = iter([9.0, 8.0, 2.0, 1.0])

    stage = _toy_stage(
        _toy_step, unguided_step=_toy_step, unguided_steps=2, name="deblocker"
    )
    stage = stage._replace(
        summarize=lambda sums: {"psnr": next(results)}, best=("psnr", "max")
    )
    with _toy_training(tmp_path, stage, 4, 1, every=1) as (train, manager):
        train()
        assert manager.best_step() == 4


def test_unguided_steps_keep_the_terms_that_compare_pixels():
    config = deblock.get_config("compact")
    config.loss.pixel, config.loss.log_mse = "mae", 0.5
    made = stages.deblock_steps(config, Ranker(4))
    assert made.train_step.keywords["loss_weights"] == {
        "mae": 1.0,
        "quality": 5e-5,
        "feature": 5e-4,
        "log_mse": 0.5,
    }
    assert made.unguided_step.keywords["loss_weights"] == {"mae": 1.0, "log_mse": 0.5}
    alone = stages.deblock_steps(deblock.get_config("compact,ablation=cqr"), None)
    assert alone.unguided_step is None


@pytest.mark.parametrize("kind", ["ranker", "deblocker"])
def test_steps_take_what_the_config_says(kind):
    config = deblock.get_config("compact")
    config.update(
        parallel="pmap", grad_accum_steps=2, compute_dtype="bfloat16", remat=True
    )
    if kind == "ranker":
        made = stages.ranker_steps(config.ranker)
        trains = [made.train_step]
    else:
        made = stages.deblock_steps(config, Ranker(4))
        trains = [made.train_step, made.unguided_step]
        assert made.model.remat
    assert made.model.dtype == "bfloat16"
    axis = made.eval_step.keywords["axis_name"]
    assert isinstance(axis, str)
    for step in trains:
        assert step.keywords["axis_name"] == axis
        assert step.keywords["grad_accum_steps"] == 2
        assert step.keywords["ema_decay"] == (
            config.ema_decay if kind == "deblocker" else config.ranker.ema_decay
        )


def test_stages_know_their_metrics_and_their_guided_steps(data_dir):
    config = deblock.get_config("compact")
    config.data.update(data_dir=str(data_dir), name="photos")
    config.update(steps=10, guided_steps=3, qualities=(10, 30), patch=48)
    model = Ranker(2)
    held = weights.Weights(model, state.init(model, 48, 0), {}, {})
    stage = stages.deblock_stage(config, held)
    assert (stage.name, stage.best) == ("deblocker", ("psnr", "max"))
    assert stage.unguided_steps == 7
    assert stage.images_per_step == config.batch_size
    sums = {
        "mse": np.array([200.0, 100.0]),
        "mse_jpeg": np.array([400.0, 200.0]),
        "count": np.array(2.0),
    }
    found = stage.summarize(sums)
    psnr = {10: 10 * math.log10(255**2 / 100), 30: 10 * math.log10(255**2 / 50)}
    assert found["psnr_q10"] == pytest.approx(psnr[10])
    assert found["psnr_q30"] == pytest.approx(psnr[30])
    assert found["psnr"] == pytest.approx((psnr[10] + psnr[30]) / 2)
    assert found["jpeg_q10"] == pytest.approx(10 * math.log10(255**2 / 200))

    config.ranker.patch = 48
    ranking = stages.ranker_stage(config.ranker)
    assert (ranking.name, ranking.best) == ("ranker", ("loss", "min"))
    found = ranking.summarize({"loss": 3.0, "correct": 9.0, "count": 12.0})
    assert found == {"loss": 0.25, "accuracy": 0.75}


@pytest.mark.parametrize(
    "field", ["batch_size", "validation.batch_size", "ranker.batch_size"]
)
def test_batches_divide_among_the_devices(monkeypatch, field):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    config = deblock.get_config("quickstart")
    sizes = ("batch_size", "validation.batch_size")
    for name in (*sizes, *(f"ranker.{x}" for x in sizes)):
        config.update_from_flattened_dict({name: 8})
    check_start(config, "deblocker")
    config.update_from_flattened_dict({field: 6})
    with pytest.raises(UserError, match=rf"config\.{field}=6: must be a multiple of 4"):
        check_start(config, "deblocker")
    config.update_from_flattened_dict({field: 8, "grad_accum_steps": 4})
    with pytest.raises(UserError, match=r"batch_size=8: must be a multiple of 16"):
        check_start(config, "deblocker")


def test_a_signal_during_the_last_validation_stops_too(tmp_path):
    """Otherwise the next stage would start although the user wants to stop."""

    def summarize(sums):
        signal.raise_signal(signal.SIGTERM)
        return {"loss": float(sums["loss"])}

    stage = _toy_stage(_toy_step, summarize=summarize)
    with _toy_training(tmp_path, stage, 2, 3) as (train, manager):
        with pytest.raises(SystemExit) as caught:
            train()
        assert caught.value.code == 128 + signal.SIGTERM
        assert manager.metrics(2) == {"loss": 1}
    assert json.loads((tmp_path / "stopped.json").read_text())["step"] == 2


def test_full_disk_during_checkpointing_is_one_line(tmp_path):
    script = """
import numpy as np
from cqr_jax import errors
from cqr_jax.training import checkpoint, state
weight = {"w": np.random.default_rng(0).random(100_000)}
begin = state.TrainState(np.zeros((), np.int32), weight, {}, {}, weight)
with errors.one_line_errors(), checkpoint.open_manager("run", 1, "x", "min") as manager:
    checkpoint.save(manager, begin, {"x": 1.0})
"""
    found = subprocess.run(
        ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert found.returncode == 1, found.stderr
    assert found.stderr.splitlines()[-1] == (
        f"error: can't be written to {tmp_path}/run/checkpoints: File too large"
    )


@pytest.mark.parametrize("preset", GUIDED)
def test_ranker_config_is_the_same_alone_and_before_stage_2(preset, tmp_path):
    alone = ranker.get_config(preset)
    before = deblock.get_config(preset).ranker
    for first, second in ((alone, before), (before, alone)):
        first.workdir = second.workdir = str(tmp_path)
        Workdir(str(tmp_path)).keep(first, {}, None, {})
        Workdir(str(tmp_path)).keep(second, {}, 1, {})
    second.margin, second.batch_size = 0.4, 2
    words = r"begun with batch_size=\d+, now 2; margin=0\.5, now 0\.4; choose"
    with pytest.raises(UserError, match=words):
        Workdir(str(tmp_path)).keep(second, {}, 1, {})


@pytest.mark.parametrize(
    ("step", "steps", "decay", "allowed"),
    [
        (40_000, 60_000, 10_000, True),
        (40_001, 60_000, 10_000, False),  # the rate has begun to fall
        (30_000, 30_000, 0, True),  # ends the run now
        (30_001, 30_000, 0, False),
        (30_000, 40_000, 10_000, True),
        (30_001, 40_000, 10_000, False),
    ],
)
def test_steps_may_change_while_the_learning_rate_is_constant(
    tmp_path, step, steps, decay, allowed
):
    config = deblock.get_config("colour")
    config.optimizer.update({"schedule": "stable_decay", "decay_steps": 10_000})
    config.steps = 50_000
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {}, None, {})
    config.steps, config.optimizer.decay_steps = steps, decay
    if allowed:
        workdir.keep(config, {}, step, {})
        assert json.loads((tmp_path / "config.json").read_text())["steps"] == steps
        return
    with pytest.raises(UserError, match="was begun with "):
        workdir.keep(config, {}, step, {})


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [(100, 200, True), (0, 100, False), (100, 0, False)],
)
def test_final_guided_steps_may_change_before_they_begin(
    tmp_path, before, after, allowed
):
    """With 0 final steps, the ranker guides all steps."""
    config = deblock.get_config("compact")
    config.optimizer.schedule, config.optimizer.decay_steps = "stable_decay", 500
    config.guided_steps = before
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {}, None, {})
    config.guided_steps = after
    if allowed:
        workdir.keep(config, {}, 1000, {})
        return
    with pytest.raises(UserError, match=f"guided_steps={before}, now {after}"):
        workdir.keep(config, {}, 1000, {})


@pytest.mark.parametrize("guided", [0, 10_000])
def test_a_run_whose_learning_rate_does_not_depend_on_steps_may_be_prolonged(
    tmp_path, guided
):
    """Without a ranker, `guided_steps` has no effect."""
    config = deblock.get_config("paper,ablation=cqr")
    config.guided_steps = guided
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {}, None, {})
    config.steps = 450_000
    workdir.keep(config, {}, 400_000, {})
    config.optimizer.halve_every = 7
    with pytest.raises(UserError, match="halve_every=100000, now 7"):
        workdir.keep(config, {}, 400_000, {})


def test_a_term_of_ones_own_that_needs_the_ranker_makes_steps_guided(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(losses.RANKED, "style", lambda comparison: comparison.score)
    config = deblock.get_config("paper,ablation=cqr")
    config.loss.style, config.guided_steps = 0.1, 1000
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {}, None, {})
    config.steps = 450_000
    workdir.keep(config, {}, 399_000, {})
    config.steps = 500_000
    with pytest.raises(UserError, match="begun with steps=450000, now 500000"):
        workdir.keep(config, {}, 449_001, {})


def test_a_run_does_not_resume_with_other_records(tmp_path):
    config = deblock.get_config("compact")
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {"mine": "a"}, None, {})
    workdir.keep(config, {"mine": "a"}, 5, {})
    with pytest.raises(UserError, match="begun with other records of the data set min"):
        workdir.keep(config, {"mine": "b"}, 5, {})
    # Without a checkpoint, nothing was learned.
    workdir.keep(config, {"mine": "b"}, None, {})
    (tmp_path / "records.json").unlink()  # as in older runs
    workdir.keep(config, {"mine": "c"}, 5, {})


def test_a_run_does_not_resume_with_other_weights_in_the_same_file(tmp_path):
    config = deblock.get_config("compact")
    workdir = Workdir(str(tmp_path))
    workdir.keep(config, {}, None, {"ranker": "a"})
    workdir.keep(config, {}, 5, {"ranker": "a"})
    words = r"begun with another file of weights \(ranker\); restore that file"
    with pytest.raises(UserError, match=words):
        workdir.keep(config, {}, 5, {"ranker": "b"})


def test_weights_without_checkpoints_are_a_finished_run(tmp_path):
    config = ranker.get_config("quickstart")
    config.workdir = str(tmp_path)
    model = Ranker(config.model.width, config.model.hidden)
    made = {"config": json.loads(config.to_json()), "step": 5}
    path = tmp_path / "ranker.safetensors"
    fields = config.model.to_dict()
    weights.save(path, "ranker", fields, state.init(model, 48, 0), made)
    before = path.read_bytes()

    def make_stage(config):
        return _toy_stage(_toy_step, digests=dict, fingerprints={"mine": "a"})

    assert loop._run(config, "ranker", make_stage) == path
    (tmp_path / "records.json").write_text('{"mine": "b"}')
    with pytest.raises(UserError, match="begun with other records of the data set min"):
        loop._run(config, "ranker", make_stage)
    config.steps = 7
    with pytest.raises(
        UserError, match=r"steps=\d+, now 7, and its checkpoints are gone"
    ):
        loop._run(config, "ranker", make_stage)
    assert path.read_bytes() == before


@pytest.mark.parametrize("left", ["checkpoints", "weights"])
@pytest.mark.parametrize("file", [deblock, ablation])
def test_another_config_in_the_workdir_is_reported_before_the_ranker_trains(
    tmp_path, monkeypatch, file, left
):
    def never(*args):
        raise AssertionError("the ranker was trained")

    monkeypatch.setattr(loop, "train_ranker", never)
    monkeypatch.setattr(loop, "deblock_stage", never)
    monkeypatch.setattr(stages, "deblock_stage", never)
    config = file.get_config("quickstart")
    config.workdir = str(tmp_path)
    begun = deblock.get_config("quickstart")
    begun.steps = 7
    folder = tmp_path / ("none/seed1" if file is ablation else "")
    if left == "checkpoints":
        Workdir(str(folder)).keep(begun, {}, None, {})
        (folder / "checkpoints" / "5").mkdir(parents=True)
    else:
        held, made = drawn(**SMALL), {"config": json.loads(begun.to_json())}
        path = folder / "deblocker.safetensors"
        weights.save(path, "deblocker", held.fields, held.variables, made)
    train = table1.train_variants if file is ablation else loop.train_deblocker
    with pytest.raises(UserError, match=r"(begun|trained) with .*=.*, now"):
        train(config)


def test_a_signal_during_the_last_save_stops_the_run_after_it(tmp_path, monkeypatch):
    def wait(manager):
        signal.raise_signal(signal.SIGTERM)

    with _toy_training(tmp_path, _toy_stage(_toy_step), 2, 1) as (train, manager):
        monkeypatch.setattr(loop.checkpoint, "wait", wait)
        with pytest.raises(SystemExit) as caught:
            train()
        assert caught.value.code == 128 + signal.SIGTERM
        monkeypatch.undo()
        assert manager.latest_step() == 2


def test_a_second_signal_has_its_usual_effect_after_a_second(monkeypatch):
    now = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # as `timeout` sends it
        assert interrupts.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_failed_save_stops_the_run_at_the_next_log_line(tmp_path, monkeypatch):
    with _toy_training(tmp_path, _toy_stage(_toy_step), 3, 1) as (train, manager):

        def failed():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(manager, "check_for_errors", failed)
        with pytest.raises(UserError, match="checkpoints: No space left on device"):
            train()


def test_speed_and_time_left_do_not_count_compiled_steps(tmp_path, caplog, monkeypatch):
    now = iter([100.0, 110.0, 110.0, 200.0, 200.0, 200.0, 230.0, 230.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    reporter = Reporter(str(tmp_path), "ranker", 100, 4)
    with reporter, caplog.at_level("INFO", "cqr_jax"):
        reporter.validation(1, {"psnr": 30.5})
        reporter.clock.restart(1)
        reporter.training(21, {"loss": 0.5})
        reporter.clock.restart(21)
        reporter.training(21, {"loss": 0.5})
        reporter.training(41, {"loss": 0.5})
    (file,) = (tmp_path / "logs").glob("events.*")
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    events = map(event_pb2.Event.FromString, records)
    found = {
        (event.step, value.tag): tf.make_ndarray(value.tensor).item()
        for event in events
        for value in event.summary.value
    }
    assert found[1, "validation/psnr"] == 30.5
    assert found[21, "train/loss"] == 0.5
    assert found[41, "train/images_per_second"] > 0
    assert [x.split("0.5  ")[1] for x in caplog.messages[1:]] == [
        "8 images/s  0:00:40 left",
        "? images/s  ? left",
        "3 images/s  0:01:28 left",
    ]


def test_a_run_without_validation_has_no_weights_to_write(data_dir, tmp_path):
    config = ranker.get_config("quickstart")
    config.update_from_flattened_dict(
        {
            "workdir": str(tmp_path),
            "data.data_dir": str(data_dir),
            "data.name": "photos",
            "steps": 1,
            "validate_every": 1000,
            "optimizer.warmup_steps": 0,
            "batch_size": 2,
            "patch": 32,
            "model.width": 2,
            "model.hidden": 8,
        }
    )
    stage = stages.ranker_stage(config)
    begin = state.create(stage.steps.model, 32, stage.steps.optimizer, 0)
    with checkpoint.open_manager(str(tmp_path), 1, *stage.best) as manager:
        checkpoint.save(manager, begin.replace(step=np.array(1, np.int32)), None)
    with pytest.raises(UserError, match=r"no validation yet.*until step 1000"):
        loop.train_ranker(config)


@pytest.mark.parametrize(("value", "allowed"), [(0, True), (5, False)])
def test_a_run_older_than_a_field_is_resumed_if_the_field_is_off(
    tmp_path, value, allowed
):
    config = deblock.get_config("paper")
    old = json.loads(config.to_json())
    del old["guided_steps"], old["model"]["feature_scale"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    config.guided_steps = value
    if allowed:
        Workdir(str(tmp_path)).keep(config, {}, 1, {})
        return
    with pytest.raises(UserError, match="begun with guided_steps=None, now 5"):
        Workdir(str(tmp_path)).keep(config, {}, 1, {})


def test_a_non_finite_loss_stops_with_its_step(tmp_path):
    def step(state, ranker_variables, batch):
        loss = jnp.where(state.step == 2, jnp.inf, batch["x"].mean())
        return state.replace(step=state.step + 1), {"loss": loss}

    with _toy_training(tmp_path, _toy_stage(step), 4, 3) as (train, manager):
        words = f"{tmp_path}: the loss became inf at step 3; in a new workdir"
        with pytest.raises(UserError, match=words):
            train()
        assert manager.latest_step() is None


@pytest.mark.slow
def test_both_stages_train_and_are_evaluated(
    data_dir, tmp_path, photographs, capsys, monkeypatch
):
    workdir = tmp_path / "deblock"
    flags = (
        f"--config.workdir={workdir}",
        f"--config.ranker.workdir={tmp_path}/ranker",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        f"--config.evaluation.sets={photographs}",
        *DEBLOCKER,
    )
    tasks.train_deblocker(overridden(deblock.get_config("quickstart"), flags))
    out = capsys.readouterr().out
    rows = json.loads((workdir / "rows.json").read_text())
    assert len(rows) == 2 * 3
    for row in rows:
        assert row["images"] == 4
        assert row["method"] in ("jpeg", "deblock")
        assert 20 < row["psnr_b"] <= row["psnr"] < 60
        assert 0.3 < row["ssim"] < 1
    head = ["dataset", "QF", "images", "jpeg", "deblock"]
    assert out.splitlines()[1].split() == head
    assert len(list((workdir / "panels").rglob("*.png"))) == 4 * 3
    assert list((workdir / "logs").glob("events.*"))

    # A finished run keeps its file, which tells the commit of its training.
    trained = workdir / "deblocker.safetensors"
    before = trained.read_bytes()
    monkeypatch.setattr(provenance, "commit", lambda: "another")
    config = overridden(deblock.get_config("quickstart"), flags)
    config.evaluation.sets = ""
    assert tasks.train_deblocker(config) == trained
    assert trained.read_bytes() == before

    # Its file tells its ranker. A run does not continue with another one.
    file = tmp_path / "ranker" / "ranker.safetensors"
    ranking = weights.load(file, "ranker")
    made = weights.header(trained, "deblocker").provenance
    assert made["ranker"] == weights.digest(ranking.variables)
    other = jax.tree.map(lambda x: x + 1, ranking.variables)
    weights.save(tmp_path / "other", "ranker", ranking.fields, other, {})
    content = file.read_bytes()
    config.ranker_weights = str(file)
    shutil.copy(tmp_path / "other", file)
    begun = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(
        json.dumps(begun | {"ranker_weights": str(file)})
    )
    with pytest.raises(UserError, match=r"another file of weights \(ranker\)"):
        tasks.train_deblocker(config)
    file.write_bytes(content)

    # The weights alone give the same rows. Weights of another width are rejected.
    config = evaluation.get_config()
    config.workdir, config.sets = str(tmp_path / "eval"), str(photographs)
    config.weights = str(trained)
    tasks.TASKS[config.task].run(config)
    assert json.loads((tmp_path / "eval" / "rows.json").read_text()) == rows
    config = deblock.get_config("quickstart")
    config.ranker_weights = str(tmp_path / "ranker" / "ranker.safetensors")
    words = "holds a ranker with width=2, but config.ranker.model has width=8; change"
    with pytest.raises(UserError, match=words):
        check_start(config, "deblocker")


@pytest.mark.slow
def test_training_options_work_together(tmp_path, caplog):
    """The records of the embedded photographs are made first."""
    flags = (
        f"--config.workdir={tmp_path}/deblock",
        f"--config.data.data_dir={tmp_path}/data",
        "--config.degradation=blind",
        "--config.qualities_per_crop=1",
        "--config.optimizer.name=muon",
        "--config.loss.pixel=log_mse",
        "--config.compute_dtype=bfloat16",
        "--config.grad_accum_steps=2",
        "--config.parallel=pmap",
        "--config.evaluation.sets=",
        *DEBLOCKER,
    )
    config = overridden(deblock.get_config("quickstart,ablation=cqr"), flags)
    with caplog.at_level("INFO", "cqr_jax"):
        path = tasks.train_deblocker(config)
    assert "log_mse -" in caplog.text
    _, _, provenance, arrays = weights.read(path)
    assert [row["step"] for row in provenance["curve"]] == [3, 6]
    assert 20 < provenance["curve"][-1]["psnr_blind"] < 60
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in arrays.values())


@pytest.mark.slow
def test_ablation_trains_missing_runs_and_prints_a_table(
    data_dir, tmp_path, photographs, capsys, caplog, monkeypatch
):
    workdir = tmp_path / "ablation"
    flags = (
        f"--config.workdir={workdir}",
        f"--config.ranker.workdir={tmp_path}/ranker",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        f"--config.evaluation.sets={photographs}",
        "--config.evaluation.qualities=10,20",
        "--config.variants=cqr,none",
        "--config.seeds=3,4",
        *DEBLOCKER,
    )
    monkeypatch.setattr(loop, "train", _save_untrained)
    with caplog.at_level("INFO", "cqr_jax"):
        tasks.train_variants(overridden(ablation.get_config("quickstart"), flags))
    out = capsys.readouterr().out
    assert caplog.text.count("ranker: weights of step 4") == 1  # all runs share one
    assert caplog.text.count("deblocker: weights of step 6") == 4
    # The first seed of all variants comes first.
    order = [("cqr", 3), ("none", 3), ("cqr", 4), ("none", 4)]
    assert [x for x in caplog.messages if x.startswith("run ")] == [
        f"run {i} of 4: ablation={variant}, seed {seed}"
        for i, (variant, seed) in enumerate(order, 1)
    ]
    runs = {
        (variant, seed): json.loads(
            (workdir / variant / f"seed{seed}" / "config.json").read_text()
        )
        for variant in ("cqr", "none")
        for seed in (3, 4)
    }
    for (variant, seed), fields in runs.items():
        assert fields["seed"] == seed
        assert fields["ranker"]["seed"] == 0
        assert fields["steps"] == 6
        assert (fields["loss"]["alpha"] == 0) == (variant == "cqr")
    lines = out.splitlines()
    assert lines[1].split()[3:] == ["jpeg", "w/o", "CQR", "ours"]
    assert lines[2].count("±") == 2 * 3
    rows = json.loads((workdir / "rows.json").read_text())
    assert len(rows) == 2 * (1 + 4)
    assert {row["method"] for row in rows} == {
        "jpeg",
        *(f"{variant}/seed{seed}" for variant, seed in runs),
    }

    # Finished runs are not repeated. Another command prints the table alone.
    repeated = overridden(ablation.get_config("quickstart"), flags)
    monkeypatch.setattr(loop, "train", None)
    table1.train_variants(repeated)
    config = evaluation.get_config("ablation")
    config.workdir, config.sets = str(workdir), str(photographs)
    config.qualities = (10, 20)
    capsys.readouterr()
    tasks.TASKS[config.task].run(config)
    assert capsys.readouterr().out == out


def test_table_1_without_finished_runs_is_an_error(tmp_path):
    config = evaluation.get_config("ablation")
    config.workdir = str(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}: contains no finished run"):
        tasks.TASKS[config.task].run(config)


def test_weights_of_another_network_are_named(tmp_path, monkeypatch):
    class Other(Deblocker):
        pass

    monkeypatch.setitem(models.MODELS, "other", Other)
    path = tmp_path / "a.safetensors"
    made = drawn(**SMALL)
    weights.save(path, "deblocker", {"name": "other"}, made.variables, {})
    asked = deblock.get_config("compact").model.to_dict()
    with pytest.raises(
        UserError, match=r"with name=other, but config\.model has name=deb"
    ):
        weights.load(path, "deblocker", asked)


class Halving(nn.Module):
    """Halves and doubles the sides of its input."""

    channels: int = 1
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, image):
        return layers.depth_to_space(nn.Conv(4, (3, 3), strides=2)(image), 2)


class OneSize(Halving):
    """Has a parameter of the size of its input."""

    @nn.compact
    def __call__(self, image):
        return image + self.param("bias", nn.initializers.zeros, image.shape[1:])


def test_a_network_must_take_odd_sides(monkeypatch):
    config = deblock.get_config("quickstart,ablation=cqr")
    config.model = ConfigDict({"name": "new", "channels": 1})
    for module, words in (
        (Halving, r"Halving maps an image of 45x51 pixels to \(1, 46, 52, 1\); pad"),
        (OneSize, "OneSize maps an image of 45x51 pixels to an error"),
    ):
        monkeypatch.setitem(models.MODELS, "new", module)
        with pytest.raises(UserError, match=words):
            check_start(config, "deblocker")


def test_some_layers_are_taken_from_initial_weights_of_another_model(tmp_path):
    fields = {**SMALL, "deeper_widths": (8,), "conditioning": "modulation"}
    path, made = tmp_path / "a.safetensors", drawn(**fields)
    weights.save(path, "deblocker", fields, made.variables, {})
    config = deblock.get_config("colour")
    changed = {"mask_shifts": True, "outer_masks": True}
    config.model = ConfigDict({"name": "deblocker", **fields, **changed})
    config.initial_weights = str(path)
    config.initial_layers = "head,level0_in0/head/i,non_local"
    initial = check_start(config, "deblocker").variables["params"]
    model = models.create(config.model, "deblocker")
    fresh = state.init(model, 32, 0)["params"]
    taken = flatten_dict(initial_params(config, fresh, initial), sep="/")
    ours, theirs = (flatten_dict(x, sep="/") for x in (fresh, initial))
    assert taken.keys() == ours.keys()
    starts = ("head/", "level0_in0/head/inner/", "non_local_")
    for name, x in taken.items():
        known = name.startswith(starts) and name in theirs
        np.testing.assert_array_equal(x, theirs[name] if known else ours[name])
    assert "non_local_in/mask/shift/kernel" not in theirs  # it is new
    other = {**fresh, "body": fresh["head"]}
    for prefixes, words in (
        ("heads", f"no layer of {path} begins with heads; it has body, "),
        ("body", "body/bias of .* does not fit the config's model"),
    ):
        config.initial_layers = prefixes
        with pytest.raises(UserError, match=f"config.initial_layers: {words}"):
            initial_params(config, other, initial)
    config.model.feature_scale, config.initial_layers = 16.0, "head"
    with pytest.raises(UserError, match=r"have feature_scale=1.*feature_scale=16"):
        check_start(config, "deblocker")
    config.model.feature_scale = 1.0
    for prefixes in ("", ","):
        config.initial_layers = prefixes
        with pytest.raises(UserError, match=r"but config\.model has"):
            check_start(config, "deblocker")
    config.initial_layers = "x"  # it is found before the training
    with pytest.raises(UserError, match="begins with x"):
        check_start(config, "deblocker")
    config.initial_weights = ""
    with pytest.raises(UserError, match=r"needs config\.initial_weights"):
        check_start(config, "deblocker")


@pytest.mark.parametrize("kind", ["modulation", "pooled", "unconditioned"])
def test_luma_of_a_colour_deblocker_computes_the_same_y(tmp_path, kind):
    path, converted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    colour = drawn(**SMALL | NETWORKS[kind])
    weights.save(path, "deblocker", colour.fields, colour.variables, {"step": 3})
    code, out, err = call(weights_command.main, path, f"--luma={converted}")
    assert (code, out) == (0, ""), err
    gray = weights.load(converted, "deblocker")
    assert gray.model.channels == 1
    assert gray.provenance == {"step": 3}
    y = np.random.default_rng(0).random((1, 24, 32, 1), np.float32)
    planes = np.concatenate([y, np.full((1, 24, 32, 2), 0.5, np.float32)], axis=-1)
    expected = colour.model.apply(colour.variables, planes)[..., :1]
    assert np.abs(expected - y).max() > 0.01
    np.testing.assert_allclose(gray.model.apply(gray.variables, y), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "channels"), [("planes", 3), ("unconditioned", 1)])
def test_other_deblockers_have_no_luma(tmp_path, kind, channels):
    path, converted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    other = drawn(**SMALL | NETWORKS[kind] | {"channels": channels})
    weights.save(path, "deblocker", other.fields, other.variables, {})
    code, _, err = call(weights_command.main, path, f"--luma={converted}")
    assert code == 1
    assert "only deblockers for colour" in err.splitlines()[-1]
    assert not converted.exists()


def test_shipped_weights_are_half_as_large_and_load_as_float32(tmp_path):
    path, small = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = Ranker(width=2)
    variables = state.init(model, 48, 0)
    config = {
        "workdir": "/home/x",
        "steps": 4,
        "initial_weights": "/home/x/y.z",
        "evaluation": {"sets": "live1,/home/x/mine:validation", "measured": "/a/b.csv"},
    }
    provenance = {"step": 3, "earlier": [{"config": config}]}
    fields = {"width": 2, "hidden": 100}
    weights.save(path, "ranker", fields, variables, provenance)
    code, out, err = call(weights_command.main, path, f"--ship={small}")
    assert (code, out) == (0, ""), err
    assert small.stat().st_size < 0.7 * path.stat().st_size
    loaded = weights.load(small, "ranker", fields)
    kept = {
        "steps": 4,
        "initial_weights": "y.z",
        "evaluation": {"sets": "live1,mine:validation", "measured": "b.csv"},
    }
    assert loaded.provenance == {"step": 3, "earlier": [{"config": kept}]}
    for x, y in zip(
        jax.tree.leaves(loaded.variables), jax.tree.leaves(variables), strict=True
    ):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, y, rtol=2**-11, atol=2**-24)
    stats = loaded.variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])

    code, out, err = call(weights_command.main, small)
    assert code == 0, err
    told = json.loads(out)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert (told["kind"], told["parameters"], told["fields"]) == (
        "ranker",
        count,
        fields,
    )
    code, _, err = call(weights_command.main, tmp_path / "none.safetensors")
    assert code == 1
    words = "none.safetensors: no such weights file; those of the package are in "
    assert f"{words}{weights.SHIPPED}" in err.splitlines()[-1]


def test_loading_weights_reports_every_mismatch(tmp_path):
    variables = state.init(Ranker(width=2), 48, 0)
    path = tmp_path / "ranker.safetensors"
    weights.save(path, "ranker", {"width": 2, "hidden": 100}, variables, {"step": 3})
    loaded = weights.load(path, "ranker", {"width": 2})
    assert loaded.provenance == {"step": 3}
    assert loaded.model == Ranker(width=2)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    with pytest.raises(UserError, match="holds a ranker, not a deblocker"):
        weights.load(path, "deblocker")

    del variables["params"]["conv0"]["bias"]
    variables["params"]["dense1"]["bias"] = np.zeros(2)
    variables["params"]["more"] = {"bias": np.zeros(1)}
    weights.save(path, "ranker", {"width": 2, "hidden": 100}, variables, {})
    with pytest.raises(UserError) as error:
        weights.load(path, "ranker")
    for words in (
        "missing params/conv0/bias",
        "extra params/more",
        "(2,) instead of (1,)",
    ):
        assert words in str(error.value)
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match="not a weights file"):
        weights.load(path, "ranker")
    safetensors.torch.save_file({"x": torch.zeros(2, dtype=torch.bfloat16)}, path)
    with pytest.raises(UserError, match="not a weights file"):
        weights.load(path, "ranker")


@pytest.mark.parametrize(
    ("module", "missing", "name"),
    [
        ("cqr_jax.main", "absl", "train"),
        ("data_prep.build", "absl", "train"),
        ("cqr_jax.restoring.on_beam", "apache_beam", "beam"),
    ],
)
def test_missing_extra_is_one_line(module, missing, name):
    script = f"""
import runpy, sys
sys.modules["{missing}"] = None
sys.argv = ["{module}", "--source=embedded"]
runpy.run_module("{module}", run_name="__main__")
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == (
        f"error: the package {missing} is missing; pip install 'cqr_jax[{name}]', in "
        f"the repository pip install -e '.[{name}]'"
    )


def test_closed_output_pipe_is_no_error():
    process = start("cqr_jax.weights", weights.SHIPPED / "compact.safetensors")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 128 + signal.SIGPIPE
    process.stderr.close()
