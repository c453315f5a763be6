"""What the runner runs: records of pure functions."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxinf.core import Key, PyTree
from jaxinf.run.mesh import Rule


def _nothing(arrays: dict[str, Any]) -> str:
    """No notes."""
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training run and its evaluations, as functions that can be compiled, vmapped and resumed.

    The state after step i is ``step(fold_in(key, i), state, batch(seed, i, index))``; nothing else
    is kept, so the same record runs under any seed and any number of them at once.

    Attributes:
      init: ``key -> state``, any pytree of arrays.
      step: ``(key, state, batch) -> (state, metrics)``, pure. The state keeps its structure, shapes
        and dtypes; ``metrics`` is a flat dict of arrays of shape (). The metric ``loss`` is shown,
        drawn and held to be finite; where there is none, all metrics are.
      batch: ``(seed, step, index) -> batch``, a pytree of NumPy arrays whose leading axis is
        ``len(index)``: the rows ``index`` of the global batch of that step. ``()`` where the step
        draws its own data.
      evaluate: named evaluations ``(key, state) -> pytree of arrays``, each pure.
      draw: ``{name: arrays} -> {name: matplotlib Figure}``, from the evaluations' NumPy arrays.
      steps: how many steps to train, at least 1.
      batch_size: rows of the global batch, at least 1.
      notes: ``{name: arrays} -> markdown`` that is put into the report, a table say.
      rules: where leaves of the state lie on a mesh of devices; what no rule finds is divided by
        the ``fsdp`` axis, see ``jaxinf.run.mesh.shardings``.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree, PyTree], tuple[PyTree, dict[str, Any]]]
    batch: Callable[[int, int, Any], PyTree]
    evaluate: Mapping[str, Callable[[Key, PyTree], PyTree]]
    draw: Callable[[dict[str, Any]], Mapping[str, Any]]
    steps: int
    batch_size: int
    notes: Callable[[dict[str, Any]], str] = _nothing
    rules: tuple[Rule, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A computation without training, for tables and comparisons.

    Attributes:
      run: ``key -> {name: pytree of arrays}``; not compiled by the runner, and free to take long
        and to show :func:`jaxinf.run.progress`.
      draw: ``{name: arrays} -> {name: matplotlib Figure}``.
      notes: ``{name: arrays} -> markdown`` that is put into the report.
    """

    run: Callable[[Key], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Mapping[str, Any]]
    notes: Callable[[dict[str, Any]], str] = _nothing


def check(experiment: Experiment | Study) -> None:
    """Raise unless every field of an experiment or a study is what the runner needs.

    Args:
      experiment: the record.

    Raises:
      TypeError: for a field that should be a function or a mapping of functions and is not.
      ValueError: for a count below 1 or an evaluation's name that cannot name a file.
    """
    functions = ["init", "step", "batch"] if isinstance(experiment, Experiment) else ["run"]
    kind = type(experiment).__name__
    for name in [*functions, "draw", "notes"]:
        value = getattr(experiment, name)
        if not callable(value):
            raise TypeError(f"{kind}.{name} must be a function, got {value!r}. Pass the function.")
    if not isinstance(experiment, Experiment):
        return
    for name in ("steps", "batch_size"):
        value = getattr(experiment, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{kind}.{name} must be a whole number >= 1, got {value!r}. Pass 1.")
    if not all(isinstance(rule, Rule) for rule in experiment.rules):
        raise TypeError(
            f"Experiment.rules must be a tuple of jaxinf.run.mesh.Rule, got {experiment.rules!r}. "
            'Write rules=(Rule("qkv/kernel", ("fsdp", "tensor")),).'
        )
    if not isinstance(experiment.evaluate, Mapping):
        raise TypeError(
            f"{kind}.evaluate must map names to functions, got {experiment.evaluate!r}. "
            'Write evaluate={"samples": samples}.'
        )
    rules = experiment.rules
    if not (isinstance(rules, tuple) and all(isinstance(rule, Rule) for rule in rules)):
        raise TypeError(
            f"{kind}.rules must be a tuple of rules, got {rules!r}. "
            'Write rules=(Rule("qkv/kernel", ("fsdp", "tensor")),).'
        )
    for name, function in experiment.evaluate.items():
        if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
            raise ValueError(
                f"an evaluation's name must be letters, digits, _ and -, got {name!r}. "
                "It names rows and files; rename it."
            )
        if not callable(function):
            raise TypeError(
                f"{kind}.evaluate[{name!r}] must be a function, got {function!r}. "
                "Pass the function, not its result."
            )
