"""The no-U-turn sampler: doublings in a loop, and in it the leaves that each adds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Covariance, Key, Leaf, carry, record, static, white
from jaxinf.mcmc.hmc import HMC
from jaxinf.mcmc.kernel import (
    DIVERGED,
    Info,
    State,
    begin,
    check_step_size,
    choose,
    energy,
    leapfrog,
)
from jaxinf.target import Target


class End(NamedTuple):
    """A leaf at an end of a tree."""

    state: State
    r: Float[Array, " dim"]


class Tree(NamedTuple):
    """The leaves of a trajectory, in short."""

    log_weight: Float[Array, ""]
    """Log of the sum over leaves of exp(-energy), against the start's."""
    r_sum: Float[Array, " dim"]
    proposal: State
    """One of the leaves, drawn by weight."""
    energy: Float[Array, ""]
    """The proposal's."""


class Half(NamedTuple):
    """What is being added to a trajectory: a tree of as many leaves as it has."""

    tree: Tree
    tip: End
    """The last leaf."""
    leaf: Int[Array, ""]
    """How many leaves there are."""
    momenta: Float[Array, "depth dim"]
    """Of leaves that begin an unfinished subtree."""
    sums: Float[Array, "depth dim"]
    """Of the momenta before each of them."""
    acceptance: Float[Array, ""]
    diverged: Bool[Array, ""]
    ended: Bool[Array, ""]
    """Whether it diverged, or a subtree turned."""


class Walk(NamedTuple):
    """A transition under way."""

    ends: tuple[End, End]
    tree: Tree
    depth: Int[Array, ""]
    """The tree has 2^depth leaves."""
    acceptance: Float[Array, ""]
    gradients: Int[Array, ""]
    diverged: Bool[Array, ""]
    ended: Bool[Array, ""]


@record
class NUTS:
    """The transition; see :func:`nuts`."""

    step_size: Leaf
    metric: Leaf
    max_depth: int = static()

    @property
    def goal(self) -> float:
        """The acceptance that warm-up seeks."""
        return 0.8

    def probe(self) -> HMC:
        """Return the trajectory of one step."""
        return HMC(self.step_size, self.metric, 1)

    def init(self, target: Target, z: Float[Array, " dim"]) -> State:
        """Return a chain's state at a position."""
        return begin(target, z)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        """Double a trajectory until it turns, and draw one of its leaves."""
        key_momentum, key_walk = jax.random.split(key)
        start = End(state, jax.random.normal(key_momentum, state.z.shape, state.z.dtype))
        first = energy(*start)
        zero = carry(state.z, 0.0)
        count = zero.astype(jnp.int32)
        tree = Tree(zero, start.r, state, first)
        walk = Walk((start, start), tree, count, zero, count, count > 0, count > 0)

        def double(walk: Walk) -> Walk:
            key_half, key = jax.random.split(jax.random.fold_in(key_walk, walk.depth))
            u = jax.random.uniform(key, (2,), zero.dtype)
            forward = u[0] < 0.5
            half = self._half(key_half, target, walk, forward, first)
            return self._merge(walk, half, forward, u[1])

        walk = jax.lax.while_loop(lambda walk: ~walk.ended, double, walk)
        info = Info(
            acceptance=walk.acceptance / walk.gradients,
            diverged=walk.diverged,
            energy=walk.tree.energy,
            gradients=walk.gradients,
        )
        return walk.tree.proposal, info

    def _half(self, key: Key, target: Target, walk: Walk, forward: Array, first: Array) -> Half:
        """Add as many leaves as there are behind one of the ends."""
        tip = _either(forward, walk.ends[1], walk.ends[0])
        step_size = jnp.where(forward, self.step_size, -self.step_size)
        blank = jnp.broadcast_to(jnp.zeros_like(tip.r), (self.max_depth, tip.r.size))
        empty = walk.tree._replace(
            log_weight=jnp.full_like(first, -jnp.inf), r_sum=jnp.zeros_like(tip.r)
        )
        none = jnp.zeros_like(walk.depth)
        half = Half(empty, tip, none, blank, blank, jnp.zeros_like(first), none > 0, none > 0)

        def add(half: Half) -> Half:
            u = jax.random.uniform(jax.random.fold_in(key, half.leaf), dtype=first.dtype)
            tip = End(*leapfrog(target, self.metric, step_size, *half.tip))
            return _add(half, tip, first, u)

        return jax.lax.while_loop(
            lambda half: ~half.ended & (half.leaf < 1 << walk.depth), add, half
        )

    def _merge(self, walk: Walk, half: Half, forward: Array, u: Array) -> Walk:
        """Join the new half with the tree, where it did not end before."""
        tree, new = walk.tree, half.tree
        taken = ~half.ended & (jnp.log(u) < new.log_weight - tree.log_weight)
        tree = Tree(
            jnp.logaddexp(tree.log_weight, new.log_weight),
            tree.r_sum + new.r_sum,
            choose(taken, new.proposal, tree.proposal),
            jnp.where(taken, new.energy, tree.energy),
        )
        left, right = walk.ends
        left = _either(forward, left, half.tip)
        right = _either(forward, half.tip, right)
        depth = walk.depth + 1
        turning = turned(left.r, right.r, tree.r_sum)
        return Walk(
            ends=(left, right),
            tree=tree,
            depth=depth,
            acceptance=walk.acceptance + half.acceptance,
            gradients=walk.gradients + half.leaf,
            diverged=half.diverged,
            ended=half.ended | turning | (depth == self.max_depth),
        )


