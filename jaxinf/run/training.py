"""The training loop and the evaluations, compiled once for one seed or for several."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from jaxtyping import Key as Keys

from jaxinf.run.checkpoints import Checkpoints
from jaxinf.run.experiment import Experiment
from jaxinf.run.ledger import Ledger, flatten
from jaxinf.run.mesh import Rule, batch_sharding, replicated, shardings
from jaxinf.run.metrics import Metrics
from jaxinf.run.progress import bar


def make_key(seed: int, seeds: int) -> Keys[Array, "..."]:
    """The key of a seed, or the stacked keys of ``seed .. seed + seeds - 1``."""
    if seeds == 1:
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))


def streams(seed: int, seeds: int, mesh: Mesh) -> tuple[Keys[Array, "..."], ...]:
    """The keys for ``init``, for the steps and for the evaluations, of every seed."""

    def split() -> tuple[Any, ...]:
        many = jnp.vectorize(lambda one: jax.random.split(one, 3), signature="()->(n)")
        return tuple(many(make_key(seed, seeds)).T)

    return jax.jit(split, out_shardings=replicated(mesh))()


@dataclasses.dataclass(frozen=True)
class Place:
    """The mesh, and the rules that place the state on it."""

    mesh: Mesh
    overrides: tuple[Rule, ...] = ()

    def state(self, experiment: Experiment, seeds: int) -> Any:
        """The shape, dtype and sharding of every leaf of the state."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        one = jax.eval_shape(experiment.init, key)
        where = shardings(self.mesh, one, experiment.rules, self.overrides)

        def form(leaf: Any, place: NamedSharding) -> Any:
            shape, spec = leaf.shape, place.spec
            if seeds > 1:
                shape, spec = (seeds, *shape), PartitionSpec(None, *spec)
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec))

        return jax.tree.map(form, one, where)


def train(
    ledger: Ledger,
    experiment: Experiment,
    key: Keys[Array, "..."],
    seed: int,
    place: Place,
    checkpoints: Checkpoints,
    profile: bool,
) -> None:
    """Train from the state that the ledger holds, leaving the state there after every step.

    Args:
      ledger: where state, metrics and timings go.
      experiment: what is trained.
      key: the steps' stream.
      seed: the first seed.
      place: where the state and the batches lie.
      checkpoints: what saves the state.
      profile: whether steps 10 to 20 are traced.
    """
    first, mesh = ledger.step, place.mesh
    if first >= experiment.steps:
        return
    batch = _feed(experiment, seed, ledger.seeds, first, mesh)
    start = time.monotonic()
    step = compile_step(experiment, ledger.seeds, key, ledger.state, batch, mesh)
    ledger.timings["compile"] = time.monotonic() - start

    start = time.monotonic()
    metrics = Metrics(ledger, experiment, seed)
    tracer = _tracer(ledger, experiment.steps) if profile else lambda index: None
    count = jax.jit(lambda: jnp.uint32(first), out_shardings=replicated(mesh))()
    try:
        with bar(experiment.steps - first, "train") as advance:
            for index in range(first, experiment.steps):
                tracer(index)
                with jax.transfer_guard("disallow"):
                    count, ledger.state, newest = step(key, count, ledger.state, batch)
                ledger.step = index + 1
                metrics.add(index, newest)
                if index + 1 < experiment.steps:
                    batch = _feed(experiment, seed, ledger.seeds, index + 1, mesh)
                advance(metrics.update())
                checkpoints.after(index + 1, ledger.state, metrics.flush)
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


def start_state(ledger: Ledger, experiment: Experiment, key: Keys[Array, "..."], form: Any) -> None:
    """Make the first state, on its devices from the start."""
    init = jax.vmap(experiment.init) if ledger.seeds > 1 else experiment.init
    where = jax.tree.map(lambda leaf: leaf.sharding, form)
    ledger.state = jax.block_until_ready(jax.jit(init, out_shardings=where)(key))


