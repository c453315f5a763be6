"""Unbiased estimates of repeatedly nested expectations by recursive randomised multilevel draws.

The last level takes the probability of the tail. The probabilities that differences are divided by
are those of the whole-number thresholds that levels are drawn by, to the last bit, and the sum over
levels telescopes: the mean is that of the last level.

The trees are walked one innermost draw at a time by a fixed number of lanes side by side, so memory
does not depend on levels, and lanes finish together as they take more replicates each. A replicate
depends on its own number alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxinf.core import Key, Leaf, Scalar, check_key, is_concrete, record, static

Sampler = Callable[[PyTree, Key, tuple[Any, ...]], Any]
Outer = Callable[..., Array]


@record
class Nesting:
    """A repeatedly nested expectation; see :func:`nesting`."""

    data: Leaf
    samplers: tuple[Sampler, ...] = static()
    functions: tuple[Outer, ...] = static()

    @property
    def depth(self) -> int:
        """How many expectations lie within the outermost, D."""
        return len(self.samplers) - 1


class Info(NamedTuple):
    """What each replicate cost."""

    cost: Int[Array, " replicates"]
    """Innermost draws, whose number is random with mean (E 2^N)^D."""
    finite: Bool[Array, " replicates"]
    """Whether the estimate is finite."""


class Estimates(NamedTuple):
    """Independent replicates and their mean."""

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    values: Float[Array, " replicates"]
    info: Info


class _Lane(NamedTuple):
    """A traversal of one replicate's tree after the other, the deepest draws one at a time."""

    path: tuple[Any, ...]
    """y_0, ..., y_D, the latest draws."""
    level: Int[Array, " depth"]
    """N at each depth."""
    seen: Int[Array, " depth"]
    """How many inner estimates have come, of 2^N."""
    halves: Float[Array, "depth 2"]
    """Their sums, of the even and the odd ones."""
    start: Int[Array, ""]
    """The depth from which on the next draws are new."""
    draws: Int[Array, ""]
    """Innermost draws of this replicate so far."""
    replicate: Int[Array, ""]
    values: Float[Array, " replicates"]
    cost: Int[Array, " replicates"]


def nesting(samplers: Sequence[Sampler], functions: Sequence[Outer], data: PyTree = ()) -> Nesting:
    r"""A repeatedly nested expectation.

    .. math:: \gamma_0 = E\bigl[g_0(y_0, E[g_1(y_{0:1}, \dots E[g_D(y_{0:D}) \mid y_{0:D-1}] \dots
              ) \mid y_0])\bigr]

    Args:
      samplers: D + 1 functions ``(data, key, path) -> y_d`` that draw y_d given ``path`` =
        (y_0, ..., y_{d-1}), a pytree of arrays each.
      functions: D + 1 functions, ``g_d(data, path, z) -> `` one number for d < D, with path =
        (y_0, ..., y_d) and z the inner expectation; the last is ``g_D(data, path)``.
      data: a pytree of arrays that they share, the leaves of the record.

    Returns:
      The record, for :func:`read`. The functions are part of its type: pass the same objects.

    Raises:
      ValueError: unless there are as many samplers as functions, at least one.

    Example:
      ``nesting((draw_theta, draw_x), (lambda _, path, z: jnp.log(z), lambda _, path: ...))``
    """
    if not samplers or len(samplers) != len(functions):
        raise ValueError(
            f"there must be as many samplers as functions, one for each expectation, got "
            f"{len(samplers)} and {len(functions)}."
        )
    return Nesting(jax.tree.map(jnp.asarray, data), tuple(samplers), tuple(functions))


