"""Metrics, from the device to files, without keeping the device waiting."""

import contextlib
import importlib
import json
import time
from typing import Any

import jax
import numpy as np

from jaxinf.run.experiment import Experiment
from jaxinf.run.ledger import Ledger, RunError

LINES = 300
"""How many lines of metrics a long run writes, about."""


def watched(metrics: dict[str, Any]) -> tuple[str, ...]:
    """The metrics that are shown, drawn and held to be finite."""
    return ("loss",) if "loss" in metrics else tuple(sorted(metrics))


class Metrics:
    """Takes every step's metrics from the device and writes those of every few steps.

    Metrics wait as device arrays until a later step has been dispatched; then all that wait are
    fetched in one transfer, so that the first step whose loss is not finite is known by name while
    only every ``every``-th step is waited for.
    """

    def __init__(self, ledger: Ledger, experiment: Experiment, seed: int):
        self._ledger, self._experiment, self._seed = ledger, experiment, seed
        self._every = -(-experiment.steps // LINES)
        self._start = time.monotonic()
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._finite: dict[str, Any] = {}
        self._events = _tensorboard(ledger)

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the metrics of a step just dispatched."""
        self._waiting.append((step, metrics))

    def update(self) -> str:
        """Fetch what is due, all but the newest step.

        Returns:
          The newest values of the watched metrics where some were fetched, for the bar.
        """
        if len(self._waiting) > 1 and self._waiting[-2][0] % self._every == 0:
            ready, self._waiting = self._waiting[:-1], self._waiting[-1:]
            self._fetch(ready)
            values = self._finite.items()
            return "  ".join(f"{name} {np.median(value):.4g}" for name, value in values)
        if len(self._waiting) > 2:
            # Two steps may be under way; more would pile up batches on the device.
            jax.block_until_ready(self._waiting[-3][1])
        return ""

    def flush(self) -> None:
        """Fetch and write what waits."""
        ready, self._waiting = self._waiting, []
        if ready:
            self._fetch(ready)

    def close(self) -> None:
        """Close the event files."""
        if self._events is not None:
            try:
                self._events.close()
            except OSError as error:
                self._ledger.fail("TensorBoard events", error)

    def _fetch(self, ready: list[tuple[int, dict[str, Any]]]) -> None:
        """Bring metrics to the host, check each step's and write the last."""
        fetched = jax.device_get([metrics for _, metrics in ready])
        for (step, _), metrics in zip(ready, fetched, strict=True):
            for name in watched(metrics):
                if not np.isfinite(metrics[name]).all():
                    self._waiting = []  # what came after it is of no use
                    self._write(step, metrics)
                    raise RunError(self._explain(step, name, metrics[name]))
            self._finite = {name: metrics[name] for name in watched(metrics)}
            if step % self._every == 0 or step == ready[-1][0]:
                self._write(step, metrics)

    def _write(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Write one line, and the same numbers as TensorBoard events."""
        self._ledger.history.append((step, metrics))
        line = {
            "step": step,
            "time": round(time.monotonic() - self._start, 3),
            "metrics": {name: _plain(value) for name, value in metrics.items()},
        }
        self._ledger.folder.append("metrics.jsonl", json.dumps(line))
        if self._events is None:
            return
        try:
            for name, value in metrics.items():
                for seed, number in enumerate(np.ravel(value)):
                    tag = name if np.ndim(value) == 0 else f"{name}/seed{self._seed + seed}"
                    self._events.add_scalar(tag, float(number), step)
        except OSError as error:
            self._ledger.fail("TensorBoard events", error)
            self._events = None

    def _explain(self, step: int, name: str, value: np.ndarray) -> str:
        """What is known about a loss that is not finite."""
        bad = int(np.flatnonzero(~np.isfinite(np.ravel(value)))[0])
        last = self._finite.get(name)
        before = "there was none before" if last is None else f"the last finite value is {last}"
        seed = self._seed + bad
        batch = self._experiment.batch(seed, step, np.arange(self._experiment.batch_size))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
        floats = [leaf for leaf in leaves if jax.dtypes.issubdtype(leaf.dtype, np.inexact)]
        largest = max((float(np.abs(leaf).max()) for leaf in floats), default=0)
        if all(np.isfinite(leaf).all() for leaf in floats):
            data = f"The batch of that step is finite (largest magnitude {largest:.4g})"
        else:
            data = "The batch of that step has NaN or infinity: mend the data"
        return (
            f"{name} is {value} at step {step} (seed {seed}); {before}. {data}. "
            "Likely mends: a smaller learning rate, optax.clip_by_global_norm, a floor under "
            "logarithms and divisions, jax.config.update('jax_debug_nans', True) to find the "
            "operation."
        )


def _plain(value: Any) -> Any:
    """A number or a list of numbers that JSON has; null for what is not finite."""
    if np.ndim(value):
        return [_plain(number) for number in value]
    return np.asarray(value).item() if np.isfinite(value) else None


def _tensorboard(ledger: Ledger) -> Any:
    """A writer of TensorBoard events, where a package for it is installed."""
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        with contextlib.suppress(ImportError):
            writer = importlib.import_module(module).SummaryWriter
            path = str(ledger.folder.path / "tensorboard")
            try:
                events = writer(path, max_queue=30_000)  # a full queue would block for ever
            except OSError as error:
                ledger.fail("TensorBoard events", error)
                return None
            ledger.remarks.append("TensorBoard events are in `tensorboard/`.")
            return events
    ledger.remarks.append("No TensorBoard events: tensorboardX is not installed.")
    return None
