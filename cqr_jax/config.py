"""Parsing of TEXT in `--config=FILE.py:TEXT`, and checks of config fields.

`configs/` defines and documents the fields. The checks of each task's fields are in the
package of the task: `training.checks`, `evaluation.checks` and `export.checks`.
`tasks.check` calls them.

These modules don't import JAX, except for the checks of the loss, so that mistakes are
reported immediately.
"""

import shlex
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from cqr_jax.errors import UserError

MAX_SEED = 2**31 - 1

# Part of the method that a variant of Table 1 leaves out; 'none' is the full method.
ABLATIONS = ("cqr", "dc", "lq", "lf", "none")

# Variants with L_F on some of the ranker's feature maps: those at the resolution of the
# image and at a half, those at a quarter and an eighth, and those below.
FEATURE_LAYERS = {
    "early": ("conv0", "conv1", "conv2"),
    "middle": ("conv3", "conv4", "conv5", "conv6"),
    "late": ("conv7", "conv8", "conv9"),
}


def parse(text: str, file: str, **choices: tuple[str, ...]) -> dict[str, str]:
    """Parses `preset` or `preset,key=value,...` with the choices of a config file.

    Args:
      text: text after the colon; empty for the defaults.
      file: path of the config file, for error messages.
      **choices: key -> its possible values, the default first. A word without '=' is
        the value of the first key.

    Returns:
      The value of every key.

    Raises:
      UserError: if a key or value is unknown, or a key is given twice.
    """
    first = next(iter(choices))
    given: dict[str, str] = {}
    for word in filter(None, text.split(",")):
        key, _, value = word.rpartition("=")
        key = key or first
        if key not in choices:
            raise UserError(
                f"{file}:{text}: unknown '{key}'; known: {list_of(choices)}"
            )
        if value not in choices[key]:
            others = [f"{k}={value}" for k, x in choices.items() if value in x]
            raise UserError(
                f"{file}:{text}: unknown {key} '{value}'; choose "
                f"{list_of([*choices[key], *others])}"
            )
        if key in given:
            raise UserError(f"{file}:{text}: {key} is given twice")
        given[key] = value
    return {key: given.get(key, values[0]) for key, values in choices.items()}


def variants(qualities: Iterable[int]) -> tuple[str, ...]:
    """Returns the variants of an ablation study: see `ablate`.

    Args:
      qualities: quality factors of the training.
    """
    separate = (f"q{quality}" for quality in qualities)
    return (*ABLATIONS, *FEATURE_LAYERS, *separate)


def separate_quality(variant: str) -> int | None:
    """Returns the quality factor of a variant trained for one alone, else None."""
    number = variant.removeprefix("q")
    return int(number) if number != variant and number.isdecimal() else None


# Fields that `ablate` changes.
ABLATED_FIELDS = (
    "loss.alpha",
    "loss.beta",
    "model.dilations",
    "feature_layers",
    "qualities",
    "qualities_per_crop",
)


def ablate(config: ConfigDict, ablation: str) -> None:
    """Changes a config of the deblocker in place to a variant of an ablation study.

    Args:
      config: config of `configs/deblock.py`.
      ablation: a variant. One of `ABLATIONS` leaves a part out: the ranker and its two
        losses ('cqr'), the dilation ('dc'), the quality loss ('lq'), the feature
        matching loss ('lf'), or nothing ('none'). One of `FEATURE_LAYERS` restricts the
        feature matching loss to these maps. 'qN' trains for the quality factor N alone.
    """
    if ablation in ("cqr", "lq"):
        config.loss.alpha = 0.0
    if ablation in ("cqr", "lf"):
        config.loss.beta = 0.0
    if ablation == "dc":
        config.model.dilations = (1,) * len(config.model.dilations)
    if ablation in FEATURE_LAYERS:
        config.feature_layers = FEATURE_LAYERS[ablation]
    if (quality := separate_quality(ablation)) is not None:
        config.qualities = (quality,)
        config.qualities_per_crop = min(1, config.qualities_per_crop)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns dotted name -> value of all fields."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= {f"{name}.{rest}": x for rest, x in flat(value).items()}
        else:
            found[name] = value
    return found


