"""What a learnt Markovian projection has in common with others: the pairs, the steps, the mean."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxinf.core import Key, Leaf, record, static


class Info(NamedTuple):
    """How the steps of one fit went."""

    loss: Float[Array, ""]
    """Mean of the losses that were finite."""
    skipped: Int[Array, ""]
    """Steps whose loss or gradient was not finite, and which changed nothing."""

    @classmethod
    def none(cls) -> "Info":
        """Return that of a fit without steps."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32))


@runtime_checkable
class Projection(Protocol):
    """A Markovian projection: the Markov process nearest to Brownian bridges between pairs."""

    @property
    def steps(self) -> int:
        """How many transitions lead from 0 to 1."""
        ...

    def init(self, key: Key, x: Float[Array, " d"]) -> PyTree:
        """Return the state of a fit for vectors like x."""
        ...

    def fit(self, key: Key, state: PyTree, coupling: Any) -> tuple[PyTree, Info]:
        """Go on with a fit, on pairs of a coupling."""
        ...

    def learnt(self, state: PyTree) -> PyTree:
        """Return the parameters that :meth:`step` takes."""
        ...

    def step(self, params: PyTree, key: Key, k: Array, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Draw the state at (k + 1) / steps given that at k / steps."""
        ...


@record
class Budget:
    """How a projection is learnt; see :func:`budget`."""

    pools: int = static()
    pool: int = static()
    epochs: int = static()
    batch: int = static()

    @property
    def steps(self) -> int:
        """Training steps of one fit."""
        return self.pools * self.epochs * (self.pool // self.batch)


def budget(pools: int = 1, pool: int = 10_240, epochs: int = 10, batch: int = 128) -> Budget:
    """How a projection is learnt from a coupling.

    Args:
      pools: how many times pairs are drawn in one fit; each draw simulates the other process.
      pool: pairs of a draw.
      epochs: passes over them, each with bridges and times of its own.
      batch: pairs of a training step.

    Returns:
      The budget.

    Raises:
      ValueError: for counts below 1 and a batch that does not divide the pool.
    """
    if min(pools, pool, epochs, batch) < 1 or pool % batch:
        raise ValueError(
            f"counts must be at least 1 and the batch divide the pool, got pools={pools}, "
            f"pool={pool}, epochs={epochs}, batch={batch}."
        )
    return Budget(pools, pool, epochs, batch)


BUDGET = budget()


def learn(
    key: Key,
    state: PyTree,
    coupling: Any,
    budget: Budget,
    step: Callable[[Key, PyTree, tuple[Array, Array]], tuple[PyTree, Info]],
) -> tuple[PyTree, Info]:
    """Take all steps of a fit: draw a pool of pairs, go over it, draw anew."""

    def one(state: PyTree, key: Key) -> tuple[PyTree, Info]:
        draw, order, train = jax.random.split(key, 3)
        pairs = jax.vmap(coupling.sample)(jax.random.split(draw, budget.pool))
        rows = jax.vmap(lambda key: jax.random.permutation(key, budget.pool))(
            jax.random.split(order, budget.epochs)
        ).reshape(-1, budget.batch)

        def body(state: PyTree, row: tuple[Key, Array]) -> tuple[PyTree, Info]:
            key, places = row
            return step(key, state, jax.tree.map(lambda a: a[places], pairs))

        return jax.lax.scan(body, state, (jax.random.split(train, len(rows)), rows))

    state, info = jax.lax.scan(one, state, jax.random.split(key, budget.pools))
    skipped = jnp.sum(info.skipped)
    return state, Info(jnp.sum(info.loss) / jnp.maximum(budget.steps - skipped, 1), skipped)


class Learner(NamedTuple):
    """Parameters in training."""

    params: PyTree
    average: PyTree
    """Their exponential moving average, by which the process is simulated."""
    opt_state: PyTree
    count: Int[Array, ""]


def learner(params: PyTree, optimizer: optax.GradientTransformation) -> Learner:
    """Return the parameters before their first step."""
    return Learner(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))


def descend(
    held: Learner, loss: Callable[[PyTree], Array], optimizer: Any, decay: Leaf
) -> tuple[Learner, Info]:
    """Take a step down a loss; one that is not finite changes nothing and is counted."""
    value, grads = jax.value_and_grad(loss)(held.params)
    fine = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
    updates, opt_state = optimizer.update(grads, held.opt_state, held.params)
    params = optax.apply_updates(held.params, updates)
    n = held.count.astype(value.dtype)
    keep = jnp.minimum(decay, (1 + n) / (10 + n))
    average = optax.incremental_update(params, held.average, 1 - keep)
    moved = Learner(params, average, opt_state, held.count + 1)
    held = jax.tree.map(lambda a, b: jnp.where(fine, a, b), moved, held)
    return held, Info(jnp.where(fine, value, 0.0), 1 - fine.astype(jnp.int32))


def regress(projection: Any, key: Key, state: Learner, coupling: Any) -> tuple[Learner, Info]:
    """Go on with the fit of a projection that has ``loss(params, key, x, end)`` for one pair."""

    def step(key: Key, held: Learner, pairs: tuple[Array, Array]) -> tuple[Learner, Info]:
        keys = jax.random.split(key, len(pairs[0]))

        def loss(params: PyTree) -> Array:
            return jnp.mean(jax.vmap(projection.loss, (None, 0, 0, 0))(params, keys, *pairs))

        return descend(held, loss, projection.optimizer, projection.decay)

    return learn(key, state, coupling, projection.budget, step)


def network_time(t: Array) -> Array:
    """Return the time in [0, 1] as networks of :mod:`jaxinf.nets` take it, in [-2.5, 2.5]."""
    return 5 * (t - 0.5)
