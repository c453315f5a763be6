"""Denoisers of several parts side by side: an image and a kernel, a pytree of states."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Diagonal, Leaf, Scalar, record, static
from jaxinf.guide.algebra import check_processes
from jaxinf.guide.evaluation import Guidance
from jaxinf.target.layout import Layout, layout


@record
class Joint:
    """Independent parts as one vector; see :func:`joint`."""

    denoisers: Leaf
    layout: Layout = static()

    @property
    def process(self) -> Any:
        """The parts'."""
        return self.denoisers[0].process

    def __call__(self, x: Float[Array, " n"], t: Scalar, cond: PyTree = None) -> Array:
        """Return the parts' predictions as one vector."""
        return self.layout.join(self._each(self.layout.split(x), t, cond))

    def split(self, x: Float[Array, " n"]) -> PyTree:
        """Return the parts of a vector."""
        return self.layout.split(x)

    def join(self, parts: PyTree) -> Float[Array, " n"]:
        """Return the vector of parts."""
        return self.layout.join(parts)

    def _each(self, parts: PyTree, t: Scalar, cond: PyTree) -> PyTree:
        leaves = jax.tree.leaves(parts)
        clean = [d(leaf, t, cond) for d, leaf in zip(self.denoisers, leaves, strict=True)]
        return jax.tree.unflatten(self.layout.structure, clean)


def joint(denoisers: PyTree, like: PyTree) -> Joint:
    """Independent parts of a state, each with a denoiser of its own, as one denoiser.

    Samplers, likelihoods and weights then see one vector: ``joint.split(x)`` gives the parts, an
    image and the kernel that blurred it say. What couples the parts is a likelihood on all of
    them, ``guide.observed(lambda p, x: law(parts.split(x)), y)``.

    Args:
      denoisers: of one process with white noise, a pytree of ``like``'s structure; each is called
        with the whole condition.
      like: a pytree of arrays or of their shapes, one example of the parts.

    Returns:
      The denoiser of a vector.

    Raises:
      TypeError: for a part that is conditioned or composed: condition the whole instead.
      ValueError: for denoisers of another structure, or processes that differ or are not white.
    """
    found = layout(like)
    parts = jax.tree.leaves(denoisers, is_leaf=lambda d: hasattr(d, "process"))
    structure = jax.tree.structure(denoisers, is_leaf=lambda d: hasattr(d, "process"))
    if structure != found.structure:
        raise ValueError(
            f"joint takes a denoiser for every part, of the structure {found.structure}, got "
            f"{structure}"
        )
    for part in parts:
        if isinstance(part, Guidance):
            raise TypeError(
                f"a part is {type(part).__name__}, whose weights would be lost: make the joint of "
                "the plain denoisers, and condition or compose that"
            )
        covariance = part.process.covariance
        if not (isinstance(covariance, Diagonal) and jnp.ndim(covariance.scale) == 0):
            raise ValueError("the parts of a joint must have white noise, core.white()")
    check_processes(tuple(parts), (1.0,))
    return Joint(tuple(parts), found)
