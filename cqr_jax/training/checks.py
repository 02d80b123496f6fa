"""Checks of the fields of training configs."""

import math
import os

from ml_collections import ConfigDict

from cqr_jax.config import (
    MAX_SEED,
    ablate,
    at_least,
    check_levels,
    check_qualities,
    in_range,
    list_of,
    one_of,
    separate_quality,
    split_list,
    two_numbers,
    variants,
    whole,
)
from cqr_jax.data.compression import CONDITIONINGS
from cqr_jax.data.kinds import QUALITIES
from cqr_jax.errors import UserError


def check_ranker(config: ConfigDict) -> None:
    """Checks a config of `configs/ranker.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    _check_training(config, "config")
    _check_ranker(config, "config")


def check_deblock(config: ConfigDict) -> None:
    """Checks a config of `configs/deblock.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    _check_training(config, "config")
    _check_deblock(config)
    _check_loss(config)


def check_ablation(config: ConfigDict) -> None:
    """Checks a config of `configs/ablation.py`.

    Raises:
      UserError: if a field is out of its range; names the first one and its range.
    """
    check_deblock(config)
    _check_runs(config)


def _check_training(config, where: str) -> None:
    counts = (
        "steps",
        "log_every",
        "validate_every",
        "batch_size",
        "keep",
        "grad_accum_steps",
    )
    for field in counts:
        at_least(config, where, field, 1)
    in_range(config, where, "seed", 0, MAX_SEED)
    one_of(config, where, "parallel", ("jit", "pmap"))
    one_of(config, where, "compute_dtype", ("float32", "bfloat16"))
    in_range(config, where, "ema_decay", 0, 1, high_open=True)
    for field in ("examples", "batch_size"):
        at_least(config.validation, f"{where}.validation", field, 1)
    for owner, name in ((config, where), (config.validation, f"{where}.validation")):
        if owner.patch < 32 or owner.patch % 8:
            raise UserError(
                f"{name}.patch={owner.patch}: must be a multiple of 8, at least 32"
            )
    optimizer, name = config.optimizer, f"{where}.optimizer"
    one_of(optimizer, name, "name", ("adam", "muon"))
    one_of(optimizer, name, "schedule", ("step_decay", "cosine", "stable_decay"))
    rate = optimizer.learning_rate
    if not 0 < rate < math.inf:
        raise UserError(f"{name}.learning_rate={rate}: must be positive and finite")
    at_least(optimizer, name, "halve_every", 1)
    for field in ("warmup_steps", "decay_steps"):
        in_range(optimizer, name, field, 0, config.steps)
    if optimizer.decay_steps and optimizer.schedule != "stable_decay":
        raise UserError(
            f"{name}.decay_steps={optimizer.decay_steps}: needs "
            f"{name}.schedule=stable_decay"
        )
    if not optimizer.clip_norm >= 0:
        raise UserError(
            f"{name}.clip_norm={optimizer.clip_norm}: must be positive, or 0 for no "
            "clipping"
        )


def _check_ranker(config, where: str) -> None:
    check_levels(config, where, QUALITIES[0], QUALITIES[-1])
    if config.parallel == "jit" and not config.sync_batch_norm:
        raise UserError(
            f"{where}.sync_batch_norm=False: needs {where}.parallel=pmap; under jit "
            "BatchNorm always sees the whole batch"
        )
    if not 0 < config.margin < math.inf:
        raise UserError(f"{where}.margin={config.margin}: must be positive and finite")
    if config.model.name == "ranker":
        for field in ("width", "hidden"):
            at_least(config.model, f"{where}.model", field, 1)


def _check_runs(config: ConfigDict) -> None:
    given = {"variants": split_list(config.variants), "seeds": config.seeds}
    for field, values in given.items():
        if not values or len(set(values)) != len(values):
            raise UserError(
                f"config.{field}={values}: needs one or more values, none of them twice"
            )
    for variant in given["variants"]:
        known = variants(config.qualities)
        if variant not in known:
            raise UserError(f"config.variants: {variant!r}: choose {list_of(known)}")
        quality = separate_quality(variant)
        shown = config.evaluation.qualities
        if config.evaluation.sets and quality and quality not in shown:
            raise UserError(
                f"config.variants: {variant!r} would be in no table, because "
                f"config.evaluation.qualities={shown} lacks {quality}; add it there"
            )
    trained: dict[str, str] = {}
    for variant in given["variants"]:
        other = trained.setdefault(_learned_by(config, variant), variant)
        if other != variant:
            raise UserError(
                f"config.variants: {other!r} and {variant!r} are the same training "
                "with the other fields of this config; leave one out"
            )
    whole(config, "config", "seeds")
    if min(config.seeds) < 0 or max(config.seeds) > MAX_SEED:
        raise UserError(f"config.seeds={config.seeds}: must be 0 to {MAX_SEED}")


def _learned_by(config: ConfigDict, variant: str) -> str:
    """Returns the fields that `ablate` can change, as far as they have an effect."""
    run = ConfigDict(config.to_dict())
    ablate(run, variant)
    fields = {"loss": run.loss.to_dict(), "model": run.model.to_dict()}
    if run.loss.beta:
        fields["feature_layers"] = run.feature_layers
    if run.degradation == "ladder":
        fields["qualities"] = run.qualities
    return str(fields)


def _check_deblock(config: ConfigDict) -> None:
    _check_training(config.ranker, "config.ranker")
    _check_ranker(config.ranker, "config.ranker")
    folders = (os.path.realpath(x.workdir) for x in (config, config.ranker))
    if len(set(folders)) == 1:
        raise UserError(
            f"config.ranker.workdir={config.ranker.workdir}: must not be "
            "config.workdir, which holds the deblocker's run"
        )
    check_qualities(config.evaluation, "config.evaluation")
    check_qualities(config, "config")
    if outside := set(config.qualities) - set(QUALITIES):
        raise UserError(
            f"config.qualities: the records hold {QUALITIES[0]} to {QUALITIES[-1]}, "
            f"not {list_of(map(str, sorted(outside)))}"
        )
    in_range(config, "config", "qualities_per_crop", 0, len(config.qualities))
    one_of(config, "config", "degradation", ("ladder", "blind", "colour"))
    whole(config.blind, "config.blind", "qualities")
    low, high = two_numbers(config.blind, "config.blind", "qualities")
    if not 1 <= low <= high <= 100:
        raise UserError(f"config.blind.qualities={low, high}: must be within 1 to 100")
    for field in ("double", "shifted"):
        in_range(config.blind, "config.blind", field, 0, 1)
    _check_colour(config)
    if config.degradation != "ladder" and config.qualities_per_crop != 1:
        raise UserError(
            f"config.qualities_per_crop={config.qualities_per_crop}: must be 1 with "
            f"degradation={config.degradation}, which makes one JPEG of each crop"
        )
    if config.model.name == "deblocker":
        _check_deblocker(config.model)


def _check_deblocker(model: ConfigDict) -> None:
    """Checks the attributes of `models.deblocker.Deblocker`."""
    at_least(model, "config.model", "width", 2)
    for field in ("scale", "key_pool"):
        at_least(model, "config.model", field, 1)
    for field in ("local_blocks", "residual_blocks", "outer_blocks"):
        at_least(model, "config.model", field, 0)
    at_least(model, "config.model", "embedding", 1)
    in_range(model, "config.model", "negative_slope", 0, 1, high_open=True)
    in_range(model, "config.model", "feature_scale", 0.01, 1000)
    one_of(model, "config.model", "conditioning", CONDITIONINGS)
    whole(model, "config.model", "deeper_widths")
    if min(model.deeper_widths, default=2) < 2:
        raise UserError(
            f"config.model.deeper_widths={model.deeper_widths}: widths are at least 2"
        )
    whole(model, "config.model", "dilations")
    dilations, narrowest = model.dilations, min([model.width, *model.deeper_widths])
    if not dilations or min(dilations) < 1 or len(dilations) > narrowest:
        raise UserError(
            f"config.model.dilations={dilations}: needs one or more dilations, each at "
            "least 1, and at most as many as the smallest width"
        )


def _check_colour(config) -> None:
    """Checks the fields of the colour degradation, and that the model fits it."""
    channels = 3 if config.degradation == "colour" else 1
    if config.model.channels != channels:
        raise UserError(
            f"config.model.channels={config.model.channels}: must be {channels} with "
            f"degradation={config.degradation}"
        )
    conditioning = config.model.get("conditioning", "none")
    if channels == 1 and conditioning != "none":
        raise UserError(
            f"config.model.conditioning={conditioning}: needs "
            "degradation=colour, because no other batches hold the compression"
        )
    where = "config.colour"
    whole(config.colour, where, "qualities")
    low, high = two_numbers(config.colour, where, "qualities")
    if not 1 <= low <= high <= 100:
        raise UserError(f"{where}.qualities={low, high}: must be within 1 to 100")
    for field in ("low", "gray", "other_tables", "double", "shifted", "unknown"):
        in_range(config.colour, where, field, 0, 1)
    shares = two_numbers(config.colour, where, "subsampled")
    if min(shares) < 0 or sum(shares) > 1:
        raise UserError(
            f"{where}.subsampled={shares}: must be two probabilities with a sum of at "
            "most 1"
        )
    if gray := config.data.gray_name:
        if config.degradation != "colour":
            raise UserError(f"config.data.gray_name={gray}: needs degradation=colour")
        if gray == config.data.name:
            raise UserError(f"config.data.gray_name={gray}: is config.data.name too")
        most = config.batch_size - 1
        in_range(config.data, "config.data", "gray_crops", 1, most)


def _check_loss(config: ConfigDict) -> None:
    # These import JAX, which the other checks don't need.
    from cqr_jax import losses
    from cqr_jax.models.ranker import FEATURES

    unknown = set(config.feature_layers) - set(FEATURES)
    if unknown and config.ranker.model.name == "ranker":
        raise UserError(
            f"config.feature_layers={config.feature_layers}: choose from "
            f"{list_of(FEATURES)}"
        )
    one_of(config.loss, "config.loss", "pixel", tuple(losses.PIXEL))
    weighed = {"quality": "alpha", "feature": "beta", config.loss.pixel: "pixel"}
    for field, value in config.loss.items():
        if field == "pixel":
            continue
        if field in weighed:
            raise UserError(
                f"config.loss.{field}: is not a field, because config.loss."
                f"{weighed[field]} sets the weight of this term"
            )
        if field not in ("alpha", "beta", *losses.PIXEL, *losses.RANKED):
            raise UserError(f"config.loss.{field}: no term of the loss has this name")
        if not 0 <= value < math.inf:
            raise UserError(
                f"config.loss.{field}={value}: must be finite and at least 0"
            )
    if losses.needs_ranker(config.loss):
        in_range(config, "config", "guided_steps", 0, config.steps)
