"""Reads what stands after the colon in `--config=FILE.py:TEXT`, and checks configs.

The fields themselves, each with its meaning, are in `configs/`.
"""

import importlib.util
import pathlib
import types

import ml_collections

from cqr_jax.data.records import QUALITIES
from cqr_jax.errors import UserError
from cqr_jax.losses import PIXEL
from cqr_jax.models.deblocker import CONDITIONINGS

_TASKS = (
    "ranker",
    "deblock",
    "ablation",
    "aot",
    "eval",
    "eval_ablation",
    "eval_ranker",
    "eval_blind",
    "eval_colour",
    "eval_blind_colour",
)

# Chroma sampling by its name -> pixels, down and across, that one sample stands for.
SUBSAMPLINGS = {"4:2:0": (2, 2), "4:2:2": (1, 2), "4:4:4": (1, 1)}

_MAX_SEED = 2**31 - 1

# What a variant of Table 1 goes without; 'nothing' is the whole method.
ABLATIONS = ("cqr", "dc", "lq", "lf", "nothing")


def parse(text: str, file: str, **choices: tuple[str, ...]) -> dict[str, str]:
    """Parses `preset` or `preset,key=value,...` against what a config file offers.

    Args:
      text: what follows the colon; empty for the defaults.
      file: the config file, named in errors.
      **choices: the values each key can have, its default first. A word without '='
        is the value of the first key.

    Returns:
      The value of every key.

    Raises:
      UserError: an unknown key or value, or a key given twice.
    """
    first = next(iter(choices))
    given: dict[str, str] = {}
    for word in filter(None, text.split(",")):
        key, _, value = word.rpartition("=")
        key = key or first
        if key not in choices:
            raise UserError(f"{file}:{text}: unknown '{key}'; known: {_list(choices)}")
        if value not in choices[key]:
            raise UserError(
                f"{file}:{text}: '{value}' is no {key}; choose {_list(choices[key])}"
            )
        if key in given:
            raise UserError(f"{file}:{text}: {key} is given twice")
        given[key] = value
    return {key: given.get(key, values[0]) for key, values in choices.items()}


def beside(file: str, name: str) -> types.ModuleType:
    """The config module `name` in the folder of the config `file`, wherever that is."""
    path = pathlib.Path(file).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ablate(config: ml_collections.ConfigDict, without: str) -> None:
    """Makes a config of the deblocker a variant of Table 1, in place.

    Args:
      config: as `configs/deblock.py` makes it.
      without: one of `ABLATIONS`: the ranker, and with it both of its losses (cqr), the
        dilation (dc), the quality loss (lq) or the feature matching loss (lf).
    """
    if without in ("cqr", "lq"):
        config.loss.alpha = 0.0
    if without in ("cqr", "lf"):
        config.loss.beta = 0.0
    if without == "dc":
        config.model.dilations = (1,) * len(config.model.dilations)


def words(text: str) -> tuple[str, ...]:
    """The words of a field that takes several with commas between them."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the ranges of all fields.

    Raises:
      UserError: the first field that is out of its range, with the range.
    """
    if config.task not in _TASKS:
        raise UserError(f"config.task={config.task!r}: choose {_list(_TASKS)}")
    _check_folders(config, "config")
    for group in ("ranker", "evaluation"):
        _check_folders(config.get(group, {}), f"config.{group}")
    if config.task in ("eval", "eval_ablation"):
        _check_qualities(config, "config")
    elif config.task == "eval_colour":
        _check_qualities(config, "config")
        _one_of(config, "config", "subsampling", tuple(SUBSAMPLINGS))
    elif config.task == "eval_ranker":
        _check_levels(config, "config", 1, 100)
        if config.side and (config.side < 32 or config.side % 8):
            raise UserError(
                f"config.side={config.side}: must be 0, or a multiple of 8 from 32 on"
            )
    elif config.task not in ("eval_blind", "eval_blind_colour"):
        _check_training(config, "config")
        if config.task == "ranker":
            _check_ranker(config, "config")
        else:
            _check_deblock(config)
    if config.task == "ablation":
        _check_runs(config)
    if config.task == "aot":
        _one_of(config, "config", "parallel", ("jit",))
        _at_least(config, "config", "side", 1)
        _in_range(config, "config", "memory", 0, 1e6)


def level_ranges(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], ...]:
    """First and last quality factor of each of the ranker's levels, worst first."""
    size = (config.max_quality - config.min_quality + 1) // config.levels
    starts = (config.min_quality + size * i for i in range(config.levels))
    return tuple((start, start + size - 1) for start in starts)


