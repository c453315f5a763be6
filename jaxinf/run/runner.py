"""Run an experiment or a study, and write what came of it whatever happens on the way."""

import io
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from jaxinf.run.experiment import Experiment, Study, check
from jaxinf.run.folder import fresh
from jaxinf.run.ledger import Ledger, RunError, summary
from jaxinf.run.progress import shown
from jaxinf.run.report import config_json, curve, render
from jaxinf.run.training import evaluations, make_key, streams, train


def run(
    experiment: Experiment | Study,
    *,
    name: str,
    directory: Path | str,
    config: Any,
    seed: int = 0,
    seeds: int = 1,
    profile: bool = False,
    progress: bool = True,
    document: str = "",
    command: str = "",
) -> Path:
    """Run an experiment or a study and write ``directory/name/<UTC time>/``.

    The folder holds ``config.json``, ``metrics.jsonl``, ``arrays.npz`` (the evaluations' results),
    ``state/`` (an orbax checkpoint of ``{"state": state}``, the final training state),
    ``figures/``, ``report.md`` and, where tensorboardX is installed, ``tensorboard/``. The last
    line printed is the report's path.
    Whatever fails on the way loses nothing of the rest.

    Args:
      experiment: what to run.
      name: the folder's name under ``directory``.
      directory: where runs lie.
      config: the experiment's configuration, a dataclass or a mapping, for the report.
      seed: of the key and of the batches.
      seeds: how many experiments to run at once by ``vmap``, with seeds ``seed, seed + 1, ...``;
        every result then has a leading axis of this length, and the first seed's are drawn.
      profile: whether to trace steps 10 to 20 (fewer where there are fewer) into ``profile/``.
      progress: whether to show progress on stderr.
      document: the experiment's docstring; its first line is the report's title.
      command: the command line that led here, for the report.

    Returns:
      The path of ``report.md``.

    Raises:
      TypeError: for a field of the experiment that is not what the runner needs.
      ValueError: for counts below 1, and for a batch of the wrong length or with NaN in it.
      RunError: after all else was written, if the loss was not finite, an evaluation or a figure
        failed, or the folder could not be written.
    """
    check(experiment)
    _check_options(experiment, seeds, profile)
    settings = {"name": name, "command": command, "seed": seed, "seeds": seeds}
    described = config_json(config, settings)
    ledger = Ledger(folder=fresh(Path(directory), name), seeds=seeds)
    ledger.folder.write("config.json", described)
    switched = shown.set(progress)
    try:
        stopped = _work(ledger, experiment, seed, profile)
    finally:
        shown.reset(switched)
    path = _write_report(ledger, name=name, document=document, config=config, settings=settings)
    if stopped is not None:
        raise stopped
    if ledger.failures:
        raise RunError("the run is incomplete: " + "; ".join(ledger.failures))
    return path


def _check_options(experiment: Experiment | Study, seeds: int, profile: bool) -> None:
    """Raise for a count below 1, and where a study is asked for what only an experiment has."""
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}. Pass seeds=1 for a single run.")
    if isinstance(experiment, Study) and (seeds > 1 or profile):
        raise ValueError(
            "seeds and profile are for an Experiment, whose functions are compiled; a Study draws "
            "its repeats from its one key. Leave them out."
        )


def _work(
    ledger: Ledger, experiment: Experiment | Study, seed: int, profile: bool
) -> BaseException | None:
    """Run it, and return what stopped it."""
    try:
        if isinstance(experiment, Study):
            _study(ledger, experiment, seed)
        else:
            _experiment(ledger, experiment, seed, profile)
    except KeyboardInterrupt as error:
        ledger.status = "interrupted"
        return error
    except Exception as error:
        ledger.status = "stopped"
        ledger.failures.append(summary(error))
        return error
    return None


def _experiment(ledger: Ledger, experiment: Experiment, seed: int, profile: bool) -> None:
    """Train, save the state, evaluate, draw."""
    keys = streams(make_key(seed, ledger.seeds))
    try:
        train(ledger, experiment, keys, seed, profile)
    finally:
        _save_state(ledger)
    for name, result in evaluations(experiment, ledger, keys[2]):
        ledger.add_results({name: result})
    _present(ledger, experiment)


def _study(ledger: Ledger, study: Study, seed: int) -> None:
    """Compute, then draw."""
    start = time.monotonic()
    try:
        results = study.run(make_key(seed, 1))
        if not isinstance(results, dict):
            raise TypeError(
                f"Study.run must return a dict of pytrees of arrays, got {type(results).__name__}. "
                'Return {"results": arrays}.'
            )
        ledger.add_results(results)
    finally:
        ledger.timings["run"] = time.monotonic() - start
    _present(ledger, study)


def _save_state(ledger: Ledger) -> None:
    """Save the training state, in a temporary folder where the run's own cannot take it.

    A step that was broken off may have consumed it; then there is nothing to save.
    """
    leaves = jax.tree.leaves(ledger.state)
    if not leaves:
        return
    if any(leaf.is_deleted() for leaf in leaves):
        ledger.failures.append("state: not saved, a step was broken off while it held the state")
        return
    start = time.monotonic()
    try:
        _save(ledger, ledger.folder.path / "state")
    except Exception as error:
        ledger.fail("state", error)
        _save(ledger, Path(tempfile.mkdtemp(prefix="jaxinf-")) / "state")
    ledger.timings["save"] = time.monotonic() - start


def _save(ledger: Ledger, path: Path) -> None:
    """Write a checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        # In a dict, because the checkpointer takes no bare array.
        checkpointer.save(path, {"state": ledger.state})
    ledger.remarks.append(
        f"`{path}` is the training state after {ledger.step} steps, an orbax checkpoint of "
        '`{"state": state}`.'
    )


def _present(ledger: Ledger, experiment: Experiment | Study) -> None:
    """Figures and notes from the results; what one of them raises is recorded."""
    start = time.monotonic()
    arrays = ledger.first_seed()
    try:
        for name, figure in experiment.draw(arrays).items():
            _save_figure(ledger, name, figure)
    except Exception as error:
        ledger.fail("draw", error)
    try:
        ledger.notes = experiment.notes(arrays)
    except Exception as error:
        ledger.fail("notes", error)
    ledger.timings["draw"] = time.monotonic() - start


def _save_figure(ledger: Ledger, name: str, figure: Any) -> None:
    """Write one figure as PNG."""
    try:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a figure's name must be letters, digits, _ and -, got {name!r}.")
        if name in ledger.figures:
            raise ValueError("the runner draws a figure of that name; rename yours.")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    except Exception as error:
        ledger.fail(f"figure {name}", error)
    else:
        ledger.folder.write(f"figures/{name}.png", buffer.getvalue())
        ledger.figures[name] = f"figures/{name}.png"
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close(figure)


def _write_report(ledger: Ledger, **context: Any) -> Path:
    """Write the training curve and the report, print the report's path as the last line."""
    if ledger.history and ledger.history[0][1]:
        _save_figure(ledger, "training-curve", curve(ledger))
    origin = ledger.folder.path
    if ledger.folder.settle():
        ledger.failures.append(
            f"{origin} could not be written: all but state and profile moved here"
        )
    if ledger.status == "running":
        ledger.status = "finished with failures" if ledger.failures else "finished"
    ledger.folder.write("report.md", render(ledger, **context).encode())
    if ledger.folder.settle():
        ledger.failures.append(f"the report could not be written to {origin}")
    path = ledger.folder.path / "report.md"
    print(path, flush=True)
    return path
