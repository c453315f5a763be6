"""The no-U-turn sampler, one leapfrog step an iteration."""

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


class Walk(NamedTuple):
    """A transition under way."""

    ends: tuple[End, End]
    tree: Tree
    depth: Int[Array, ""]
    """The tree has 2^depth leaves, and as many are being added."""
    forward: Bool[Array, ""]
    """Whether they are added behind the right end."""
    tip: End
    """The last leaf that was added."""
    leaf: Int[Array, ""]
    """How many leaves the new half has."""
    half: Tree
    momenta: Float[Array, "depth dim"]
    """Of leaves that begin an unfinished subtree of the new half."""
    sums: Float[Array, "depth dim"]
    """Of the momenta before each of them."""
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
        key_momentum, key_walk, key_turns = jax.random.split(key, 3)
        start = End(state, jax.random.normal(key_momentum, state.z.shape, state.z.dtype))
        first = energy(*start)
        turns = jax.random.bits(key_turns, dtype=jnp.uint32)
        zero = carry(state.z, 0.0)
        tree = Tree(zero, start.r, state, first)
        blank = jnp.broadcast_to(jnp.zeros_like(state.z), (self.max_depth, state.z.size))
        count = zero.astype(jnp.int32)
        walk = Walk(
            (start, start), tree, count, turns & 1 == 1, start, count, _empty(tree),
            blank, blank, zero, count, count > 0, count > 0,
        )  # fmt: skip

        def body(walk: Walk) -> Walk:
            u = jax.random.uniform(jax.random.fold_in(key_walk, walk.gradients), (2,), zero.dtype)
            walk = self._add(walk, target, first, u[0])
            full = walk.leaf == 1 << walk.depth
            merged = self._merge(walk, turns, u[1])
            return jax.tree.map(lambda a, b: jnp.where(full & ~walk.ended, a, b), merged, walk)

        walk = jax.lax.while_loop(lambda walk: ~walk.ended, body, walk)
        info = Info(
            acceptance=walk.acceptance / walk.gradients,
            diverged=walk.diverged,
            energy=walk.tree.energy,
            gradients=walk.gradients,
        )
        return walk.tree.proposal, info

    def _add(self, walk: Walk, target: Target, first: Array, u: Array) -> Walk:
        """Add a leaf to the new half."""
        step_size = jnp.where(walk.forward, self.step_size, -self.step_size)
        tip = End(*leapfrog(target, self.metric, step_size, *walk.tip))
        value = energy(*tip)
        diverged = ~(value - first < DIVERGED)
        log_weight = jnp.where(diverged, -jnp.inf, first - value)
        before, half = walk.half.r_sum, walk.half
        total = jnp.logaddexp(half.log_weight, log_weight)
        taken = jnp.log(u) < log_weight - total
        half = Tree(
            total,
            before + tip.r,
            choose(taken, tip.state, half.proposal),
            jnp.where(taken, value, half.energy),
        )
        # Leaf n begins the subtrees that end at n + 2^j - 1. It is kept in the place that counts
        # the ones of n, which no leaf takes before those subtrees are complete.
        n, ones = walk.leaf, jax.lax.population_count(walk.leaf)
        place = jnp.arange(self.max_depth)
        begins = (n % 2 == 0) & (place == ones)
        momenta = jnp.where(begins[:, None], tip.r[None], walk.momenta)
        sums = jnp.where(begins[:, None], before[None], walk.sums)
        ending = jax.lax.population_count(n & ~(n + 1))
        ends = (place >= ones - ending) & (place < ones)
        turning = turned(momenta, tip.r[None], half.r_sum[None] - sums)
        return walk._replace(
            tip=tip,
            leaf=n + 1,
            half=half,
            momenta=momenta,
            sums=sums,
            acceptance=walk.acceptance + jnp.exp(jnp.minimum(log_weight, 0)),
            gradients=walk.gradients + 1,
            diverged=diverged,
            ended=diverged | jnp.any(turning & ends),
        )

    def _merge(self, walk: Walk, turns: Array, u: Array) -> Walk:
        """Join the new half with the tree, and start on the next one."""
        tree, half = walk.tree, walk.half
        taken = jnp.log(u) < half.log_weight - tree.log_weight
        tree = Tree(
            jnp.logaddexp(tree.log_weight, half.log_weight),
            tree.r_sum + half.r_sum,
            choose(taken, half.proposal, tree.proposal),
            jnp.where(taken, half.energy, tree.energy),
        )
        left, right = walk.ends
        left = _either(walk.forward, left, walk.tip)
        right = _either(walk.forward, walk.tip, right)
        depth = walk.depth + 1
        forward = (turns >> depth.astype(jnp.uint32)) & 1 == 1
        return walk._replace(
            ends=(left, right),
            tree=tree,
            depth=depth,
            forward=forward,
            tip=_either(forward, right, left),
            leaf=jnp.zeros_like(walk.leaf),
            half=_empty(tree),
            ended=turned(left.r, right.r, tree.r_sum) | (depth == self.max_depth),
        )


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


def _empty(tree: Tree) -> Tree:
    """Return a tree without leaves."""
    return tree._replace(
        log_weight=jnp.full_like(tree.log_weight, -jnp.inf), r_sum=jnp.zeros_like(tree.r_sum)
    )


def _either(condition: Array, first: Any, second: Any) -> Any:
    """Return one of two pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
