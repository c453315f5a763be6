"""The training loop and the evaluations, compiled once for one seed or for several."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Key as Keys

from jaxinf.run.experiment import Experiment
from jaxinf.run.ledger import Ledger, flatten
from jaxinf.run.metrics import Metrics
from jaxinf.run.progress import bar


def make_key(seed: int, seeds: int) -> Keys[Array, "..."]:
    """The key of a seed, or the stacked keys of ``seed .. seed + seeds - 1``."""
    if seeds == 1:
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))


def streams(key: Keys[Array, "..."]) -> Keys[Array, "3 ..."]:
    """The keys for ``init``, for the steps and for the evaluations, of every seed."""
    return jnp.vectorize(lambda one: jax.random.split(one, 3), signature="()->(n)")(key).T


def train(
    ledger: Ledger, experiment: Experiment, keys: Keys[Array, "3 ..."], seed: int, profile: bool
) -> None:
    """Train, leaving the state in the ledger after every step.

    Args:
      ledger: where state, metrics and timings go.
      experiment: what is trained.
      keys: from :func:`streams`.
      seed: the first seed.
      profile: whether steps 10 to 20 are traced.
    """
    start = time.monotonic()
    init = jax.vmap(experiment.init) if ledger.seeds > 1 else experiment.init
    ledger.state = jax.block_until_ready(jax.jit(init)(keys[0]))
    ledger.timings["init"] = time.monotonic() - start

    batch = _feed(experiment, seed, ledger.seeds, 0)
    start = time.monotonic()
    step = compile_step(experiment, ledger.seeds, keys[1], ledger.state, batch)
    ledger.timings["compile"] = time.monotonic() - start

    start = time.monotonic()
    metrics = Metrics(ledger, experiment, seed)
    tracer = _tracer(ledger, experiment.steps) if profile else lambda index: None
    try:
        with bar(experiment.steps, "train") as advance:
            for index in range(experiment.steps):
                tracer(index)
                ledger.state, newest = step(keys[1], np.uint32(index), ledger.state, batch)
                ledger.step = index + 1
                metrics.add(index, newest)
                if index + 1 < experiment.steps:
                    batch = _feed(experiment, seed, ledger.seeds, index + 1)
                advance(metrics.update())
            jax.block_until_ready(ledger.state)
        metrics.flush()
    except (Exception, KeyboardInterrupt):
        with contextlib.suppress(Exception):  # the error under way is the one to report
            metrics.flush()
        raise
    finally:
        tracer(experiment.steps)
        metrics.close()
        ledger.timings["train"] = time.monotonic() - start


def compile_step(
    experiment: Experiment, seeds: int, key: Keys[Array, "..."], state: Any, batch: Any
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Compile ``(key, index, state, batch) -> (state, metrics)``; the state is donated."""
    return trace_step(experiment, seeds, key, state, batch).lower().compile()


def trace_step(
    experiment: Experiment, seeds: int, key: Any, state: Any, batch: Any, places: Any = None
) -> Any:
    """Trace the step that the runner compiles, on arrays or on their shapes.

    Args:
      experiment: whose step.
      seeds: how many at once.
      key: of the steps.
      state: the training state.
      batch: a step's batch.
      places: the shardings of the new state and of the metrics; what the compiler likes by default.

    Raises:
      TypeError: if a step changes the state's structure, shapes or dtypes.
      ValueError: if its metrics are no flat dict of arrays of shape ().
    """

    def step(key: Any, index: Any, state: Any, batch: Any) -> Any:
        return experiment.step(jax.random.fold_in(key, index), state, batch)

    many = jax.vmap(step, in_axes=(0, None, 0, 0)) if seeds > 1 else step
    index = jax.ShapeDtypeStruct((), np.uint32)
    traced = jax.jit(many, donate_argnums=2, out_shardings=places).trace(key, index, state, batch)
    out = traced.out_info
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"step must return (state, metrics), got {type(out).__name__}.")
    _same_form(state, out[0])
    shape = () if seeds == 1 else (seeds,)
    if not isinstance(out[1], dict):
        raise TypeError(f'metrics must be a dict, got {out[1]!r}. Return {{"loss": loss}}.')
    for name, value in out[1].items():
        if getattr(value, "shape", None) != shape:
            raise ValueError(
                f"metrics must be a flat dict of arrays of shape (), got {name!r}: {value}. "
                "Take its mean, or leave it to an evaluation."
            )
    return traced


