"""Run an experiment or a study, and write what came of it whatever happens on the way."""

import gc
import io
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxinf.run.checkpoints import Checkpoints, Terminated, describe
from jaxinf.run.distributed import agreed, first
from jaxinf.run.experiment import Experiment, Study, check
from jaxinf.run.folder import Folder, fresh, latest, taken
from jaxinf.run.ledger import Ledger, summary
from jaxinf.run.mesh import check_batch, make_mesh
from jaxinf.run.progress import shown
from jaxinf.run.report import config_json, curve, render
from jaxinf.run.setting import Setting
from jaxinf.run.setting import check as check_setting
from jaxinf.run.training import Place, evaluations, make_key, start_state, streams, train


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
    setting: Setting | None = None,
) -> Path:
    """Run an experiment or a study and write ``directory/name/<UTC time>/``.

    It holds ``config.json``, ``metrics.jsonl``, ``arrays.npz`` (the evaluations' results),
    ``state/`` (an orbax checkpoint of ``{"state": state}``), ``checkpoints/`` to resume from,
    ``figures/``, ``tensorboard/`` and ``report.md``, whose path is the last line printed. What
    fails loses nothing else. Each process of a job calls it; the first one writes.

    Args:
      experiment: what to run.
      name: the folder's name under ``directory``.
      directory: where runs lie.
      config: the experiment's configuration, a dataclass or a mapping, for the report.
      seed: of the key and of the batches.
      seeds: how many experiments to run at once by ``vmap``, with seeds ``seed, seed + 1, ...``;
        every result then has a leading axis of this length, and the first seed's are drawn.
      profile: whether to trace steps 10 to 20, or fewer, into ``profile/``.
      progress: whether to show progress on stderr.
      document: the experiment's docstring; its first line is the report's title.
      command: the command line that led here, for the report.
      setting: the mesh, the folder, how it is saved and resumed.

    Returns:
      The path of ``report.md``.

    Raises:
      TypeError: for a field of the experiment that is not what the runner needs.
      ValueError: for a setting, a mesh, a rule or a batch that does not fit, or a folder in use.
      RunError: after all else was written, if anything failed or the process was asked to end.
    """
    _check_options(experiment, seeds, profile)
    job = _job(experiment, setting or Setting(), name, seed, seeds)
    said = {"name": name, "command": command, "seed": seed, "seeds": seeds}
    described = config_json(config, said)
    ledger = Ledger(_open(Path(directory), name, setting or Setting()), seeds)
    ledger.folder.write("config.json", described)
    switched = shown.set(progress and first())
    try:
        stopped = _work(ledger, experiment, seed, job, profile)
    finally:
        shown.reset(switched)
        ledger.folder.release()
    path = _write_report(ledger, name=name, document=document, config=config, settings=said)
    if stopped is not None:
        raise stopped
    ledger.raise_failures()
    return path


def _check_options(experiment: Experiment | Study, seeds: int, profile: bool) -> None:
    """Raise for a count below 1, and where a study is asked for what only an experiment has."""
    check(experiment)
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}. Pass seeds=1 for a single run.")
    if isinstance(experiment, Study) and (seeds > 1 or profile):
        raise ValueError(
            "seeds and profile are for an Experiment, whose functions are compiled; a Study draws "
            "its repeats from its one key. Leave them out."
        )


class _Job(NamedTuple):
    """What the training of a run needs besides its experiment."""

    place: Place
    form: Any
    """The state's shapes, dtypes and shardings."""
    setting: Setting
    described: dict[str, Any]
    """What a checkpoint must agree with."""


def _job(
    experiment: Experiment | Study, setting: Setting, name: str, seed: int, seeds: int
) -> _Job | None:
    """Place an experiment on its mesh."""
    check_setting(setting)
    place = Place(make_mesh(setting.mesh), setting.rules)
    if isinstance(experiment, Study):
        return None
    check_batch(experiment.batch_size, place.mesh)
    form = place.state(experiment, seeds)
    return _Job(place, form, setting, describe(name, seed, seeds, form))


def _open(directory: Path, name: str, setting: Setting) -> Folder:
    """Return the run's folder, the same in every process; only the first one writes."""
    if not first():
        return Folder(Path(agreed("")), writes=False)
    try:
        if setting.folder is not None:
            found = taken(Path(setting.folder), setting.resume)
        elif setting.resume and (newest := latest(directory, name)):
            found = taken(newest, setting.resume)
        else:
            found = fresh(directory, name)
    except ValueError:
        agreed("")  # so that the others do not wait
        raise
    agreed(str(found.path))
    return found


def _work(
    ledger: Ledger, experiment: Experiment | Study, seed: int, job: _Job | None, profile: bool
) -> BaseException | None:
    """Run it, and return what stopped it."""
    try:
        if isinstance(experiment, Experiment) and job is not None:
            _experiment(ledger, experiment, seed, job, profile)
        else:
            _study(ledger, experiment, seed)
    except KeyboardInterrupt as error:
        ledger.status = "interrupted"
        return error
    except Exception as error:
        ledger.status = "ended by SIGTERM" if isinstance(error, Terminated) else "stopped"
        ledger.failures.append(summary(error))
        return error
    return None


def _experiment(
    ledger: Ledger, experiment: Experiment, seed: int, job: _Job, profile: bool
) -> None:
    """Train, save the state, evaluate, draw."""
    keys = streams(seed, ledger.seeds, job.place.mesh)
    with Checkpoints(ledger, job.setting, job.described, experiment.steps) as checkpoints:
        try:
            checkpoints.restore(job.form)
            if ledger.state is None:
                start_state(ledger, experiment, keys[0], job.form)
            train(ledger, experiment, keys[1], seed, job.place, checkpoints, profile)
        finally:
            _save_state(ledger, over=job.setting.resume)
    for name, result in evaluations(experiment, ledger, keys[2], job.place.mesh):
        ledger.add_results({name: result})
    _present(ledger, experiment)


def _study(ledger: Ledger, study: Any, seed: int) -> None:
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


def _save_state(ledger: Ledger, over: bool) -> None:
    """Save the training state, in a temporary folder where the run's own cannot take it.

    A run that is resumed saves over the state that it left before.

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
        _save(ledger, ledger.folder.path / "state", over)
    except Exception as error:
        ledger.fail("state", error)
        _save(ledger, Path(tempfile.mkdtemp(prefix="jaxinf-")) / "state")
    ledger.timings["save"] = time.monotonic() - start


def _save(ledger: Ledger, path: Path, over: bool = False) -> None:
    """Write a checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        # In a dict, because the checkpointer takes no bare array.
        checkpointer.save(path, {"state": ledger.state}, force=over)
    ledger.remarks.append(
        f"`{path}` is the training state after {ledger.step} steps, an orbax checkpoint of "
        '`{"state": state}`.'
    )


def _present(ledger: Ledger, experiment: Experiment | Study) -> None:
    """Figures and notes from the results; what one of them raises is recorded."""
    if not ledger.folder.writes:
        return
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
    if not ledger.folder.writes:
        return ledger.folder.path / "report.md"
    if ledger.history and ledger.history[0][1]:
        _save_figure(ledger, "training-curve", curve(ledger))
    gc.collect()  # drawing leaves cycles that hold every frame above, and with them the state
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