def as_flags(config: ConfigDict) -> list[str]:
    """Returns the flags that set all fields of a config, quoted for a shell.

    The task is left out. The config file sets it.
    """
    return [
        f"--config.{field}={shlex.quote(str(value))}"
        for field, value in sorted(flat(config).items())
        if field != "task"
    ]


def split_list(text: str) -> tuple[str, ...]:
    """Splits a field that holds comma-separated values."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def level_ranges(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """Returns the first and last quality factor of each level, worst first."""
    size = (config.max_quality - config.min_quality + 1) // config.levels
    starts = (config.min_quality + size * i for i in range(config.levels))
    return tuple((start, start + size - 1) for start in starts)


def check_folders(config: ConfigDict | dict[str, Any], where: str) -> None:
    """Checks that the folders are not in a bucket."""
    for field in ("workdir", "set_dir"):
        if "://" in config.get(field, ""):
            raise UserError(
                f"{where}.{field}={config[field]}: must be a local or mounted folder; "
                "only data.data_dir may be in a bucket"
            )


def check_levels(config: ConfigDict, where: str, first: int, last: int) -> None:
    """Checks the quality factors and the levels of a ranker."""
    low, high = config.min_quality, config.max_quality
    if not first <= low <= high <= last:
        raise UserError(
            f"{where}.min_quality={low}, max_quality={high}: must be within {first} to "
            f"{last}"
        )
    at_least(config, where, "levels", 2)
    if (high - low + 1) % config.levels:
        raise UserError(
            f"{where}.levels={config.levels}: the {high - low + 1} quality factors "
            f"from {low} to {high} can't be divided into {config.levels} equal levels"
        )


def check_qualities(config: ConfigDict, where: str) -> None:
    """Checks that `qualities` are distinct quality factors."""
    whole(config, where, "qualities")
    qualities, field = config.qualities, f"{where}.qualities"
    if not qualities or any(not 1 <= quality <= 100 for quality in qualities):
        raise UserError(f"{field}={qualities}: JPEG quality factors are 1 to 100")
    if len(set(qualities)) != len(qualities):
        raise UserError(f"{field}={qualities}: one is given twice")


def whole(config: ConfigDict, where: str, field: str) -> None:
    """Checks that the values of a field are whole numbers."""
    if not all(isinstance(value, int) for value in config[field]):
        raise UserError(
            f"{where}.{field}={config[field]}: must be whole numbers, such as '(1, 2)'"
        )


def at_least(config: ConfigDict, where: str, field: str, low: int) -> None:
    """Checks that a field is not below `low`."""
    if not config[field] >= low:  # NaN fails too
        raise UserError(f"{where}.{field}={config[field]}: must be at least {low}")


def in_range(
    config: ConfigDict,
    where: str,
    field: str,
    low: float,
    high: float,
    high_open: bool = False,
) -> None:
    """Checks that a field is in [low, high], or in [low, high) if `high_open`."""
    value = config[field]
    if not low <= value <= high or (high_open and value == high):
        end = ")" if high_open else "]"
        raise UserError(f"{where}.{field}={value}: must be in [{low}, {high}{end}")


def two_numbers(config: ConfigDict, where: str, field: str) -> tuple[float, float]:
    """Returns the values of a field that must hold two numbers."""
    values = config[field]
    if len(values) != 2 or not all(isinstance(x, int | float) for x in values):
        raise UserError(f"{where}.{field}={values}: needs two numbers")
    low, high = values
    return low, high


def one_of(config: ConfigDict, where: str, field: str, values: tuple[str, ...]) -> None:
    """Checks that a field has one of the values."""
    if config[field] not in values:
        raise UserError(f"{where}.{field}={config[field]!r}: choose {list_of(values)}")


def list_of(words: Iterable[str]) -> str:
    """Returns 'a, b or c'."""
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last