def read(
    key: Key,
    problem: Nesting,
    *,
    replicates: int = 1000,
    rate: Scalar | Sequence[float] = 0.6,
    max_level: int = 16,
    lanes: int = 64,
) -> Estimates:
    r"""READ, an estimator of repeatedly nested expectations whose bias is that of its last level.

    At depth d < D draw y_d and a level N, estimate the inner expectation 2^N times by the same
    rule, independently, and return

    .. math:: \frac{\Delta_N}{p_N}, \qquad \Delta_n = g_d\Bigl(\bar z\Bigr) - \tfrac12\bigl[
              g_d(\bar z_{\mathrm{odd}}) + g_d(\bar z_{\mathrm{even}})\bigr], \quad \Delta_0 =
              g_d(z_1), \quad p_n = r (1 - r)^n

    Cost and variance are both finite for r in (1/2, 3/4) where the g are smooth; 0.6 also serves
    g with kinks. Levels stop at ``max_level`` = L, and the mean is *exactly* (but for rounding) the
    nested expectation in which every inner mean is that of 2^L estimates; see the module for why.
    With smooth g that differs from gamma_d, given y_{0:d-1}, by at most

    .. math:: b_d \le E\bigl[\|g_d'\|_\infty b_{d+1} + \tfrac12 \|g_d''\|_\infty
              2^{-L} \operatorname{Var}(z)\bigr], \qquad b_D = 0,

    z an inner estimate; without a second derivative the last term is
    :math:`\|g_d'\|_\infty 2^{-L/2} \operatorname{sd}(z)`. No reverse-mode ``grad``.

    Args:
      key: a typed key.
      problem: from :func:`nesting`.
      replicates: how many independent estimates.
      rate: r, a number or one for each depth d < D.
      max_level: L, at most 24, and less where r is so near 1 that a level's probability is below
        2^-32.
      lanes: how many replicates are computed side by side; cost is that of the slowest lane.

    Returns:
      :class:`Estimates`. A mean of values that are not all finite is not finite, and
      ``info.finite`` says which.

    Raises:
      ValueError: for numbers out of range, and rates of another length than D.

    Reference:
      Y. Syed and G. Wang, "Optimal randomized multilevel Monte Carlo for repeatedly nested
      expectations", ICML 2023, algorithms 1 and 2; the cap on levels is ours.
    """
    check_key(key)
    rates = _rates(problem, rate, max_level)
    if replicates < 1 or lanes < 1:
        raise ValueError(f"replicates and lanes must be at least 1, got {replicates} and {lanes}.")
    return _read(key, problem, rates, replicates, max_level, min(lanes, replicates))


def _rates(problem: Nesting, rate: Any, max_level: int) -> Array:
    """Return the rate of each depth, checked."""
    if not 0 <= max_level <= 24:
        raise ValueError(f"max_level must be from 0 to 24, got {max_level}; 16 is usual.")
    rates = jnp.asarray(rate, jnp.float32)
    if rates.shape not in ((), (problem.depth,)):
        raise ValueError(
            f"rate must be one number or {problem.depth}, one for each inner expectation, got "
            f"shape {rates.shape}."
        )
    if is_concrete(rates):
        _check_rates(rates, max_level)
    return jnp.broadcast_to(rates, (problem.depth,))


def _check_rates(rates: Array, max_level: int) -> None:
    """Raise for rates outside (1/2, 1), whose cost has no mean, and levels that never come."""
    if not bool(jnp.all((rates > 0.5) & (rates < 1))):
        raise ValueError(
            f"rates must lie in (1/2, 1), got {rates}: the cost's mean is infinite at 1/2 and "
            "below; (1/2, 3/4) keeps the variance finite."
        )
    least = float(jnp.min((1 - rates) ** max_level)) if rates.size else 1.0
    if least < 2**-31:
        raise ValueError(
            f"max_level {max_level} has probability {least:.2g}, too small for 32 random bits; "
            "take a lower one or lower rates."
        )


def _levels(rate: Array, max_level: int) -> tuple[Array, Array]:
    """Return the thresholds T_1 ... T_L of 32 bits, and the probabilities of levels 0 ... L.

    Level n or more has probability T_n / 2^32, a whole number of draws of 32 bits.
    """
    if max_level == 0:
        return jnp.zeros(0, jnp.uint32), jnp.ones(1)
    above = jnp.exp2(32 + jnp.arange(1, max_level + 1) * jnp.log2(1 - rate))
    thresholds = above.astype(jnp.uint32)  # rounded down
    edges = jnp.concatenate([jnp.zeros(1, jnp.uint32), thresholds, jnp.zeros(1, jnp.uint32)])
    counts = edges[:-1] - edges[1:]  # of the first 2^32 - T_1, which wraps around to that
    return thresholds, counts.astype(jnp.float32) / 2.0**32


