"""Where the leaves of a pytree lie in one vector."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


class Layout(NamedTuple):
    """The leaves of a pytree side by side; hashable, so that a record that holds it is static."""

    structure: Any
    labels: tuple[str, ...]
    """Of the leaves: dictionary keys and places, joined by points."""
    shapes: tuple[tuple[int, ...], ...]

    @property
    def dim(self) -> int:
        """How many numbers there are."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every number: ``beta[0, 2]``."""
        found = []
        for label, shape in zip(self.labels, self.shapes, strict=True):
            places = [", ".join(map(str, index)) for index in np.ndindex(*shape)]
            found += [f"{label}[{place}]" if place else label for place in places]
        return tuple(found)

    def split(self, z: Float[Array, " dim"]) -> PyTree:
        """Return the pytree whose leaves lie in a vector."""
        if z.shape != (self.dim,):
            raise ValueError(
                f"a position is one vector of {self.dim} numbers, got shape {z.shape}. "
                "Use jax.vmap for several."
            )
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = jnp.split(z, ends[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def join(self, tree: PyTree) -> Float[Array, " dim"]:
        """Return the vector in which the leaves of a pytree lie."""
        found = jax.tree.structure(tree)
        shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(tree))
        if found != self.structure or shapes != self.shapes:
            raise ValueError(
                f"expected values of the form {describe(self.structure, self.shapes)}, got "
                f"{describe(found, shapes)}."
            )
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def layout(tree: PyTree) -> Layout:
    """Return where the leaves of a pytree of arrays, or of their shapes, lie in one vector."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    labels = tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)
    return Layout(structure, labels or (), tuple(tuple(jnp.shape(leaf)) for _, leaf in paths))


def describe(structure: Any, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Return a pytree's form in words: its structure with shapes for leaves."""
    return str(jax.tree.unflatten(structure, [list(shape) for shape in shapes]))