def _check_folders(config, where: str) -> None:
    for field in ("workdir", "set_dir"):
        if "://" in config.get(field, ""):
            raise UserError(
                f"{where}.{field}={config[field]}: must be a folder of this machine "
                "or one mounted here; of all folders data.data_dir alone may be in a "
                "bucket"
            )


def _check_training(config, where: str) -> None:
    counts = (
        "steps",
        "log_every",
        "validate_every",
        "batch_size",
        "keep",
        "accumulate",
    )
    for field in counts:
        _at_least(config, where, field, 1)
    _in_range(config, where, "seed", 0, _MAX_SEED)
    _one_of(config, where, "parallel", ("jit", "pmap"))
    _one_of(config, where, "compute_dtype", ("float32", "bfloat16"))
    _in_range(config, where, "ema_decay", 0, 1, high_open=True)
    for field in ("examples", "batch_size"):
        _at_least(config.validation, f"{where}.validation", field, 1)
    for owner, name in ((config, where), (config.validation, f"{where}.validation")):
        if owner.patch < 32 or owner.patch % 8:
            raise UserError(
                f"{name}.patch={owner.patch}: must be a multiple of 8, at least 32"
            )
    optimizer, name = config.optimizer, f"{where}.optimizer"
    _one_of(optimizer, name, "name", ("adam", "muon"))
    _one_of(optimizer, name, "schedule", ("halving", "cosine", "stable_decay"))
    if optimizer.learning_rate <= 0:
        raise UserError(f"{name}.learning_rate must be positive")
    _at_least(optimizer, name, "halve_every", 1)
    for field in ("warmup_steps", "decay_steps"):
        _in_range(optimizer, name, field, 0, config.steps)
    if optimizer.clip_norm < 0:
        raise UserError(f"{name}.clip_norm must be positive, or 0 for none")


def _check_ranker(config, where: str) -> None:
    _check_levels(config, where, QUALITIES[0], QUALITIES[-1])
    if config.parallel == "jit" and not config.sync_batch_norm:
        raise UserError(
            f"{where}.sync_batch_norm=False: needs {where}.parallel=pmap; under jit "
            "BatchNorm always sees the whole batch"
        )
    if config.margin <= 0:
        raise UserError(f"{where}.margin={config.margin}: must be positive")
    for field in ("width", "hidden"):
        _at_least(config.model, f"{where}.model", field, 1)


def _check_levels(config, where: str, first: int, last: int) -> None:
    low, high = config.min_quality, config.max_quality
    if not first <= low <= high <= last:
        raise UserError(
            f"{where}.min_quality={low}, max_quality={high}: must be within {first} to "
            f"{last}"
        )
    _at_least(config, where, "levels", 2)
    if (high - low + 1) % config.levels:
        raise UserError(
            f"{where}.levels={config.levels}: the {high - low + 1} quality factors "
            f"from {low} to {high} don't divide into {config.levels} equal levels"
        )


def _check_runs(config) -> None:
    given = {"variants": words(config.variants), "seeds": config.seeds}
    for field, values in given.items():
        if not values or len(set(values)) != len(values):
            raise UserError(f"config.{field}={values}: needs one or more, none twice")
    for variant in given["variants"]:
        if variant not in ABLATIONS:
            raise UserError(f"config.variants: {variant!r}: choose {_list(ABLATIONS)}")
    _whole(config, "config", "seeds")
    if min(config.seeds) < 0 or max(config.seeds) > _MAX_SEED:
        raise UserError(f"config.seeds={config.seeds}: must be 0 to {_MAX_SEED}")