@partial(jax.jit, static_argnames=("replicates", "max_level", "lanes"))
def _read(
    key: Key, problem: Any, rates: Array, replicates: int, max_level: int, lanes: int
) -> Estimates:
    """See :func:`read`."""
    each = -(-replicates // lanes)
    tables = jax.vmap(partial(_levels, max_level=max_level))(rates)
    first = jnp.arange(lanes) * each
    limit = jnp.minimum(each, replicates - first)
    step = jax.vmap(partial(_step, key, problem, tables))
    # one condition for all lanes: what is early done goes on, and its results are dropped
    lane = jax.lax.while_loop(
        lambda lane: jnp.any(lane.replicate < limit),
        lambda lane: step(first, lane),
        jax.vmap(partial(_start, key, problem, each))(first),
    )
    values, cost = lane.values.reshape(-1)[:replicates], lane.cost.reshape(-1)[:replicates]
    mean = jnp.mean(values)
    spread = jnp.sum(jnp.square(values - mean)) / max(replicates - 1, 1)
    error = jnp.sqrt(spread / replicates)
    return Estimates(mean, error, values, Info(cost, jnp.isfinite(values)))


def _start(key: Key, problem: Nesting, each: int, first: Array) -> _Lane:
    """Return a lane before its first draw."""
    depth = problem.depth
    path = jax.eval_shape(partial(_first, problem), key)
    dtype = jax.eval_shape(problem.functions[depth], problem.data, path).dtype
    zero = partial(jnp.zeros, dtype=jnp.int32)
    lane = _Lane(
        jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), path),
        zero(depth),
        zero(depth),
        jnp.zeros((depth, 2), dtype),
        zero(()),
        zero(()),
        zero(()),
        jnp.zeros(each, dtype),
        zero(each),
    )
    # what varies over a mesh's axes varies so from the start, as a loop's carry must
    word = jax.random.key_data(key).ravel()[0] + first.astype(jnp.uint32)
    return jax.tree.map(lambda a: jnp.where(word != word, jnp.ones_like(a), a), lane)


def _draw(
    key: Key, problem: Nesting, tables: tuple[Array, Array], first: Array, lane: _Lane
) -> _Lane:
    """Draw anew what lies at ``lane.start`` and deeper, down to one innermost draw."""
    depth = problem.depth
    own = jax.random.fold_in(key, first + lane.replicate)
    keys = jax.random.split(jax.random.fold_in(own, lane.draws), depth + 2)
    path: tuple[Any, ...] = ()
    for d, sampler in enumerate(problem.samplers):
        fresh = sampler(problem.data, keys[d], path)
        path += (jax.tree.map(partial(jnp.where, lane.start <= d), fresh, lane.path[d]),)
    bits = jax.random.bits(keys[-1], (depth,), jnp.uint32)
    level = jnp.sum(bits[:, None] < tables[0], axis=1, dtype=jnp.int32)
    new = lane.start <= jnp.arange(depth)
    return lane._replace(
        path=path,
        level=jnp.where(new, level, lane.level),
        seen=jnp.where(new, 0, lane.seen),
        halves=jnp.where(new[:, None], 0, lane.halves),
    )


def _step(
    key: Key, problem: Nesting, tables: tuple[Array, Array], first: Array, lane: _Lane
) -> _Lane:
    """Take one innermost draw, and carry what it completes upwards."""
    lane, depth = _draw(key, problem, tables, first, lane), problem.depth
    value = problem.functions[depth](problem.data, lane.path)
    level, seen, halves, start = lane.level, lane.seen, lane.halves, jnp.int32(depth)
    done = jnp.array(True)  # whether the estimate one deeper is complete
    for d in reversed(range(depth)):
        side = seen[d] % 2
        halves = halves.at[d, side].add(jnp.where(done, value, 0))
        seen = seen.at[d].add(done)
        outer = partial(problem.functions[d], problem.data, lane.path[: d + 1])
        difference = _difference(outer, level[d], halves[d])
        done = done & (seen[d] == 1 << level[d])
        value = difference / tables[1][d, level[d]]
        start = jnp.where(done, d, start)
    i = lane.replicate
    here = jnp.where(done, i, len(lane.values))
    return lane._replace(
        level=level,
        seen=seen,
        halves=halves,
        start=start,  # a completed estimate's own draw is the next to be new
        draws=jnp.where(done, 0, lane.draws + 1),
        replicate=i + done,
        values=lane.values.at[here].set(value, mode="drop"),
        cost=lane.cost.at[i].add(1, mode="drop"),
    )


def _first(problem: Nesting, key: Key) -> tuple[Any, ...]:
    """Return one path, for its shapes."""
    path: tuple[Any, ...] = ()
    for sampler in problem.samplers:
        path += (sampler(problem.data, key, path),)
    return path


def _difference(outer: Callable[[Array], Array], level: Array, halves: Array) -> Array:
    """Return the antithetic difference of a level from the sums of both halves."""
    count = jnp.exp2(level.astype(halves.dtype))
    whole = outer(jnp.sum(halves) / count)
    apart = (outer(2 * halves[0] / count) + outer(2 * halves[1] / count)) / 2
    return jnp.where(level > 0, whole - apart, whole)
