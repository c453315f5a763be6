"""Weighted particles with their ancestry: the noun of sequential Monte Carlo."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxinf.core import Key, Leaf, Scalar, carry, gather, record, spread
from jaxinf.smc.resampling import Scheme, systematic


@record
class Population:
    """Particles with log-weights; see :func:`population`."""

    particles: PyTree
    """A pytree with a leading axis of n particles."""
    log_weights: Leaf
    """Up to a constant, [n]."""
    log_evidence: Leaf
    """Log of the estimate of the normalising constant so far, ()."""
    ancestors: Leaf
    """Where each particle stood before the last resampling, [n]."""
    eves: Leaf
    """Which of the first particles each descends from, [n]; a number of its family, below n, once
    the number of particles has changed."""
    log_pairs: Leaf
    """Log of what resamplings so far took of the weight of pairs of unrelated particles, ()."""
    alive: Leaf
    """Whether some weight was above 0 all the time, ()."""
    invalid: Leaf
    """How many weights so far were NaN or infinite, and counted as 0, ()."""

    @property
    def size(self) -> int:
        """How many particles there are."""
        return self.log_weights.shape[0]

    def normalise(self) -> Float[Array, " n"]:
        """Return log-weights whose exponentials sum to one; -inf where all are dead."""
        return self.log_weights - jnp.maximum(_log_sum(self.log_weights), _least(self.log_weights))

    def ess(self) -> Float[Array, ""]:
        r"""Return the effective sample size :math:`1 / \sum_i W_i^2`, 0 where all are dead."""
        squares = jnp.sum(jnp.exp(2 * self.normalise()))
        return jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1), 0)

    def mean(self, function: Callable[[Any], PyTree] = lambda x: x) -> PyTree:
        r"""Return :math:`\sum_i W_i f(x_i)`.

        Args:
          function: f, of one particle, to a pytree of arrays; the particle itself by default.

        Returns:
          The weighted mean; a particle of weight 0 has no part in it, be f NaN there. NaN where
          all are dead.
        """
        weights = jnp.exp(self.normalise())

        def average(values: Array) -> Array:
            w = weights.reshape(-1, *[1] * (values.ndim - 1))
            return jnp.sum(jnp.where(w > 0, w * values, 0), axis=0)

        means = jax.tree.map(average, jax.vmap(function)(self.particles))
        dead = _log_sum(self.log_weights) == -jnp.inf
        return jax.tree.map(lambda m: jnp.where(dead, jnp.nan, m), means)

    def weigh(self, log_increments: Float[Array, " n"], particles: PyTree = None) -> "Population":
        r"""Multiply the weights.

        .. math:: \log \hat Z \leftarrow \log \hat Z + \log \sum_i W_i w_i

        Args:
          log_increments: log w; NaN and +inf count as a weight of 0 and are counted in ``invalid``.
          particles: in place of those there are, if they moved.

        Returns:
          The population, with weights that sum to one.

        Raises:
          ValueError: for increments of another shape.
        """
        if jnp.shape(log_increments) != (self.size,):
            raise ValueError(
                f"log_increments must have shape {(self.size,)}, a number for every particle, got "
                f"{jnp.shape(log_increments)}. Sum over what is independent; jax.vmap the rest."
            )
        bad = jnp.isnan(log_increments) | (log_increments == jnp.inf)
        joint = self.normalise() + jnp.where(bad, -jnp.inf, log_increments)
        total = _log_sum(joint)
        return dataclasses.replace(
            self,
            particles=self.particles if particles is None else particles,
            log_weights=joint - jnp.maximum(total, _least(joint)),
            log_evidence=self.log_evidence + total,
            alive=self.alive & (total > -jnp.inf),
            invalid=self.invalid + jnp.sum(bad, dtype=jnp.int32),
        )

    def due(self, threshold: Scalar) -> Bool[Array, ""]:
        """Whether :meth:`resample` draws anew: too few particles count, and some are alive."""
        few = jnp.asarray((threshold >= 1) | (self.ess() < threshold * self.size))
        return few & (_log_sum(self.log_weights) > -jnp.inf)

    def resample(
        self, key: Key, scheme: Scheme = systematic, threshold: Scalar = 1.0
    ) -> "Population":
        """Draw the particles anew by their weights, where these have become too unequal.

        Args:
          key: a typed key.
          scheme: how: ``systematic``, ``stratified``, ``residual``, ``multinomial`` or
            ``metropolis(steps)``.
          threshold: the share of n below which the effective sample size must fall; 1 resamples
            always and 0 never.

        Returns:
          The population with equal weights; or as it was, with each particle its own ancestor,
          where nothing was due and where all are dead.

        Raises:
          ValueError: for a threshold outside [0, 1].
        """
        check_share("threshold", threshold)
        return self._take(scheme(key, gather(self.normalise())), self.due(threshold))

    def draw(self, key: Key, scheme: Scheme, count: int) -> "Population":
        """Return a population of ``count`` particles, drawn by their weights."""
        return self._take(scheme(key, gather(self.normalise()), count), self.due(1.0))

    def log_evidence_error(self) -> Float[Array, ""]:
        r"""Return the standard error of ``log_evidence``, from this one run's genealogy.

        With :math:`F_k` the weight of the first particle k's descendants,

        .. math:: V = 1 - \Bigl(\prod_{t} c_t\Bigr) \frac{N}{N-1} \Bigl(1 - \sum_k F_k^2\Bigr)

        estimates the relative variance of the evidence, of which this is the root. The resampling
        of time t has :math:`c_t = (1 - \sum_k F_k^2) / (1 - \sum_k F_k'^2)`, before over after. In
        the paper :math:`c_t = N / (N - 1)`, which is its mean when ancestors are independent; in
        this form schemes of less variance are served as well. It is 1 (no information) once all
        descend from one particle, and 0 where V comes out negative.

        Reference:
          A. Lee and N. Whiteley, "Variance estimation in the particle filter", Biometrika 2018,
          for the constant function under the weights.
        """
        return jnp.sqrt(jnp.maximum(-jnp.expm1(self.log_pairs + self._log_unrelated()), 0))

    def _log_unrelated(self) -> Array:
        """Return the logarithm of the weight of pairs with different first ancestors."""
        zero = jnp.zeros_like(self.log_weights, shape=self.eves.shape)
        families = zero.at[self.eves].add(gather(jnp.exp(self.normalise())))
        return jnp.log1p(-jnp.minimum(jnp.sum(jnp.square(families)), 1))

    def _take(self, ancestors: Array, due: Array) -> "Population":
        """Return the population of the ancestors, if it is due."""
        count = ancestors.shape[0]
        own = jnp.arange(count) % self.size
        ancestors = jnp.where(due, ancestors, own)
        particles, eves = spread(jax.tree.map(lambda a: a[ancestors], (self.particles, self.eves)))
        if count != self.size:  # families are counted in as many places as there are particles
            eves = jnp.unique(eves, return_inverse=True, size=count)[1]
        equal = jnp.full_like(self.log_weights, -math.log(count), shape=(count,))
        drawn = dataclasses.replace(
            self,
            particles=particles,
            eves=eves,
            ancestors=ancestors,
            log_weights=jnp.where(due, equal, self.log_weights[own]),
        )
        change = self._log_unrelated() - drawn._log_unrelated()
        # one family alone stays one: no pair is left to say anything
        change = jnp.where(jnp.isnan(change) | (change == jnp.inf), -jnp.inf, change)
        return dataclasses.replace(drawn, log_pairs=self.log_pairs + jnp.where(due, change, 0))


def population(particles: PyTree, log_weights: Float[Array, " n"] | None = None) -> Population:
    """Particles with log-weights, an estimate of the evidence, and their ancestry.

    Args:
      particles: a pytree of arrays with a leading axis of n, two or more.
      log_weights: [n], up to a constant; equal by default. Unequal ones are a way to start from
        draws of another law; their own constant is no part of the evidence.

    Returns:
      The population, with log-evidence 0.

    Raises:
      ValueError: for leaves without a common leading axis, fewer than two particles, and
        log-weights of another shape.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(particles)]
    if not shapes or not all(shape and shape[0] == shapes[0][0] for shape in shapes):
        raise ValueError(
            f"particles must be arrays with one leading axis of n, got shapes {shapes}. "
            "jax.vmap(init)(jax.random.split(key, n)) makes them so."
        )
    n = shapes[0][0]
    if n < 2:
        raise ValueError(f"a population has two particles or more, got {n}.")
    if log_weights is not None and jnp.shape(log_weights) != (n,):
        raise ValueError(
            f"log_weights must have shape {(n,)}, a number for every particle, got "
            f"{jnp.shape(log_weights)}."
        )
    leaf = next((x for x in jax.tree.leaves(particles) if jnp.issubdtype(x.dtype, jnp.floating)),
                None)  # fmt: skip
    dtype = jnp.result_type(float) if leaf is None else leaf.dtype
    zero = carry(jnp.asarray(jax.tree.leaves(particles)[0]), 0.0).astype(dtype)
    zeros = jnp.zeros(n, dtype) + zero
    start = Population(
        particles=particles,
        log_weights=zeros,
        log_evidence=zero,
        ancestors=jnp.arange(n) + zero.astype(jnp.int32),
        eves=jnp.arange(n) + zero.astype(jnp.int32),
        log_pairs=zero + math.log(n / (n - 1)),
        alive=zero == 0,
        invalid=zero.astype(jnp.int32),
    )
    if log_weights is None:
        return start
    weighed = start.weigh(log_weights)
    return dataclasses.replace(weighed, log_evidence=jnp.where(weighed.alive, 0, -jnp.inf) + zero)


def check_share(name: str, value: Any) -> None:
    """Raise unless a concrete number is in [0, 1]."""
    if not isinstance(value, jax.core.Tracer) and not 0 <= value <= 1:
        raise ValueError(
            f"{name} must lie in [0, 1], a share of the particles, got {value}. 1 resamples at "
            "every step, 0 never."
        )


def _least(log_weights: Array) -> Array:
    """Return the least finite number, which is subtracted where there is no weight at all."""
    return jnp.asarray(jnp.finfo(log_weights.dtype).min, log_weights.dtype)


def _log_sum(log_weights: Array) -> Bool[Array, ""] | Float[Array, ""] | Int[Array, ""]:
    """Return log sum exp, -inf with gradient 0 where all are -inf."""
    top = jax.lax.stop_gradient(jnp.max(log_weights))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(log_weights - top))
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + top, -jnp.inf)
