"""Trees of states: messages up from the leaves, guided states down from the root."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf.core import Key, PyTree, first, record, rest, static
from jaxinf.core.types import Leaf
from jaxinf.markov.kernel import tilted


@record
class Tree:
    """Node i > 0 follows node parents[i] < i by ``kernels[i - 1]``; node 0 is the root."""

    initial: Leaf
    kernels: Leaf
    """A record of kernels with a leading axis, one for every node but the root."""
    parents: tuple[int, ...] = static()
    """Of the nodes 1, 2, ..."""


class Upward(NamedTuple):
    """What the observations say of every node."""

    messages: Any
    """[nodes] about a node: all that is seen at or below it."""
    pulled: Any
    """[nodes - 1] the same of node i > 0, about its parent."""
    log_evidence: Float[Array, ""]


def tree(initial: Any, kernels: Any, parents: Int[np.ndarray, " n"] | list[int]) -> Tree:
    """A Markov process that branches.

    Args:
      initial: the law of the root.
      kernels: one record with a leading axis of n, the kernel into every node but the root.
      parents: of the nodes 1 to n, each before its child: ``parents[i - 1] < i``.

    Returns:
      The tree.

    Raises:
      ValueError: where a node stands before its parent.
    """
    above = tuple(int(p) for p in parents)
    for i, parent in enumerate(above, start=1):
        if not 0 <= parent < i:
            raise ValueError(
                f"node {i} has parent {parent}, which must be one of the nodes 0 to {i - 1}: "
                "number the nodes so that each comes after its parent."
            )
    return Tree(initial, kernels, above)


def tree_filter(model: Tree, likelihoods: Any, surrogate: Tree | None = None) -> Upward:
    r"""Carry what is seen up to the root: at a branching the messages of the children multiply.

    .. math:: h_v = e_v \prod_{c \text{ child of } v} \tilde k_c h_c

    Args:
      model: the tree.
      likelihoods: messages, a leading axis of nodes, the root's first: zeros where nothing is seen.
      surrogate: a tree of exact kernels about the model; by default the model itself.

    Returns:
      :class:`Upward`.

    Reference: van der Meulen, Schauer and Sommer, "Automatic Backward Filtering Forward Guiding for
    Markov processes and graphical models" (2020).
    """
    return _up(model if surrogate is None else surrogate, likelihoods)


@jax.jit
def _up(proxy: Any, messages: Any) -> Upward:
    """See :func:`tree_filter`."""
    nodes = jnp.arange(1, len(proxy.parents) + 1)

    def step(messages: Any, slot: Any) -> tuple[Any, Any]:
        i, parent, kernel = slot
        below = jax.tree.map(lambda a: a[i], messages)
        pulled = kernel.pullback(below).message
        above = jax.tree.map(lambda a: a[parent], messages).times(pulled)
        return jax.tree.map(lambda a, b: a.at[parent].set(b), messages, above), pulled

    slots = nodes, jnp.asarray(proxy.parents), proxy.kernels
    messages, pulled = jax.lax.scan(step, messages, slots, reverse=True)
    root = first(messages)
    return Upward(messages, pulled, root.weigh(proxy.initial)[1])


def tree_guide(
    key: Key, model: Tree, up: Upward, log_ratio: Any = None
) -> tuple[PyTree, Float[Array, ""]]:
    """Draw the states of a tree under guidance, with their log weight.

    Args:
      key: a typed key.
      model: its kernels must have ``tilt``.
      up: from :func:`tree_filter`.
      log_ratio: of (states), what the likelihoods of what was seen are more than the messages said,
        in nats, where these were a surrogate's.

    Returns:
      States, a leading axis of nodes, and the log weight: its exponential has the evidence as mean,
      and is constant where the surrogate is the model.
    """
    states, log_weight = _down(key, model, up)
    return states, log_weight if log_ratio is None else log_weight + log_ratio(states)


@jax.jit
def _down(key: Key, model: Any, up: Any) -> tuple[Any, Array]:
    """See :func:`tree_guide`."""
    key_root, key_steps = jax.random.split(key)
    law, log_weight = first(up.messages).weigh(model.initial)
    root = law.sample(key_root)
    n = len(model.parents)
    states = jax.tree.map(lambda a: jnp.zeros((n + 1, *a.shape), a.dtype).at[0].set(a), root)

    def step(carry: Any, slot: Any) -> tuple[Any, None]:
        states, log_weight = carry
        key, i, parent, kernel, message, pulled = slot
        x = jax.tree.map(lambda a: a[parent], states)
        law, weight = tilted(kernel, x, message)
        drawn = law.sample(key)
        states = jax.tree.map(lambda a, b: a.at[i].set(b), states, drawn)
        return (states, log_weight + weight(drawn) - pulled(x)), None

    below = rest(up.messages)
    keys = jax.random.split(key_steps, n)
    slots = keys, jnp.arange(1, n + 1), jnp.asarray(model.parents), model.kernels, below, up.pulled
    (states, log_weight), _ = jax.lax.scan(step, (states, log_weight), slots)
    return states, log_weight
