"""An experiment's own step, compiled for a pod that need not be there, and what it would cost."""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxinf.core.spread import BATCH
from jaxinf.run.chips import Chip, Pod
from jaxinf.run.cost import Collective, cost, largest
from jaxinf.run.experiment import Experiment, check
from jaxinf.run.hlo import parse
from jaxinf.run.ledger import flatten
from jaxinf.run.mesh import (
    Rule,
    batch_sharding,
    check_batch,
    make_mesh,
    replicated,
    shardings,
)
from jaxinf.run.training import trace_step

Placed = tuple[Any, Any, Any]
"""Key, state and batch as shapes with shardings."""


class Memory(NamedTuple):
    """Bytes on one device while the step runs."""

    arguments: int
    outputs: int
    alias: int
    """Outputs that take their arguments' place."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """What must fit."""
        return self.arguments + self.outputs - self.alias + self.temporaries + self.code


class Plan(NamedTuple):
    """What one step would take on every device. All but the memory are estimates."""

    topology: str
    mesh: dict[str, int]
    devices: int
    fits: bool
    memory: dict[str, int]
    """See ``Memory``, with ``total`` and ``capacity``; the total alone where it does not fit."""
    flops: float
    bytes: float
    collectives: list[dict[str, Any]]
    seconds: dict[str, float]
    """By each of the bounds: compute, memory, and the network of each axis."""
    bound: str
    """The largest of them."""
    compile_seconds: float
    largest: list[dict[str, Any]]
    """The largest arrays in memory, with the lines that make them."""
    remarks: list[str]


def places(experiment: Experiment, mesh: Mesh, overrides: Sequence[Rule] = ()) -> Placed:
    """Return key, state and batch of a step as shapes with shardings; no array is made.

    Args:
      experiment: the experiment.
      mesh: see ``make_mesh``.
      overrides: rules that win over the experiment's.

    Raises:
      ValueError: for a mesh that does not divide the batch, and rules that do not fit the state.
    """
    check(experiment)
    check_batch(experiment.batch_size, mesh)

    def put(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(experiment.init, key)
    return (
        put(key, replicated(mesh)),
        jax.tree.map(put, state, shardings(mesh, state, experiment.rules, overrides)),
        _rows(experiment, experiment.batch_size, mesh),
    )


def _rows(experiment: Experiment, rows: int, mesh: Mesh) -> Any:
    """Return a batch of so many rows as shapes, from two rows of one."""
    few = min(2, experiment.batch_size)
    batch = experiment.batch(0, 0, np.arange(few))
    for name, leaf in flatten(batch):
        if np.shape(leaf)[:1] != (few,):
            raise ValueError(
                f"batch leaf {name or 'array'!r} has shape {np.shape(leaf)}, but {few} rows were "
                "asked for. Return data[index]-like rows: the leading axis is len(index)."
            )

    def grow(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = (rows, *np.shape(leaf)[1:])
        dtype = jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    return jax.tree.map(grow, batch)


def compile_for(experiment: Experiment, placed: Placed, mesh: Mesh, platform: str) -> Any:
    """Compile the runner's step for devices that need not be there."""
    traced = trace_step(experiment, 1, *placed, mesh)
    return traced.lower(lowering_platforms=(platform,)).compile()


