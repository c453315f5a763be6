"""Directed graphs of states: nodes may have several parents, whose messages are then split."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Finite, Gaussian, Key, PyTree, record, static
from jaxinf.core.types import Leaf
from jaxinf.markov.finite import FiniteMessage
from jaxinf.markov.kernel import tilted
from jaxinf.markov.linear_gaussian import LinearGaussian, Quadratic, matrix_of


@record
class Graph:
    """Node i follows its parents, all of them before it, by kernels[i]; a law where it has none."""

    kernels: tuple[Leaf, ...]
    parents: tuple[tuple[int, ...], ...] = static()


class Inward(NamedTuple):
    """What the observations say of every node."""

    messages: tuple[Any, ...]
    """About a node: what is seen at it, and what its children were told to say of it."""
    parts: tuple[tuple[Any, ...], ...]
    """Of a node, about each of its parents."""


def graph(kernels: Sequence[Any], parents: Sequence[Sequence[int]]) -> Graph:
    """A Bayesian network of finite or of linear-Gaussian nodes.

    Args:
      kernels: for every node a law, where it has no parents, or a kernel from its parents' states
        together: numbers laid end to end, finite states numbered row by row.
      parents: of every node, each before it.

    Returns:
      The graph.

    Raises:
      ValueError: where a node stands before a parent, or the lengths differ.
    """
    above = tuple(tuple(int(p) for p in row) for row in parents)
    if len(kernels) != len(above):
        raise ValueError(
            f"every node has a kernel and a list of parents, got {len(kernels)} kernels and "
            f"{len(above)} lists; a node without parents has an empty one."
        )
    for i, row in enumerate(above):
        if any(not 0 <= p < i for p in row):
            raise ValueError(
                f"node {i} has parents {row}, which must be among the nodes before it: number the "
                "nodes so that each comes after its parents."
            )
    return Graph(tuple(kernels), above)


def graph_filter(model: Graph, likelihoods: dict[int, Any]) -> Inward:
    r"""Carry what is seen against the arrows.

    Over a kernel with several parents the message is about all of them together; it is split into
    one for each by averaging over the laws the others have before anything is seen,
    :math:`h_i(x_i) = \int h(x) \prod_{j \neq i} \pi_j(dx_j)`; their scale does not
    matter. With one parent nothing is lost; with more, what the split lost is a weight of
    :func:`graph_guide`.

    Args:
      model: the graph.
      likelihoods: by node, messages of what is seen there.

    Returns:
      :class:`Inward`.

    Reference: van der Meulen, Schauer and Sommer, "Automatic Backward Filtering Forward Guiding for
    Markov processes and graphical models" (2020).
    """
    laws = _laws(model)
    messages: list[Any] = [_unit(law) for law in laws]
    for node, likelihood in likelihoods.items():
        messages[node] = messages[node].times(likelihood)
    parts: list[tuple[Any, ...]] = [()] * len(laws)
    for i in reversed(range(len(laws))):
        above = model.parents[i]
        if not above:
            continue
        pulled = model.kernels[i].pullback(messages[i]).message
        parts[i] = (pulled,) if len(above) == 1 else _split(pulled, [laws[p] for p in above])
        for parent, part in zip(above, parts[i], strict=True):
            messages[parent] = messages[parent].times(part)
    return Inward(tuple(messages), tuple(parts))


def graph_guide(
    key: Key, model: Graph, inward: Inward
) -> tuple[tuple[PyTree, ...], Float[Array, ""]]:
    """Draw all nodes under guidance, along the arrows, with their log weight.

    Args:
      key: a typed key.
      model: the graph.
      inward: from :func:`graph_filter`.

    Returns:
      The nodes' states, and the log weight: its exponential has the evidence of what was seen as
      mean, and is constant where no node has two parents.
    """
    keys = jax.random.split(key, len(model.kernels))
    laws = _laws(model)
    states: list[Any] = []
    total = jnp.zeros(())
    for i, (kernel, above) in enumerate(zip(model.kernels, model.parents, strict=True)):
        if above:
            x = _join([states[p] for p in above], [laws[p] for p in above])
            law, weight = tilted(kernel, x, inward.messages[i])
            states.append(law.sample(keys[i]))
            total += weight(states[i]) - sum(
                part(states[p]) for part, p in zip(inward.parts[i], above, strict=True)
            )
        else:
            law, value = inward.messages[i].weigh(kernel)
            total += value
            states.append(law.sample(keys[i]))
    return tuple(states), total


def _laws(model: Graph) -> list[Any]:
    """Return the nodes' laws before anything is seen, parents taken as independent."""
    laws: list[Any] = []
    for kernel, above in zip(model.kernels, model.parents, strict=True):
        laws.append(kernel.push(_product([laws[p] for p in above])) if above else kernel)
    return laws


def _product(laws: list[Any]) -> Any:
    """Return the law of independent states together."""
    if isinstance(laws[0], Finite):
        joint = laws[0].log_probs
        for law in laws[1:]:
            joint = (joint[:, None] + law.log_probs[None, :]).ravel()
        return Finite(joint)
    roots = [matrix_of(law.covariance, law.mean.size) for law in laws]
    mean = jnp.concatenate([law.mean for law in laws])
    return Gaussian(mean, Dense(jax.scipy.linalg.block_diag(*roots)))


def _join(states: list[Array], laws: list[Any]) -> Array:
    """Return states together as one."""
    if not isinstance(laws[0], Finite):
        return jnp.concatenate(states)
    sizes = [law.log_probs.size for law in laws]
    index = states[0]
    for state, size in zip(states[1:], sizes[1:], strict=True):
        index = index * size + state
    return index


def _unit(law: Any) -> Any:
    """Return the message that says nothing."""
    if isinstance(law, Finite):
        return FiniteMessage(jnp.zeros_like(law.log_probs))
    d = law.mean.size
    return Quadratic(jnp.zeros(()), jnp.zeros(d), jnp.zeros((d, d)))


def _split(message: Any, laws: list[Any]) -> tuple[Any, ...]:
    """Return a message for each of several states, the others averaged out."""
    if isinstance(laws[0], Finite):
        return _split_finite(message, laws)
    return tuple(_average(message, laws, i) for i in range(len(laws)))


def _split_finite(message: FiniteMessage, laws: list[Finite]) -> tuple[FiniteMessage, ...]:
    """See :func:`_split`."""
    values = message.log_values.reshape([law.log_probs.size for law in laws])
    parts = []
    for i in range(len(laws)):
        weighted = values
        for j, law in enumerate(laws):
            if j != i:
                shape = [-1 if k == j else 1 for k in range(len(laws))]
                weighted = weighted + law.log_probs.reshape(shape)
        others = tuple(j for j in range(len(laws)) if j != i)
        parts.append(FiniteMessage(jax.nn.logsumexp(weighted, axis=others)))
    return tuple(parts)


def _average(message: Quadratic, laws: list[Gaussian], i: int) -> Quadratic:
    """Return a message about state i: that of the kernel that leaves it and draws the others."""
    means, roots, blocks = [], [], []
    size = laws[i].mean.size
    for j, law in enumerate(laws):
        d = law.mean.size
        mine = j == i
        means.append(jnp.zeros(d) if mine else law.mean)
        root = matrix_of(law.covariance, d)
        roots.append(jnp.zeros_like(root) if mine else root)
        blocks.append(jnp.eye(d) if mine else jnp.zeros((d, size)))
    root = jax.scipy.linalg.block_diag(*roots)
    spread = LinearGaussian(jnp.concatenate(blocks), jnp.concatenate(means), root)
    return spread.pullback(message).message
