"""Averages of a denoiser over views of the example: rotations, reflections, permutations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, PyTree, Scalar, concretely, record, static
from jaxinf.guide.algebra import Product, geometric_mean
from jaxinf.guide.evaluation import Evaluation, Moments, evaluate, log_final
from jaxinf.score import Denoiser


@record
class Seen:
    """V^-1 D(V x, t): a denoiser of the example through an orthogonal map V."""

    denoiser: Leaf
    view: Callable[[Array], Array] = static()

    @property
    def process(self) -> Any:
        """The wrapped denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the prediction, seen back."""
        return self._back(self.denoiser(self.view(x), t, cond))

    def evaluate(self, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
        """Return the wrapped denoiser's evaluation at the view, seen back."""
        there = evaluate(self.denoiser, self.view(x), t, cond, full)

        def back(clean: Moments) -> Moments:
            if clean.covariance is None:
                return Moments(self._back(clean.mean), None)
            rows = jax.vmap(lambda row: self._back(row.reshape(x.shape)).reshape(-1))
            return Moments(self._back(clean.mean), rows(rows(clean.covariance).T))

        return there._replace(
            guided=back(there.guided), experts=tuple(back(e) for e in there.experts)
        )

    def log_final(self, x: Array) -> Array:
        """Return the wrapped denoiser's at the view."""
        return log_final(self.denoiser, self.view(x))

    def _back(self, y: Array) -> Array:
        return jax.vjp(self.view, y)[1](y)[0]


def views(
    denoiser: Denoiser | Sequence[Denoiser],
    maps: Sequence[Callable[[Array], Array]],
    shape: tuple[int, ...],
) -> Product:
    r"""The average of a denoiser over views of the example.

    .. math:: D(x, t) = \frac{1}{n} \sum_i V_i^{-1} D_i(V_i x, t)

    The geometric mean of the experts' densities behind the maps. Only orthogonal maps keep white
    noise white, so that each expert sees what it was trained on.

    Args:
      denoiser: one, or one a view, under a condition each (``guide.given``) say.
      maps: V_i, linear functions that keep the shape: ``lambda x: x`` and ``jnp.rot90`` say.
      shape: an example's.

    Returns:
      The denoiser.

    Raises:
      ValueError: for a map that is not orthogonal, with the figure by which V^T V x differs from x,
        or another number of denoisers than of maps.

    Reference:
      Visual Anagrams: Generating Multi-View Optical Illusions with Diffusion Models, Geng et al.,
      2024, equations 2 and 3.
    """
    several = isinstance(denoiser, Sequence)
    denoisers = list(denoiser) if several else [denoiser] * len(maps)
    if len(denoisers) != len(maps):
        raise ValueError(f"got {len(denoisers)} denoisers for {len(maps)} views; pass one each")
    seen = [Seen(d, v) for d, v in zip(denoisers, maps, strict=True)]
    with concretely():
        for i, one in enumerate(seen):
            _check(i, one, shape)
    return geometric_mean(seen)


def _check(i: int, seen: Seen, shape: tuple[int, ...]) -> None:
    """Raise unless a view is orthogonal."""
    x = jax.random.normal(jax.random.key(0), shape)
    if seen.view(x).shape != x.shape:
        raise ValueError(
            f"view {i} must keep the shape {x.shape}, it returned {seen.view(x).shape}"
        )
    apart = float(jnp.max(jnp.abs(seen._back(seen.view(x)) - x)))
    if not apart <= 1e-4 * float(jnp.max(jnp.abs(x))):
        raise ValueError(
            f"view {i} is not orthogonal: V^T V x differs from x by {apart:.3g}; rotations, "
            "reflections and permutations are, scalings are not"
        )