def plan(experiment: Experiment, pod: Pod, mesh: str = "", overrides: Sequence[Rule] = ()) -> Plan:
    """Compile an experiment's step for a pod, and estimate what it takes on every device.

    Args:
      experiment: whose step.
      pod: see :func:`jaxinf.run.chips.pod`.
      mesh: see :func:`jaxinf.run.mesh.make_mesh`.
      overrides: rules that win over the experiment's.

    Raises:
      ValueError: for a mesh that divides neither devices nor batch, and rules that do not fit.
    """
    grid = make_mesh(mesh, pod.devices)
    placed = places(experiment, grid, overrides)
    shape = {name: size for name, size in grid.shape.items() if size > 1}
    capacity = int(pod.chip.memory / pod.per_chip)
    start = time.monotonic()
    try:
        compiled = compile_for(experiment, placed, grid, pod.platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.monotonic() - start
        return _too_large(experiment, placed, grid, pod, str(error))._replace(
            topology=pod.name, mesh=shape, devices=grid.size, compile_seconds=took
        )
    took = time.monotonic() - start
    memory = memory_of(compiled)
    program = parse(compiled.as_text())
    costs = cost(program, grid, pod.slices)
    seconds = bounds(costs.flops, costs.bytes, costs.collectives, pod, grid)
    return Plan(
        topology=pod.name,
        mesh=shape,
        devices=grid.size,
        fits=memory.total <= capacity,
        memory={**memory._asdict(), "total": memory.total, "capacity": capacity},
        flops=costs.flops,
        bytes=costs.bytes,
        collectives=[
            {k: v for k, v in one._asdict().items() if k != "group"} for one in costs.collectives
        ],
        seconds=seconds,
        bound=max(seconds, key=lambda name: seconds[name]),
        compile_seconds=took,
        largest=_arrays(compiled),
        remarks=costs.remarks,
    )


def memory_of(compiled: Any) -> Memory:
    """Return the bytes of one device that a compiled program asks for."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def _arrays(compiled: Any) -> list[dict[str, Any]]:
    """Return the largest arrays of a compiled program."""
    found = largest(parse(compiled.as_text()))
    return [{"bytes": size, "array": array, "source": source} for size, array, source in found]


def _too_large(experiment: Experiment, placed: Placed, mesh: Mesh, pod: Pod, error: str) -> Plan:
    """Return a plan that does not fit: how much is asked for, by what, and what to change.

    The compiler gives no program that does not fit, so the largest arrays are those of a sixteenth
    of the batch, where that fits.
    """
    sizes = [float(n) * 2**30 for n in re.findall(r"(\d+\.?\d*)G\b", error)]
    needed, capacity = sizes[:2] if len(sizes) > 1 else (0.0, pod.chip.memory / pod.per_chip)
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(placed[1])
    )
    parts = int(np.prod([mesh.shape[name] for name in BATCH]))
    rows = parts * max(1, experiment.batch_size // parts // 16)
    arrays, remarks = [], []
    if held > capacity:
        remarks.append("the state alone does not fit: raise fsdp or tensor, or take more chips")
    else:
        remarks.append(
            "raise fsdp or tensor, halve the batch, accumulate gradients over parts of it, or "
            "recompute blocks in reverse mode (remat)"
        )
    try:
        smaller = (placed[0], placed[1], _rows(experiment, rows, mesh))
        arrays = _arrays(compile_for(experiment, smaller, mesh, pod.platform))
        remarks.append(f"the largest arrays are those of a batch of {rows} rows, which does fit")
    except Exception as reason:
        remarks.append(f"nor does a batch of {rows} rows compile: {str(reason).splitlines()[0]}")
    memory = {"total": int(needed), "state": held, "capacity": int(capacity)}
    return Plan("", {}, 0, False, memory, 0.0, 0.0, [], {}, "memory", 0.0, arrays, remarks)


def bounds(
    flops: float, moved: float, collectives: Sequence[Collective], pod: Pod, mesh: Mesh
) -> dict[str, float]:
    """Return the seconds that each resource alone would take at its maker's figures.

    Args:
      flops: of one device.
      moved: bytes to and from its memory.
      collectives: what it sends.
      pod: where.
      mesh: its devices in their order.
    """
    chip, share = pod.chip, 1 / pod.per_chip
    seconds = {
        "compute": flops / (chip.flops * share),
        "memory": moved / (chip.bandwidth * share),
    }
    devices = mesh.devices.reshape(-1)
    for one in collectives:
        speed, network = _speed(chip, [devices[place] for place in one.group], pod)
        name = f"{network} {'+'.join(one.axes)}"
        seconds[name] = seconds.get(name, 0.0) + one.sent / (speed * share)
    return seconds


def _speed(chip: Chip, group: list[Any], pod: Pod) -> tuple[float, str]:
    """Return the bytes a second that a chip sends to its group, and the network's name.

    Along each side of a torus that the group spans a chip has a link, and two where the side is
    long enough to close to a ring.
    """
    if chip.wrap == 0:
        hosts = {getattr(device, "process_index", 0) for device in group}
        return (chip.across, "network") if len(hosts) > 1 else (chip.link, "NVLink")
    if len({getattr(device, "slice_index", 0) for device in group}) > 1:
        return chip.across, "DCN"
    every = np.array([device.coords for device in pod.devices])
    sides = every.max(0) + 1
    places = np.array([device.coords for device in group])
    links = sum(
        1 + (side % chip.wrap == 0)
        for side, along in zip(sides, places.T, strict=True)
        if len(set(along.tolist())) > 1
    )
    return chip.link * max(links, 1), "ICI"