def evaluations(
    experiment: Experiment, ledger: Ledger, key: Keys[Array, "..."]
) -> Iterator[tuple[str, Any]]:
    """Run the evaluations one by one; what one of them raises is recorded in the ledger."""
    with bar(len(experiment.evaluate), "evaluate") as advance:
        for name, function in experiment.evaluate.items():
            start = time.monotonic()
            try:
                many = jax.vmap(function) if ledger.seeds > 1 else function
                result = jax.block_until_ready(jax.jit(many)(key, ledger.state))
            except Exception as error:
                ledger.fail(f"evaluation {name}", error)
            else:
                yield name, result
            ledger.timings[f"evaluate {name}"] = time.monotonic() - start
            advance(name)


def _feed(experiment: Experiment, seed: int, seeds: int, step: int) -> Any:
    """The batches of a step for every seed, checked and on their way to the device."""
    index = np.arange(experiment.batch_size)
    batches = [experiment.batch(seed + offset, step, index) for offset in range(seeds)]
    for offset, batch in enumerate(batches):
        for name, leaf in flatten(batch):
            _check_leaf(np.asarray(leaf), name or "array", step, seed + offset, len(index))
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches) if seeds > 1 else batches[0]
    return jax.device_put(stacked)


def _check_leaf(leaf: np.ndarray, name: str, step: int, seed: int, rows: int) -> None:
    """Raise for a batch's leaf of the wrong length or with numbers that are not finite."""
    where = f"batch leaf {name!r} of step {step} (seed {seed})"
    if leaf.shape[:1] != (rows,):
        raise ValueError(
            f"{where} has shape {leaf.shape}, but {rows} rows were asked for. "
            "Return data[index]-like rows: the leading axis is len(index)."
        )
    if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
        bad = np.argwhere(~np.isfinite(leaf))
        raise ValueError(
            f"{where} has {len(bad)} entries that are NaN or infinite, the first at "
            f"{tuple(bad[0].tolist())}. Drop or impute them in batch(seed, step, index), or "
            "replace them there by a number and return a mask."
        )


def _same_form(before: Any, after: Any) -> None:
    """Raise unless a state keeps its structure, shapes and dtypes through a step."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"step must return a state of the structure that it got, {jax.tree.structure(before)}; "
            f"it returned {jax.tree.structure(after)}. Return the same pytree, with other numbers."
        )
    for (name, old), (_, new) in zip(flatten(before), flatten(after), strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise TypeError(
                f"step must keep the state's shapes and dtypes: leaf {name!r} came as "
                f"{old.dtype}{list(old.shape)} and went as {new.dtype}{list(new.shape)}. "
                "Cast it in step, or make it so in init."
            )


def _tracer(ledger: Ledger, steps: int) -> Callable[[int], None]:
    """What starts a profile before one step, and stops it before a later one or at the end."""
    first = min(10, steps // 2)
    last = min(first + 10, steps)
    trace = contextlib.ExitStack()

    def at(index: int) -> None:
        try:
            if index == first:
                trace.enter_context(jax.profiler.trace(str(ledger.folder.path / "profile")))
                ledger.remarks.append(
                    f"Steps {first} to {last - 1} are profiled in `profile/`; open it with "
                    "TensorBoard's profile plugin or https://ui.perfetto.dev."
                )
            elif index in (last, steps):
                if not any(leaf.is_deleted() for leaf in jax.tree.leaves(ledger.state)):
                    jax.block_until_ready(ledger.state)
                trace.close()
        except OSError as error:
            ledger.fail("profile", error)

    return at
