"""Batches over the devices of a mesh: for examples, samples, particles and chains alike."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from jaxinf.core.types import PyTree

AXES = ("slice", "data", "fsdp", "sequence", "tensor")
"""The axes of a mesh, the slowest network first: slices of a pod, copies of the parameters, parts
of the parameters and of the batch, parts of a sequence, parts of a product."""

BATCH = ("slice", "data", "fsdp")
"""The axes that divide a batch."""


def spread(tree: PyTree) -> PyTree:
    """Lay the leading axis of every leaf over the batch axes of the mesh in force.

    The numbers are the same with and without; ``sampler.sample`` does it with its samples.

    Args:
      tree: arrays with the batch's leading axis.

    Returns:
      The same arrays. Nothing is done without a mesh (``jax.set_mesh``), under ``shard_map``, whose
      axes are the caller's own, and to a leaf whose leading axis the mesh does not divide.
    """
    names, parts = _in_force()
    if parts == 1:
        return tree

    def place(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % parts:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(names))

    return jax.tree.map(place, tree)


def gather(x: jax.Array) -> jax.Array:
    """Have an array whole on every device of the mesh in force.

    For what all examples decide together, such as who survives a resampling: sums then round as on
    one device, and the decision is the same on any mesh.

    Args:
      x: an array.

    Returns:
      The same numbers. Nothing is done without a mesh, and under ``shard_map``.
    """
    if _in_force()[1] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def batch_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.vmap`` of a function of one example, whose batch lies over the mesh in force.

    Inside, :func:`stay` keeps what is computed for an example on the devices that hold it. Without
    a mesh, and where it does not divide the batch or divides a sequence too, it is ``jax.vmap``.

    Args:
      function: of one example.

    Returns:
      The function of a batch; every leaf of every argument has the batch's leading axis.
    """

    def batched(*args: PyTree) -> PyTree:
        names, parts = _in_force()
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(args)}
        divided = parts > 1 and all(size % parts == 0 for size in sizes)
        if jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1:
            divided = False  # JAX refuses a shard_map over one more axis within a divided vmap
        return jax.vmap(function, spmd_axis_name=names if divided else None)(*args)

    return batched


def stay(x: jax.Array) -> jax.Array:
    """Keep one example's array, and its cotangent, on the devices that hold the example.

    For networks, between layers: where parameters are divided over the axes that divide the batch
    too (``fsdp``), XLA may otherwise divide a layer's output by features instead of examples, and
    send activations, and compute attention for all of the batch on every device.

    Args:
      x: an array of one example, under :func:`batch_vmap`.

    Returns:
      The same numbers.
    """
    if _in_force()[1] == 1:
        return x
    anywhere = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * x.ndim)
    return jax.lax.with_sharding_constraint(x, anywhere)


def _in_force() -> tuple[tuple[str, ...], int]:
    """Return the axes of the mesh in force that divide a batch, and into how many parts."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = tuple(name for name in BATCH if kinds.get(name) == AxisType.Auto)
    return names, math.prod(mesh.shape[name] for name in names)