def _check_deblock(config) -> None:
    _check_training(config.ranker, "config.ranker")
    _check_ranker(config.ranker, "config.ranker")
    _check_qualities(config.evaluation, "config.evaluation")
    _check_qualities(config, "config")
    if outside := set(config.qualities) - set(QUALITIES):
        raise UserError(
            f"config.qualities: the records hold {QUALITIES[0]} to {QUALITIES[-1]}, "
            f"not {_list(map(str, sorted(outside)))}"
        )
    _in_range(config, "config", "qualities_per_crop", 0, len(config.qualities))
    _one_of(config, "config", "degradation", ("ladder", "blind", "colour"))
    _whole(config.blind, "config.blind", "qualities")
    low, high = _range(config.blind, "config.blind", "qualities")
    if not 1 <= low <= high <= 100:
        raise UserError(f"config.blind.qualities={low, high}: must be within 1 to 100")
    for field in ("double", "shifted"):
        _in_range(config.blind, "config.blind", field, 0, 1)
    _check_colour(config)
    if config.degradation != "ladder" and config.qualities_per_crop != 1:
        raise UserError(
            f"config.qualities_per_crop={config.qualities_per_crop}: a "
            f"{config.degradation} degradation is one for each crop; must be 1"
        )
    for field in ("alpha", "beta"):
        if config.loss[field] < 0:
            raise UserError(f"config.loss.{field}={config.loss[field]}: is negative")
    _one_of(config.loss, "config.loss", "pixel", tuple(PIXEL))
    _at_least(config.model, "config.model", "width", 2)
    for field in ("scale", "key_pool"):
        _at_least(config.model, "config.model", field, 1)
    for field in ("local_blocks", "residual_blocks", "outer_blocks"):
        _at_least(config.model, "config.model", field, 0)
    _at_least(config.model, "config.model", "embedding", 1)
    _one_of(config.model, "config.model", "conditioning", CONDITIONINGS)
    _whole(config.model, "config.model", "deeper_widths")
    if min(config.model.deeper_widths, default=2) < 2:
        raise UserError(
            f"config.model.deeper_widths={config.model.deeper_widths}: widths are at "
            "least 2"
        )
    _whole(config.model, "config.model", "dilations")
    dilations = config.model.dilations
    if not dilations or min(dilations) < 1 or len(dilations) > config.model.width:
        raise UserError(
            f"config.model.dilations={dilations}: needs one or more dilations of at "
            "least 1, and not more of them than the width"
        )


def _check_colour(config) -> None:
    """What a colour degradation is drawn from, and whether the model is one of it."""
    channels = 3 if config.degradation == "colour" else 1
    if config.model.channels != channels:
        raise UserError(
            f"config.model.channels={config.model.channels}: must be {channels} with "
            f"degradation={config.degradation}"
        )
    if channels == 1 and config.model.conditioning != "none":
        raise UserError(
            f"config.model.conditioning={config.model.conditioning}: needs "
            "degradation=colour, which alone tells the compression"
        )
    where = "config.colour"
    _whole(config.colour, where, "qualities")
    low, high = _range(config.colour, where, "qualities")
    if not 1 <= low <= high <= 100:
        raise UserError(f"{where}.qualities={low, high}: must be within 1 to 100")
    for field in ("low", "gray", "other_tables", "double", "shifted", "unknown"):
        _in_range(config.colour, where, field, 0, 1)
    shares = _range(config.colour, where, "subsampled")
    if min(shares) < 0 or sum(shares) > 1:
        raise UserError(
            f"{where}.subsampled={shares}: must be two probabilities of at most 1 "
            "together"
        )
    if config.data.gray_name:
        most = config.batch_size - 1
        _in_range(config.data, "config.data", "gray_crops", 1, most)


def _check_qualities(config, where: str) -> None:
    _whole(config, where, "qualities")
    qualities, field = config.qualities, f"{where}.qualities"
    if not qualities or any(not 1 <= quality <= 100 for quality in qualities):
        raise UserError(f"{field}={qualities}: JPEG quality factors are 1 to 100")
    if len(set(qualities)) != len(qualities):
        raise UserError(f"{field}={qualities}: one is given twice")


def _whole(config, where: str, field: str) -> None:
    if not all(isinstance(value, int) for value in config[field]):
        raise UserError(
            f"{where}.{field}={config[field]}: must be whole numbers, '(1, 2)'"
        )


def _at_least(config, where: str, field: str, low: int) -> None:
    if config[field] < low:
        raise UserError(f"{where}.{field}={config[field]}: must be at least {low}")


def _in_range(config, where, field, low, high, high_open=False) -> None:
    value = config[field]
    if not low <= value <= high or (high_open and value == high):
        end = ")" if high_open else "]"
        raise UserError(f"{where}.{field}={value}: must be in [{low}, {high}{end}")


def _range(config, where: str, field: str) -> tuple[int, int]:
    if len(config[field]) != 2:
        raise UserError(f"{where}.{field}={config[field]}: needs two numbers")
    low, high = config[field]
    return low, high


def _one_of(config, where: str, field: str, values: tuple[str, ...]) -> None:
    if config[field] not in values:
        raise UserError(f"{where}.{field}={config[field]!r}: choose {_list(values)}")


def _list(words) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last
