"""Filters, smoothers and backward sampling: one rule for finite and linear-Gaussian states."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Dense, Full, Gaussian, Key, PyTree, first, prepend, record, rest
from jaxinf.core.types import Leaf
from jaxinf.markov.linear_gaussian import matrix_of
from jaxinf.markov.state_space import (
    OverTime,
    StateSpace,
    along,
    at,
    check_observations,
    kind,
    likelihoods,
)


class Filtered(NamedTuple):
    """Laws of the states given what was seen until then."""

    laws: Any
    """[T] of x_t given the observations up to t."""
    log_evidence: Float[Array, " T"]
    """Of the observations up to t, in nats; the last is that of all."""


def filter(
    model: StateSpace,
    observations: PyTree,
    *,
    observed: Bool[Array, " T"] | None = None,
    block: int | None = None,
) -> Filtered:
    r"""Filter: predict by the transition, weigh by the observation.

    The forward algorithm for finite states and Kalman's filter for linear-Gaussian ones:
    :math:`p_t \propto g_t(y_t \mid \cdot)\, (p_{t-1} k_t)`.

    Args:
      model: a state space of exact kernels. Gaussian laws keep their start's form: covariances
        where it is given by ``core.full``, the default is roots of them, which stay exact where
        states are nearly known and which blocks always take.
      observations: a leading axis T of time.
      observed: which of them are there; all by default.
      block: for parallel hardware: times are taken in blocks of this many, side by side; about the
        root of T is good. By default one after another. The answers are the same.

    Returns:
      :class:`Filtered`.

    Raises:
      ValueError: for a mask of another shape, and for a block below one.
      TypeError: for kernels that push no laws forward, or with blocks carry no messages back.

    Reference: Sarkka and Garcia-Fernandez, "Temporal Parallelization of Bayesian Smoothers" (2021)
    for the associative form; here its elements are guided kernels with the messages that guide
    them.
    """
    observations, observed = check_observations(observations, observed)
    for name, kernel in (("transition", model.transition), ("emission", model.emission)):
        inner = kind(kernel)
        if not hasattr(inner, "observe"):
            raise TypeError(
                f"the {name} {type(inner).__name__} pushes no laws forward: filter "
                "markov.extended(model) or markov.unscented(model) if it is a Gaussian step, or "
                "take smc.particle_filter."
            )
        if block is not None and not hasattr(inner, "likelihood"):
            raise TypeError(
                f"the {name} {type(inner).__name__} carries no messages back, by which blocks are "
                "joined: leave block out."
            )
    if block is not None and block < 1:
        raise ValueError(f"block must be at least one time, got {block}.")
    if block is None or len(observed) == 1:
        return _in_turn(model, observations, observed)
    return _in_blocks(model, observations, observed, block)


@jax.jit
def _in_turn(model: Any, observations: Any, observed: Array) -> Filtered:
    """Filter one time after another."""

    def see(prior: Any, emission: Any, y: PyTree, there: Array) -> tuple[Any, Array]:
        law, value = at(model.emission, emission).observe(prior, y)
        law = jax.tree.map(lambda a, b: jnp.where(there, a, b), law, prior)
        return law, jnp.where(there, value, 0.0)

    def step(carry: Any, slot: Any) -> Any:
        law, total = carry
        transition, view = slot
        law, value = see(at(model.transition, transition).push(law), *view)
        return (law, total + value), (law, total + value)

    views = along(model.emission), observations, observed
    start = see(prior_of(model), *first(views))
    _, later = jax.lax.scan(step, start, (along(model.transition), rest(views)))
    return Filtered(*prepend(start, later))


def prior_of(model: Any) -> Any:
    """Return the initial law in the form that pushing makes of laws."""
    law = model.initial
    if not isinstance(law, Gaussian) or isinstance(law.covariance, Full):
        return law
    factor = matrix_of(law.covariance, law.mean.size).astype(law.mean.dtype)
    return Gaussian(law.mean, Dense(factor))


@record
class Element:
    """A kernel guided by what was seen in a stretch of time, and the message of that."""

    kernel: Leaf
    message: Leaf

    def then(self, later: "Element") -> "Element":
        """Join two stretches: the later message guides the earlier kernel."""
        back, guided = self.kernel.pullback(later.message)
        return Element(guided.kernel.then(later.kernel), self.message.times(back))


@partial(jax.jit, static_argnames="block")
def _in_blocks(model: Any, observations: Any, observed: Array, block: int) -> Filtered:
    """Filter all times together."""
    seen = likelihoods(model, observations, observed)

    def element(transition: Any, likelihood: Any) -> Element:
        back, guided = at(model.transition, transition).pullback(likelihood)
        return Element(guided.kernel, back)

    def act(state: Any, element: Element) -> Any:
        law, total = state
        law, value = element.message.weigh(law)
        return element.kernel.push(law), total + value

    axes = (0 if isinstance(model.transition, OverTime) else None, 0)
    later = jax.vmap(element, in_axes=axes)(along(model.transition), rest(seen))
    start = first(seen).weigh(prior_of(model))
    return Filtered(*prepend(start, carried(start, later, act, block)))


def carried(start: Any, elements: Any, act: Any, block: int) -> Any:
    """Carry a state through elements, return it after each; blocks of times lie side by side.

    Elements are joined by ``then`` within blocks, then the state is carried over block after block,
    to all times within at once: two loops, where an associative scan unrolls its levels.
    """
    length = jax.tree.leaves(elements)[0].shape[0]
    blocks = -(-length // block)

    def cut(leaf: Array) -> Array:
        tail = jnp.broadcast_to(leaf[-1:], (blocks * block - length, *leaf.shape[1:]))
        return jnp.concatenate([leaf, tail]).reshape(blocks, block, *leaf.shape[1:])

    def join(total: Any, element: Any) -> Any:
        total = total.then(element)
        return total, total

    def scan(elements: Any) -> Any:
        start = first(elements)
        _, later = jax.lax.scan(join, start, rest(elements))
        return prepend(start, later)

    within = jax.vmap(scan)(jax.tree.map(cut, elements))

    def pass_on(state: Any, block: Any) -> tuple[Any, Any]:
        after = jax.vmap(lambda element: act(state, element))(block)
        return jax.tree.map(lambda a: a[-1], after), after

    _, after = jax.lax.scan(pass_on, start, within)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:length], after)


def smooth(model: StateSpace, filtered: Filtered, *, block: int | None = None) -> Any:
    r"""Smooth: the laws of the states given all observations.

    Each transition is inverted at the filtered law before it (Rauch, Tung and Striebel's gains for
    Gaussian states), and the last law is pushed back through the inverses:
    :math:`s_{t} = s_{t+1}\, k_{t+1}^\dagger[p_t]`.

    Args:
      model: a state space of exact kernels.
      filtered: from :func:`filter`.
      block: as in :func:`filter`.

    Returns:
      Laws, a leading axis T of time.

    Raises:
      ValueError: for a block below one.
    """
    if block is not None and block < 1:
        raise ValueError(f"block must be at least one time, got {block}.")
    return _smooth(model, filtered, block)


def inverses(model: Any, filtered: Filtered) -> Any:
    """Return the kernels from x_{t+1} to x_t given what was seen until t, T - 1 of them."""
    earlier = jax.tree.map(lambda a: a[:-1], filtered.laws)

    def invert(transition: Any, law: Any) -> Any:
        return at(model.transition, transition).invert(law)

    axes = (0 if isinstance(model.transition, OverTime) else None, 0)
    return jax.vmap(invert, in_axes=axes)(along(model.transition), earlier)


@partial(jax.jit, static_argnames="block")
def _smooth(model: Any, filtered: Any, block: int | None) -> Any:
    """See :func:`smooth`."""
    kernels = inverses(model, filtered)
    last = jax.tree.map(lambda a: a[-1], filtered.laws)
    if block is not None:
        flipped = jax.tree.map(lambda a: a[::-1], kernels)
        laws = carried(last, flipped, lambda law, kernel: kernel.push(law), block)
        laws = jax.tree.map(lambda a: a[::-1], laws)
    else:

        def step(law: Any, kernel: Any) -> tuple[Any, Any]:
            law = kernel.push(law)
            return law, law

        _, laws = jax.lax.scan(step, last, kernels, reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), laws, last)


def sample_path(key: Key, model: StateSpace, filtered: Filtered) -> PyTree:
    """Draw a path of the states given all observations, from the last to the first.

    Args:
      key: a typed key; many paths by ``jax.vmap`` over keys.
      model: a state space of exact kernels.
      filtered: from :func:`filter`.

    Returns:
      States, a leading axis T of time. (Forward filtering, backward sampling.)
    """
    return _sample_path(key, model, filtered)


@jax.jit
def _sample_path(key: Key, model: Any, filtered: Any) -> Any:
    """See :func:`sample_path`."""
    key_last, key_steps = jax.random.split(key)
    last = jax.tree.map(lambda a: a[-1], filtered.laws).sample(key_last)

    def step(x: Any, slot: Any) -> tuple[Any, Any]:
        key, kernel = slot
        x = kernel.sample(key, x)
        return x, x

    kernels = inverses(model, filtered)
    keys = jax.random.split(key_steps, jax.tree.leaves(kernels)[0].shape[0])
    _, path = jax.lax.scan(step, last, (keys, kernels), reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), path, last)
