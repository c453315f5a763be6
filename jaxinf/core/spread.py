"""Batches over the devices of a mesh: one helper for examples, samples, particles and chains."""

import math

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
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = tuple(name for name in BATCH if kinds.get(name) == AxisType.Auto)
    parts = math.prod(mesh.shape[name] for name in names)
    if parts == 1:
        return tree

    def place(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % parts:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(names))

    return jax.tree.map(place, tree)
