r"""Structured stochastic gradient Langevin dynamics: chosen dependencies are broken by history.

The noise of the past's draws adds a variance of order h. The past also remembers the start: a
chain's mean forgets it as :math:`t^{-(1 - c)}` only, c the largest eigenvalue of
:math:`\Lambda_D^{-1}(\Lambda_D - \Lambda)` for a Gaussian of precision Lambda with diagonal blocks
:math:`\Lambda_D`; a shorter ``history`` forgets geometrically, and must be long against the chain's
own memory.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Key, Leaf, Scalar, batch_vmap, check_key, is_concrete, record, spread
from jaxinf.core.progress import tick
from jaxinf.target import Target


@runtime_checkable
class Batches(Protocol):
    """A target of part of the data, drawn anew in each step; a pytree."""

    def __call__(self, key: Key, target: Any) -> Any:
        """Return a target whose gradient is unbiased for that of ``target``."""
        ...


class Info(NamedTuple):
    """What each step did, [chains, steps]."""

    speed: Float[Array, "chains steps"]
    """The root mean square of the gradient that was followed."""
    active: Float[Array, "chains steps"]
    """The share of groups that moved by the gradient: 1 without dropout."""
    finite: Bool[Array, "chains steps"]
    """Whether the chain is finite so far; one that is not stays where it last was."""


class Run(NamedTuple):
    """What chains found."""

    draws: Float[Array, "chains steps dim"]
    """Every position after each step."""
    info: Info


@record
class _Rule:
    """What of a run is numbers."""

    step_size: Leaf
    labels: Leaf
    keep: Leaf
    """The probability that a group is active, None without dropout."""
    batches: Leaf


def structured_sgld(
    key: Key,
    target: Target,
    start: Float[Array, "chains dim"],
    *,
    step_size: Scalar,
    steps: int = 1000,
    partition: Int[Array, " coordinates"] | Int[np.ndarray, " coordinates"] | None = None,
    dropout: Scalar | None = None,
    averages: int = 1,
    history: int | None = None,
    batches: Batches | None = None,
    progress: bool = False,
) -> Run:
    r"""Langevin dynamics in which groups of parameters see each other as they were before.

    .. math:: \theta' = \theta - h \nabla \hat U(\theta) + \sqrt{2 h}\, \xi, \qquad
              U = -\log\pi, \qquad
              U^S(\theta) = \sum_{i=1}^M E_{\tilde\theta}\, U(\theta_i, \tilde\theta_{\neg i})

    with :math:`\tilde\theta` a state of the chain's past, drawn anew for each group and step. As h
    falls the law is the product :math:`\prod_i q_i(\theta_i)` of least KL(q, pi): for a Gaussian of
    precision Lambda with the inverses of Lambda's diagonal blocks. With dropout, groups are masked,

    .. math:: U^{S_d}(\theta) = \frac{M}{E[\sum_i r_i]} E_{r, \tilde\theta}\, U(r \theta +
              (1 - r) \tilde\theta), \qquad r_i \sim \mathrm{Bernoulli}(\rho) \text{ independent},

    one gradient a draw instead of M: a Gaussian's precision becomes Lambda with its off-diagonal
    blocks times rho. One group is plain SGLD, to the last bit.

    Args:
      key: a typed key; chain i's draws do not depend on how many chains there are.
      target: what to draw from.
      start: where each chain begins, the first of its past.
      step_size: h.
      steps: how many; all are kept.
      partition: each coordinate's group, 0, 1, ... without gaps; one group by default.
      dropout: the probability 1 - rho that a group is masked; None, by default, for no masks.
      averages: K, how many draws of the past, and masks, the gradient is averaged over.
      history: how many of the last states the past consists of; all of them by default.
      batches: ``mc.subsample(size)`` for gradients of part of the data; all data by default.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Run`.

    Raises:
      ValueError: for shapes that do not fit, gaps between groups, and numbers out of range.
      TypeError: for a partition that is being traced.

    Reference:
      A. Alexos, A. Boyd and S. Mandt, "Structured Stochastic Gradient MCMC", ICML 2022, section 3,
      theorem 1 and algorithm 1, and its variant with dropout.
    """
    check_key(key)
    _check(target, start, step_size, steps, dropout, averages, history)
    labels, groups = _groups(partition, target.dim)
    rule = _Rule(step_size, labels, None if dropout is None else 1 - dropout, batches)
    kept = steps if history is None else min(history, steps)
    return _run(key, target, jnp.asarray(start), rule, groups, steps, averages, kept, progress)


def _check(
    target: Any, start: Any, step_size: Any, steps: int, dropout: Any, averages: int, history: Any
) -> None:
    """Raise for shapes that do not fit and numbers out of range."""
    shape = jnp.shape(start)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != target.dim:
        raise ValueError(
            f"start must have shape (chains, {target.dim}), a position for every chain, got {shape}"
        )
    counts = (("steps", steps), ("averages", averages), ("history", history))
    for name, value in counts:
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if is_concrete(step_size) and not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}.")
    if dropout is not None and is_concrete(dropout) and not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}; None is without masks.")


def _groups(partition: Any, dim: int) -> tuple[Array, int]:
    """Return each coordinate's group and how many there are."""
    if partition is None:
        return jnp.zeros(dim, jnp.int32), 1
    if not is_concrete(partition):
        raise TypeError("the partition is being traced; it says how many groups there are.")
    labels = np.asarray(partition)
    found = np.unique(labels)
    if labels.shape != (dim,) or not np.array_equal(found, np.arange(len(found))):
        raise ValueError(
            f"partition must hold a group for each of {dim} coordinates, whole numbers 0, 1, ... "
            f"without gaps, got shape {labels.shape} with groups {found[:10]}."
        )
    return jnp.asarray(labels, jnp.int32), len(found)


@partial(jax.jit, static_argnames=("groups", "steps", "averages", "kept", "progress"))
def _run(
    key: Key,
    target: Any,
    start: Array,
    rule: _Rule,
    groups: int,
    steps: int,
    averages: int,
    kept: int,
    progress: bool,
) -> Run:
    """See :func:`structured_sgld`."""
    index = jnp.arange(len(start))

    def step(carry: tuple[Array, Array | None, Array], i: Array) -> tuple[Any, tuple[Array, Info]]:
        def one(number: Array, z: Array, past: Array | None, good: Array) -> Any:
            own = jax.random.fold_in(jax.random.fold_in(key, number), i)
            key_noise, key_past = jax.random.split(own)
            slope, active = _gradient(key_past, target, rule, groups, averages, z, past, i)
            noise = jax.random.normal(key_noise, z.shape, z.dtype)
            new = z - rule.step_size * slope + jnp.sqrt(2 * rule.step_size) * noise
            good = good & jnp.all(jnp.isfinite(new))
            new = jnp.where(good, new, z)
            if past is not None:
                past = past.at[(i + 1) % kept].set(new)
            info = Info(jnp.sqrt(jnp.mean(jnp.square(slope))), active, good)
            return (new, past, good), (new, info)

        later, out = batch_vmap(one)(index, *carry)
        if progress:
            tick(i, steps, "steps")
        return later, out

    start = spread(start)
    past = None
    if groups > 1:
        past = jnp.zeros((len(start), kept, start.shape[1]), start.dtype) + 0 * start[:, None]
        past = past.at[:, 0].set(start)
    good = jnp.all(jnp.isfinite(start), axis=1)
    _, out = jax.lax.scan(step, (start, past, good), jnp.arange(steps))
    return Run(*jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), out))


def _gradient(
    key: Key,
    target: Any,
    rule: _Rule,
    groups: int,
    averages: int,
    z: Array,
    past: Array | None,
    i: Array,
) -> tuple[Array, Array]:
    """Return the gradient of the modified energy, and the share of active groups."""

    def energy_slope(key: Key, z: Array) -> Array:
        part = target if rule.batches is None else rule.batches(key, target)
        return jax.grad(lambda z: -part.log_prob(z))(z)

    if past is None:  # one group: there is nothing to be averaged over
        return energy_slope(key, z), jnp.ones((), z.dtype)
    labels = rule.labels

    def structured(key: Key) -> tuple[Array, Array]:
        key_place, key_batch = jax.random.split(key)
        place = jax.random.randint(key_place, (groups,), 0, jnp.minimum(i + 1, len(past)))
        own = labels[None] == jnp.arange(groups)[:, None]
        mixed = jnp.where(own, z[None], past[place])
        slopes = jax.vmap(energy_slope, (None, 0))(key_batch, mixed)
        return jnp.sum(jnp.where(own, slopes, 0), axis=0), jnp.ones((), z.dtype)

    def dropped(key: Key) -> tuple[Array, Array]:
        key_place, key_batch, key_mask = jax.random.split(key, 3)
        place = jax.random.randint(key_place, (), 0, jnp.minimum(i + 1, len(past)))
        mask = jax.random.bernoulli(key_mask, rule.keep, (groups,))
        own = mask[labels]
        slope = energy_slope(key_batch, jnp.where(own, z, past[place]))
        return jnp.where(own, slope, 0) / rule.keep, jnp.mean(mask, dtype=z.dtype)

    found = jax.vmap(structured if rule.keep is None else dropped)(jax.random.split(key, averages))
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), found)