def compile_step(
    experiment: Experiment, seeds: int, key: Any, state: Any, batch: Any, mesh: Mesh
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """Compile ``(key, index, state, batch) -> (index + 1, state, metrics)``; state is donated."""
    return trace_step(experiment, seeds, key, state, batch, mesh).lower().compile()


def trace_step(
    experiment: Experiment, seeds: int, key: Any, state: Any, batch: Any, mesh: Mesh
) -> Any:
    """Trace the step that the runner compiles, on arrays or on their shapes with shardings.

    Args:
      experiment: whose step.
      seeds: how many at once.
      key: of the steps.
      state: the training state; a new one lies where it does.
      batch: a step's batch.
      mesh: on which all of it lies.

    Raises:
      TypeError: if a step changes the state's structure, shapes or dtypes.
      ValueError: if its metrics are no flat dict of arrays of shape ().
    """

    def step(key: Any, index: Any, state: Any, batch: Any) -> Any:
        return experiment.step(jax.random.fold_in(key, index), state, batch)

    many = jax.vmap(step, in_axes=(0, None, 0, 0)) if seeds > 1 else step

    def counted(key: Any, index: Any, state: Any, batch: Any) -> Any:
        out = many(key, index, state, batch)
        _check_step(state, out, () if seeds == 1 else (seeds,))
        return index + 1, *out

    where, whole = jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)
    index = jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole)
    step_of = jax.jit(counted, donate_argnums=2, out_shardings=(whole, where, whole))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels ask it for the chip
        return step_of.trace(key, index, state, batch)


def _check_step(state: Any, out: Any, shape: tuple[int, ...]) -> None:
    """Raise unless a step returns its state's form, and metrics of a shape."""
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"step must return (state, metrics), got {type(out).__name__}.")
    _same_form(state, out[0])
    if not isinstance(out[1], dict):
        raise TypeError(f'metrics must be a dict, got {out[1]!r}. Return {{"loss": loss}}.')
    for name, value in out[1].items():
        leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
        if not leaf or jnp.shape(value) != shape:
            raise ValueError(
                f"metrics must be a flat dict of arrays of shape (), got {name!r}: {value}. "
                "Take its mean, or leave it to an evaluation."
            )


def evaluations(
    experiment: Experiment, ledger: Ledger, key: Keys[Array, "..."], mesh: Mesh
) -> Iterator[tuple[str, Any]]:
    """Run the evaluations one by one; what one of them raises is recorded in the ledger."""
    with bar(len(experiment.evaluate), "evaluate") as advance:
        for name, function in experiment.evaluate.items():
            start = time.monotonic()
            try:
                many = jax.vmap(function) if ledger.seeds > 1 else function
                with jax.set_mesh(mesh):
                    one = jax.jit(many, out_shardings=replicated(mesh))
                    result = jax.block_until_ready(one(key, ledger.state))
            except Exception as error:
                ledger.fail(f"evaluation {name}", error)
            else:
                yield name, result
            ledger.timings[f"evaluate {name}"] = time.monotonic() - start
            advance(name)


def _feed(experiment: Experiment, seed: int, seeds: int, step: int, mesh: Mesh) -> Any:
    """The batches of a step for every seed, checked and on their way to the devices.

    A process makes only the rows that its own devices hold.
    """
    leading, size = (0 if seeds == 1 else 1), experiment.batch_size
    where = batch_sharding(mesh, leading)
    parts: Any = where.addressable_devices_indices_map((seeds, size)[1 - leading :])
    starts = {part[leading].indices(size)[:2] for part in parts.values()}
    index = np.concatenate([np.arange(*one) for one in sorted(starts)])
    batches = [experiment.batch(seed + offset, step, index) for offset in range(seeds)]
    for offset, batch in enumerate(batches):
        for name, leaf in flatten(batch):
            _check_leaf(np.asarray(leaf), name or "array", step, seed + offset, len(index))
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches) if seeds > 1 else batches[0]
    if len(index) == size:
        return jax.device_put(stacked, where)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            where, leaf, (*leaf.shape[:leading], size, *leaf.shape[leading + 1 :])
        ),
        stacked,
    )


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