def _add(half: Half, tip: End, first: Array, u: Array) -> Half:
    """Add a leaf."""
    value = energy(*tip)
    diverged = ~(value - first < DIVERGED)
    log_weight = jnp.where(diverged, -jnp.inf, first - value)
    tree, before = half.tree, half.tree.r_sum
    total = jnp.logaddexp(tree.log_weight, log_weight)
    taken = jnp.log(u) < log_weight - total
    tree = Tree(
        total,
        before + tip.r,
        choose(taken, tip.state, tree.proposal),
        jnp.where(taken, value, tree.energy),
    )
    # Leaf n begins the subtrees that end at n + 2^j - 1. It is kept in the place that counts
    # the ones of n, which no leaf takes before those subtrees are complete.
    n, ones = half.leaf, jax.lax.population_count(half.leaf)
    place = jnp.arange(half.sums.shape[0])
    begins = (n % 2 == 0) & (place == ones)
    momenta = jnp.where(begins[:, None], tip.r[None], half.momenta)
    sums = jnp.where(begins[:, None], before[None], half.sums)
    ending = jax.lax.population_count(n & ~(n + 1))
    ends = (place >= ones - ending) & (place < ones)
    turning = turned(momenta, tip.r[None], tree.r_sum[None] - sums)
    acceptance = half.acceptance + jnp.exp(jnp.minimum(log_weight, 0))
    ended = diverged | jnp.any(turning & ends)
    return Half(tree, tip, n + 1, momenta, sums, acceptance, diverged, ended)


def nuts(step_size: float = 0.5, *, metric: Covariance | None = None, max_depth: int = 10) -> NUTS:
    r"""The no-U-turn sampler with multinomial draws from its trajectories.

    A trajectory is doubled, forwards or backwards by a coin, until it or one of the subtrees of
    its new half turns: with momenta r (white, see :func:`leapfrog`) and their trapezoidal sum
    :math:`\rho` over the leaves between two ends,

    .. math:: r_- \cdot \rho \le 0 \quad\text{or}\quad r_+ \cdot \rho \le 0.

    The next state is drawn from the leaves in proportion to exp(-energy), the newer half preferred.

    Args:
      step_size: of a leapfrog step, in the metric's standard deviations; warm-up adapts it.
      metric: the covariance that scales the steps; by default white; warm-up adapts it.
      max_depth: the most doublings, at most 30.

    Returns:
      A :class:`Kernel`.

    Raises:
      ValueError: when the step size is not positive or ``max_depth`` not in [1, 30].

    Reference:
      M. Hoffman and A. Gelman, "The No-U-Turn Sampler", JMLR 2014; the multinomial draw and the
      criterion are those of M. Betancourt, "A Conceptual Introduction to Hamiltonian Monte Carlo",
      2017, appendix A.3 and A.4.2; the tree in a loop, with a logarithm of the leaves kept, is that
      of D. Phan, N. Pradhan and M. Jankowiak, "Composable Effects for Flexible and Accelerated
      Probabilistic Programming in NumPyro", 2019, appendix A.
    """
    check_step_size(step_size)
    if not 1 <= max_depth <= 30:
        raise ValueError(f"max_depth must lie in [1, 30], got {max_depth}; 10 is usual.")
    return NUTS(step_size, white() if metric is None else metric, max_depth)


def turned(left: Array, right: Array, r_sum: Array) -> Bool[Array, "..."]:
    """Whether a trajectory turns back at one of its ends."""
    rho = r_sum - (left + right) / 2
    return (jnp.sum(left * rho, axis=-1) <= 0) | (jnp.sum(right * rho, axis=-1) <= 0)


def _either(condition: Array, first: Any, second: Any) -> Any:
    """Return one of two pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
