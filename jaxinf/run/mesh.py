"""Meshes of devices, and where the parts of a training state lie on them."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxinf.core.spread import AXES, BATCH
from jaxinf.run.errors import UsageError

SMALL = 2**12
"""Leaves of fewer numbers are copied to every device where no rule says otherwise."""


class Rule(NamedTuple):
    """Where the leaves of a state lie whose path a pattern finds."""

    pattern: str
    """A regular expression, searched in the leaf's path: ``qkv/kernel`` finds
    ``params/block_0/qkv/kernel``, and its average and moments."""
    axes: tuple[str | tuple[str, ...] | None, ...]
    """For each dimension the mesh axis, or axes, that divide it; None, or nothing, for a whole."""


def sizes(text: str, devices: int) -> dict[str, int]:
    """Return the sizes of a mesh's axes from ``"data=4,fsdp=2"``.

    Args:
      text: sizes by name. Axes that are not named have size 1, but for ``data``, which takes the
        devices that are left.
      devices: how many there are.

    Returns:
      Axis -> size, every axis in its order.

    Raises:
      ValueError: for an axis that does not exist or is named twice, a size that is no whole number
        above 0, and sizes that do not divide the devices.
    """
    found: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise UsageError(f"a mesh has the axes {', '.join(AXES)}, not {name!r}")
        if name in found:
            raise UsageError(f"the mesh {text!r} names {name} twice")
        if not (size.isdecimal() and int(size) > 0):
            raise UsageError(f"{part!r} needs a whole number above 0: {name}=2, say")
        found[name] = int(size)
    used = math.prod(found.values())
    if devices % used or ("data" in found and used != devices):
        raise UsageError(
            f"the mesh {text!r} has {used} places for {devices} devices; sizes must multiply to "
            f"{devices}, or, where data is left out, divide it"
        )
    found.setdefault("data", devices // used)
    return {name: found.get(name, 1) for name in AXES}


def make_mesh(text: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with all axes over the devices, neighbours on the innermost axes.

    Args:
      text: see ``sizes``.
      devices: all of the job's by default.

    Returns:
      The mesh. Where the devices lie in several slices and ``slice`` is not their number, the data
      axis crosses them.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(sizes(text, len(devices)).values())
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Return the devices in a mesh's shape, by their places in the network where it is known."""
    from jax.experimental import mesh_utils

    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = (slices, 1) if shape[0] == slices else (1, slices)
    if shape[0] not in (1, slices) or shape[1] % across[1]:
        raise UsageError(
            f"the devices lie in {slices} slices; give the mesh slice={slices}, or a data axis "
            "that they divide"
        )
    inner = (shape[0] // across[0], shape[1] // across[1], *shape[2:])
    return mesh_utils.create_hybrid_device_mesh(
        inner, (*across, 1, 1, 1), devices, allow_split_physical_axes=True
    )


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Return where batches lie: the axis after ``leading`` ones divided by the batch axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH))


def check_batch(size: int, mesh: Mesh) -> None:
    """Raise ValueError where a mesh does not divide a batch."""
    parts = math.prod(mesh.shape[name] for name in BATCH)
    if size % parts:
        raise UsageError(
            f"batch_size {size} is not divided by the mesh's {parts} parts of a batch ("
            + ", ".join(f"{name}={mesh.shape[name]}" for name in BATCH)
            + f"); take a multiple of {parts}, or give sequence or tensor more of the devices"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parse_rule(text: str) -> Rule:
    """Return a rule from ``"qkv/kernel=fsdp,tensor"``; ``-`` leaves a dimension whole."""
    pattern, equals, axes = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"a rule is PATTERN=AXIS,AXIS,..., got {text!r}: qkv/kernel=fsdp,tensor")
    named = [name for name in axes.replace(" ", "").split(",") if name]
    return Rule(pattern, tuple(None if name == "-" else tuple(name.split("+")) for name in named))


def shardings(
    mesh: Mesh, state: Any, rules: Iterable[Rule] = (), overrides: Iterable[Rule] = ()
) -> Any:
    """Return the sharding of every leaf of a state.

    A leaf follows the override that finds it, else the rule that does; else ``fsdp`` divides its
    largest dimension that it can, where the leaf is not small.

    Args:
      mesh: from ``make_mesh``.
      state: arrays or their shapes.
      rules: the experiment's.
      overrides: the user's, which win.

    Returns:
      The state's structure with shardings.

    Raises:
      ValueError: for a rule that finds no leaf, a leaf that two rules find, an axis that does not
        exist, or one that does not divide its dimension.
    """
    layers = [tuple(overrides), tuple(rules)]
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for rule in (*layers[0], *layers[1]):
        _check_axes(rule)
        if not any(re.search(rule.pattern, path) for path in paths):
            raise UsageError(
                f"the rule {rule.pattern!r} finds no leaf of the state; its paths are "
                f"{', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}"
            )
    specs = [_spec(mesh, p, leaf.shape, layers) for p, (_, leaf) in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def _check_axes(rule: Rule) -> None:
    """Raise for axes that no mesh has."""
    named = [name for axes in rule.axes for name in _names(axes)]
    if set(named) - set(AXES) or len(named) != len(set(named)):
        raise UsageError(
            f"the rule {rule.pattern!r} has the axes {named}; each must be one of "
            f"{', '.join(AXES)}, at most once"
        )


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the axes that divide one dimension."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _spec(
    mesh: Mesh, path: str, shape: tuple[int, ...], layers: list[tuple[Rule, ...]]
) -> PartitionSpec:
    """Return where one leaf lies."""
    for layer in layers:
        found = [rule for rule in layer if re.search(rule.pattern, path)]
        if len(found) > 1:
            raise UsageError(
                f"{path} is found by two rules, {found[0].pattern!r} and {found[1].pattern!r}; "
                "make one of them longer"
            )
        if found:
            return _checked(mesh, path, shape, found[0])
    parts = mesh.shape["fsdp"]
    fit = [i for i, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALL or not fit:
        return PartitionSpec()
    largest = max(fit, key=lambda i: shape[i])
    return PartitionSpec(*[None] * largest, "fsdp")


def _checked(mesh: Mesh, path: str, shape: tuple[int, ...], rule: Rule) -> PartitionSpec:
    """Return a rule's spec for a leaf that it fits."""
    if len(rule.axes) > len(shape):
        raise UsageError(
            f"the rule {rule.pattern!r} has {len(rule.axes)} dimensions, {path} has {len(shape)}"
        )
    for size, axes in zip(shape, rule.axes, strict=False):
        names = _names(axes)
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise UsageError(
                f"{path} has shape {shape}, of which {size} is not divided by {'+'.join(names)} of "
                f"size {parts}; choose another mesh or override the rule {rule.pattern!r}"
            )
    return PartitionSpec(*rule.axes)
