"""The report of a run, as Markdown."""

import dataclasses
import json
import platform
import re
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np

import jaxinf
from jaxinf.run.ledger import Ledger, flatten
from jaxinf.run.metrics import watched


def environment() -> dict[str, Any]:
    """Versions, platform and devices, as they stand in ``config.json`` and in the report."""
    devices = jax.devices()
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "jaxinf": jaxinf.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
    }


def fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration, a dataclass or a mapping."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    if isinstance(config, Mapping):
        return dict(config)
    raise TypeError(
        f"config must be a dataclass or a mapping, got {type(config).__name__}. "
        "Pass Config(), or {} where there is none."
    )


def config_json(config: Any, settings: dict[str, Any]) -> bytes:
    """``config.json``: the configuration, the runner's settings and the environment."""
    content = {"config": fields(config), **settings, **environment()}
    return (json.dumps(content, indent=2, default=str) + "\n").encode()


def curve(ledger: Ledger) -> Any:
    """A figure of the watched metrics against the step, a line a metric and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [step for step, _ in ledger.history]
    for name in watched(ledger.history[0][1]):
        values = np.array([metrics[name] for _, metrics in ledger.history], dtype=float)
        seeds = values.reshape(len(steps), -1).T
        for seed, line in enumerate(seeds):
            label = f"{name}, seed {seed}" if len(seeds) > 1 else name
            axes.plot(steps, line, label=label, lw=1, marker="." if len(steps) == 1 else None)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0:
            axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.legend()
    return figure


def render(
    ledger: Ledger, *, name: str, document: str, config: Any, settings: dict[str, Any]
) -> str:
    """The report, from all that a run has come to.

    Args:
      ledger: the run.
      name: the experiment's name, the title where there is no docstring.
      document: the experiment's docstring.
      config: its configuration.
      settings: the runner's: command, seed, seeds.

    Returns:
      Markdown. Figures are linked by paths relative to the report.
    """
    document = document.strip()
    title, _, rest = document.partition("\n")
    # Two spaces keep a docstring's line breaks, so that "Paper:", "Command:" stand on their own.
    rest = re.sub(r"(?<=\S)\n(?=\S)", "  \n", rest.strip())
    parts = [f"# {title.strip() or name}", rest, f"Status: **{ledger.status}**"]
    if settings["command"]:
        parts.append(f"```\n{settings['command']}\n```")
    if ledger.failures:
        parts += ["## Failures", "\n".join(f"- {_inline(line)}" for line in ledger.failures)]
    parts += ["## Results", _results(ledger, settings["seed"])]
    parts += [f"## {figure}\n\n![{figure}]({path})" for figure, path in ledger.figures.items()]
    if ledger.notes:
        parts += ["## Notes", ledger.notes.strip()]
    if ledger.history:
        parts += ["## Training", _training(ledger)]
    seconds = [[part, f"{time:.3g}"] for part, time in ledger.timings.items()]
    values = fields(config) | {key: settings[key] for key in ("seed", "seeds")}
    parts += [
        "## Timings",
        _table(["part", "seconds"], seconds),
        "## Configuration",
        _table(["field", "value"], [[key, value] for key, value in values.items()]),
        "## Environment",
        _table(["what", "value"], [[key, value] for key, value in environment().items()]),
        "\n".join(f"- {remark}" for remark in ledger.remarks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(ledger: Ledger, seed: int) -> str:
    """A row for every number among the results, with a column a seed and their median."""
    rank = 0 if ledger.seeds == 1 else 1
    rows = []
    for name, array in flatten(ledger.results):
        if array.ndim == rank:
            values = [_number(value) for value in np.atleast_1d(array)]
            median = [_number(np.median(array))] if rank and array.dtype.kind in "biuf" else []
            rows.append([name, *values, *(median if rank else [])])
    if not rows:
        return "No scalar results."
    if not rank:
        return _table(["result", "value"], rows)
    columns = [f"seed {seed + offset}" for offset in range(ledger.seeds)]
    return _table(["result", *columns, "median"], rows)


def _training(ledger: Ledger) -> str:
    """The first and the last metrics that were written."""
    (first, before), (last, after) = ledger.history[0], ledger.history[-1]
    rows = [[name, _numbers(before[name]), _numbers(after[name])] for name in after]
    return _table(["metric", f"step {first}", f"step {last}"], rows)


def _numbers(value: Any) -> str:
    """A number, or those of several seeds."""
    return ", ".join(_number(number) for number in np.ravel(value))


def _number(value: Any) -> str:
    """Six digits of a float, all of anything else."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(cell: Any) -> str:
    """Text that breaks neither a table nor a list."""
    return str(cell).replace("|", "\\|").replace("\n", " ")
