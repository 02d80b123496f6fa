"""Reports of a training run: the log, TensorBoard, speed and time left."""

import logging
import pathlib
import time

import jax
import tensorflow as tf

_log = logging.getLogger(__name__)


class Reporter:
    """Writes metrics to the log and to WORKDIR/logs.

    Only the first process writes to the workdir.
    """

    def __init__(self, workdir: str, name: str, steps: int, images_per_step: int):
        """Opens the log of a run.

        Args:
          workdir: folder of the run.
          name: name of the stage in the log.
          steps: number of training steps of the whole run.
          images_per_step: compressed images that one training step sees.
        """
        self._name, self._steps = name, steps
        self.clock = Clock(steps, images_per_step)
        if jax.process_index():
            self._writer = tf.summary.create_noop_writer()
        else:
            logs = pathlib.Path(workdir) / "logs"
            self._writer = tf.summary.create_file_writer(str(logs))

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def training(self, step: int, metrics: dict[str, float]) -> None:
        """Reports the metrics of a training step, the speed and the time left."""
        speed, left = self.clock.read(step)
        self.clock.mark(step)
        known = {} if speed is None else {"images_per_second": speed}
        self._write(step, "train", metrics | known)
        _log.info(
            "%s %d/%d  %s  %s images/s  %s left",
            self._name,
            step,
            self._steps,
            _format(metrics),
            "?" if speed is None else f"{speed:.0f}",
            left,
        )

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Reports the metrics of a validation."""
        self._write(step, "validation", metrics)
        _log.info("%s validation  %s", self._name, _format(metrics))

    def _write(self, step: int, prefix: str, metrics: dict[str, float]) -> None:
        with self._writer.as_default(step=step):
            for name, value in metrics.items():
                tf.summary.scalar(f"{prefix}/{name}", value)


class Clock:
    """Measures the speed in images per second, and estimates the time left.

    Call `restart` after each step that compiles, so that compilation is not counted.
    """

    def __init__(self, steps: int, images_per_step: int):
        self._steps, self._images = steps, images_per_step
        self._begin = self._last = (-1, 0.0)

    def restart(self, step: int) -> None:
        """Starts the clock after `step`. The time left is estimated from here on."""
        self._begin = self._last = (step, time.perf_counter())

    def mark(self, step: int) -> None:
        """Starts a new interval after `step`, for example after a validation."""
        self._last = (step, time.perf_counter())

    def read(self, step: int) -> tuple[float | None, str]:
        """Returns the speed of the interval up to `step`, and the time left.

        The speed is None if the interval is empty. The time left includes validations.
        The speed does not.
        """
        now = time.perf_counter()
        steps, seconds = step - self._last[0], now - self._last[1]
        speed = self._images * steps / seconds if steps else None
        done, elapsed = step - self._begin[0], now - self._begin[1]
        if not done:
            return speed, "?"
        left = round(elapsed / done * (self._steps - step))
        return speed, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


def _format(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
