"""The tasks that `python -m cqr_jax.main` runs, by the name in `config.task`.

A task's modules are imported when it runs, so that a mistake in the flags or in the
config is reported at once.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from cqr_jax import files
from cqr_jax.config import check_folders, list_of, split_list
from cqr_jax.errors import UserError
from cqr_jax.evaluation import checks as evaluation_checks
from cqr_jax.export.checks import check_aot
from cqr_jax.training import checks as training_checks


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the command line.

    Attributes:
      check: function of the config that raises a UserError if a field is wrong.
      run: function of the config that performs the task.
      trains: whether the task trains. Several processes can do this together.
    """

    check: Callable[[ConfigDict], None]
    run: Callable[[ConfigDict], Any]
    trains: bool = False


def train_ranker(config: ConfigDict) -> pathlib.Path:
    """Trains the ranker (stage 1); returns the path of its weights."""
    from cqr_jax.training.start import check_start

    check_start(config, "ranker")
    _make_missing_records(config)
    from cqr_jax.training import loop  # imports TensorFlow

    return loop.train_ranker(config)


def train_deblocker(config: ConfigDict) -> pathlib.Path:
    """Trains the deblocker, and the ranker first if it is needed and missing.

    The weights are evaluated on `config.evaluation.sets`, if there are any.

    Args:
      config: config of `configs/deblock.py`.

    Returns:
      The path of the deblocker's weights.
    """
    import jax

    from cqr_jax.evaluation import table2
    from cqr_jax.training.start import check_start

    check_start(config, "deblocker")
    _find_sets(config.evaluation)
    _make_missing_records(config)
    from cqr_jax.training import loop  # imports TensorFlow

    path = loop.train_deblocker(config)
    if config.evaluation.sets and jax.process_index() == 0:
        table2.table2(config.evaluation, config.workdir, [str(path)])
    return path


def train_variants(config: ConfigDict) -> None:
    """Trains the missing runs of an ablation study and evaluates all of them."""
    import jax

    from cqr_jax.evaluation import table1
    from cqr_jax.training.start import check_start

    check_start(config, "deblocker")
    _find_sets(config.evaluation)
    if config.evaluation.sets and jax.process_index() == 0:
        table1.read_measured(config.evaluation)  # reports mistakes before the training
    _make_missing_records(config)
    from cqr_jax.training import ablation  # imports TensorFlow

    ablation.train_variants(config)
    if config.evaluation.sets and jax.process_index() == 0:
        table1.table1(config.evaluation, config.workdir)


def _report_costs(config: ConfigDict) -> None:
    from cqr_jax.export import aot

    aot.report(config)


def _evaluate(config: ConfigDict) -> None:
    from cqr_jax.evaluation import table2

    given = (split_list(config[name]) for name in ("weights", "restored"))
    table2.table2(config, config.workdir, *given)
    _keep(config)


def _evaluate_ablation(config: ConfigDict) -> None:
    from cqr_jax.evaluation import table1

    table1.table1(config, config.workdir)
    _keep(config)


def _evaluate_ranker(config: ConfigDict) -> None:
    from cqr_jax.evaluation import ranker

    ranker.evaluate_ranker(config)
    _keep(config)


def _evaluate_blind(config: ConfigDict) -> None:
    from cqr_jax.evaluation import blind

    blind.evaluate_blind(config)
    _keep(config)


def _evaluate_blind_colour(config: ConfigDict) -> None:
    from cqr_jax.evaluation import blind

    blind.evaluate_blind_colour(config)
    _keep(config)


def _evaluate_colour(config: ConfigDict) -> None:
    from cqr_jax.evaluation import colour

    colour.evaluate_colour(config)
    _keep(config)


def _keep(config: ConfigDict) -> None:
    """Writes the config of an evaluation beside its results."""
    path = pathlib.Path(config.workdir) / "evaluation.json"
    files.write(path, config.to_json(indent=2) + "\n")


def _find_sets(evaluation: ConfigDict) -> None:
    """Finds the sets of the evaluation after a training, and downloads missing ones.

    Raises:
      UserError: if a set can't be found or downloaded.
    """
    import jax

    from cqr_jax.evaluation import table2

    if evaluation.sets and jax.process_index() == 0:
        table2.find_images(split_list(evaluation.sets), evaluation.set_dir)


def _make_missing_records(config: ConfigDict) -> None:
    """Makes the records that a training config needs, if they are missing.

    Raises:
      UserError: the records are missing and can't be made, or this is one of several
        processes.
    """
    import jax
    import tensorflow as tf

    from cqr_jax.data import records
    from data_prep.build import build

    with contextlib.suppress(RuntimeError):  # it is in use already, as in a notebook
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads data
    if _trains_ranker_first(config):
        _make_missing_records(config.ranker)
    name, data_dir = config.data.name, config.data.data_dir
    if config.get("degradation") == "colour" or name not in ("div2k", "embedded"):
        return
    if records.exists(data_dir, name):
        return
    if jax.process_count() > 1:
        raise UserError(
            f"{data_dir}: no records of '{name}'; make them, once for all processes, "
            f"with: python -m data_prep.build --source={name} --data_dir={data_dir}"
        )
    build(name, data_dir)


def check(config: ConfigDict) -> None:
    """Checks the fields of a config of any task.

    Raises:
      UserError: if a field is out of its range (names the first one and the range), or
        if the working directory can't be written to.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r}: choose {list_of(TASKS)}")
    check_folders(config, "config")
    for group in ("ranker", "evaluation"):
        check_folders(config.get(group, {}), f"config.{group}")
    TASKS[config.task].check(config)
    workdirs = {"config.workdir": config.workdir}
    if _trains_ranker_first(config):
        workdirs["config.ranker.workdir"] = config.ranker.workdir
    for field, folder in workdirs.items():
        if why := files.obstacle(pathlib.Path(folder)):
            raise UserError(f"{field}={folder}: can't be written to: {why}")


def _trains_ranker_first(config: ConfigDict) -> bool:
    """Returns whether a task trains a ranker before it trains deblockers."""
    from cqr_jax import losses

    if "loss" not in config or not TASKS[config.task].trains:
        return False
    return losses.needs_ranker(config.loss) and not config.ranker_weights


def _check_nothing(config: ConfigDict) -> None:
    del config


TASKS = {
    "ranker": Task(training_checks.check_ranker, train_ranker, trains=True),
    "deblock": Task(training_checks.check_deblock, train_deblocker, trains=True),
    "ablation": Task(training_checks.check_ablation, train_variants, trains=True),
    "aot": Task(check_aot, _report_costs),
    "eval": Task(evaluation_checks.check_tables, _evaluate),
    "eval_ablation": Task(evaluation_checks.check_tables, _evaluate_ablation),
    "eval_ranker": Task(evaluation_checks.check_ranker, _evaluate_ranker),
    "eval_blind": Task(_check_nothing, _evaluate_blind),
    "eval_colour": Task(evaluation_checks.check_colour, _evaluate_colour),
    "eval_blind_colour": Task(_check_nothing, _evaluate_blind_colour),
}
