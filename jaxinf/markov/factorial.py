"""Factorial hidden Markov models, filtered and smoothed locally."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Finite, prepend, record, static
from jaxinf.core.finite import normalise
from jaxinf.core.types import Leaf
from jaxinf.markov.finite import FiniteKernel


@record
class Factorial:
    """Chains that move by themselves and are seen together, through factors of a few of them."""

    initial: Leaf
    """[chains, n] log probabilities."""
    transition: Leaf
    """[chains, n, n] log probabilities."""
    factors: tuple[tuple[int, ...], ...] = static()
    """Of which chains each factor is a function."""
    blocks: tuple[tuple[int, ...], ...] = static()
    """A partition of the chains, all parts of one size: filtered together within a part."""
    radius: int = static()
    """How far factors are taken account of, in steps from factor to factor."""


class Plan(NamedTuple):
    """Parts whose neighbourhoods look alike, so that they are updated in one go."""

    parts: tuple[int, ...]
    near: tuple[tuple[int, ...], ...]
    """For each, the parts in its neighbourhood, itself first."""
    factors: tuple[tuple[int, ...], ...]
    """For each, the factors."""
    labels: tuple[tuple[int, ...], ...]
    """Of each factor's axes, as places of chains in the neighbourhood; the same for all."""


def factorial(
    initial: Float[Array, "v n"],
    transition: Float[Array, "v n n"],
    factors: Sequence[Sequence[int]],
    *,
    radius: int,
    blocks: Sequence[Sequence[int]] | None = None,
) -> Factorial:
    """A factorial hidden Markov model with its rule of locality.

    Args:
      initial: probabilities of the v chains' first states, shape (v, n).
      transition: their matrices, shape (v, n, n).
      factors: for every factor of the observation's likelihood the chains that it depends on.
      radius: m: a part is updated by the factors that touch it (0), by those that touch the chains
        of these (1), and so on. The work grows with n to the number of chains so reached.
      blocks: a partition of the chains into parts of one size; by default each by itself. One part
        of all chains is the exact filter.

    Returns:
      The model, for :func:`factorial_filter`.

    Raises:
      ValueError: where the blocks are no partition into equal parts, or a factor names a chain that
        there is not.
    """
    chains, _ = jnp.shape(initial)
    blocks = [[v] for v in range(chains)] if blocks is None else blocks
    parts = tuple(tuple(int(v) for v in part) for part in blocks)
    if sorted(itertools.chain(*parts)) != list(range(chains)) or len({*map(len, parts)}) != 1:
        raise ValueError(
            f"blocks must hold every chain 0 to {chains - 1} once, in parts of one size, got "
            f"{blocks}."
        )
    seen = tuple(tuple(int(v) for v in factor) for factor in factors)
    if any(not 0 <= v < chains for factor in seen for v in factor):
        raise ValueError(f"factors must be of the chains 0 to {chains - 1}, got {factors}.")
    if radius < 0:
        raise ValueError(f"radius must be 0, the factors that touch a part, or more; got {radius}.")
    logs = jnp.log(jnp.asarray(initial)), jnp.log(jnp.asarray(transition))
    return Factorial(*logs, seen, parts, int(radius))


def factorial_filter(
    model: Factorial, log_likelihoods: Float[Array, "T f *n"]
) -> tuple[Float[Array, "T b s"], Float[Array, "T b"]]:
    r"""Filter every part by the factors near it, the other parts taken as independent.

    .. math:: \pi_t^K(x^K) \propto \sum_{x^{\setminus K}} \prod_{f \in N^m(K)} g_f(y_t, x^{f})
              \prod_{L} (\pi_{t-1} P)^{L}(x^L)

    The Graph Filter: its cost grows with the number of chains, not with the number of their joint
    states, and its local error falls geometrically with the radius m.

    Args:
      model: from :func:`factorial`.
      log_likelihoods: of what was seen, for every time and factor a table over the states of its
        chains, in nats: all factors are of equally many chains, shape (T, f, n, ..., n).

    Returns:
      Log probabilities of the parts' states, shape (T, b, n^size), states of a part numbered row by
      row; and the logarithm of what each part's update summed to, which is that of the predictive
      density of the factors near it.

    Raises:
      ValueError: where the tables do not fit the factors.

    Reference: Rimella and Whiteley, "Exploiting locality in high-dimensional factorial hidden
    Markov models" (2022), algorithm 1.
    """
    arity = {len(factor) for factor in model.factors}
    n = model.initial.shape[-1]
    expected = (len(model.factors), *[n] * max(arity))
    if len(arity) != 1 or jnp.shape(log_likelihoods)[1:] != expected:
        raise ValueError(
            f"log_likelihoods must have shape (T, {', '.join(map(str, expected))}), a table over "
            f"the states of each factor's chains, got {jnp.shape(log_likelihoods)}; all factors "
            "must be of equally many chains: repeat none, and pad a table by a chain that it does "
            "not depend on."
        )
    return _filter(model, jnp.asarray(log_likelihoods))


@jax.jit
def _filter(model: Any, log_likelihoods: Array) -> tuple[Array, Array]:
    """See :func:`factorial_filter`."""
    plans = _plans(model)
    start, kernels = _together(model)

    def update(laws: Array, tables: Array) -> tuple[Array, Array]:
        new, sums = jnp.zeros_like(laws), jnp.zeros(laws.shape[0], laws.dtype)
        for plan in plans:
            one = partial(_update, plan.labels, model.initial.shape[-1])
            found, total = jax.vmap(one)(
                laws[jnp.array(plan.near)], tables[jnp.array(plan.factors)]
            )
            here = jnp.array(plan.parts)
            new, sums = new.at[here].set(found), sums.at[here].set(total)
        return new, sums

    def step(laws: Array, tables: Array) -> Any:
        laws, sums = update(
            jax.vmap(lambda k, p: k.push(Finite(p)).log_probs)(kernels, laws), tables
        )
        return laws, (laws, sums)

    begin = update(start, log_likelihoods[0])
    _, later = jax.lax.scan(step, begin[0], log_likelihoods[1:])
    laws, sums = prepend(begin, later)
    return laws, sums


def _update(
    labels: tuple[tuple[int, ...], ...], n: int, laws: Array, tables: Array
) -> tuple[Array, Array]:
    """Return one part's law, the first of those near it, and the log of the sum."""
    size = round(math.log(laws.shape[1], n))
    chains = size * laws.shape[0]

    def along(table: Array, axes: Sequence[int]) -> Array:
        """Lay a table out over all chains of the neighbourhood."""
        order = sorted(range(len(axes)), key=lambda k: axes[k])
        shape = [n if v in axes else 1 for v in range(chains)]
        return jnp.transpose(table, order).reshape(shape)

    total = jnp.zeros([1] * chains, laws.dtype)
    for k, law in enumerate(laws):
        total = total + along(law.reshape([n] * size), range(k * size, (k + 1) * size))
    for axes, table in zip(labels, tables, strict=True):
        total = total + along(table, axes)
    whole = jnp.broadcast_to(total, [n] * chains).reshape(laws.shape[1], -1)
    return normalise(jax.nn.logsumexp(whole, axis=1))


def _together(model: Factorial) -> tuple[Array, FiniteKernel]:
    """Return the parts' initial laws and kernels, over the states of all their chains."""
    laws, kernels = [], []
    for part in model.blocks:
        law = model.initial[part[0]]
        kernel = FiniteKernel(model.transition[part[0]])
        for v in part[1:]:
            law = (law[:, None] + model.initial[v][None]).ravel()
            kernel = kernel.beside(FiniteKernel(model.transition[v]))
        laws.append(law)
        kernels.append(kernel)
    return jnp.stack(laws), jax.tree.map(lambda *a: jnp.stack(a), *kernels)


def _plans(model: Factorial) -> list[Plan]:
    """Return the parts, those of one form together."""
    of = {v: k for k, part in enumerate(model.blocks) for v in part}
    forms: dict[Any, list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = {}
    for k, part in enumerate(model.blocks):
        reached, near = set(part), set()
        for _ in range(model.radius + 1):
            near = {i for i, f in enumerate(model.factors) if reached & set(f)}
            reached = reached.union(*(model.factors[i] for i in near))
        others = sorted({of[v] for v in reached} - {k})
        parts = (k, *others)
        place = {v: i for i, v in enumerate(itertools.chain(*(model.blocks[p] for p in parts)))}
        factors = tuple(sorted(near))
        labels = tuple(tuple(place[v] for v in model.factors[i]) for i in factors)
        forms.setdefault((len(parts), labels), []).append((k, parts, factors))
    plans = []
    for (_, labels), members in forms.items():
        parts, near, factors = zip(*members, strict=True)
        plans.append(Plan(parts, near, factors, labels))
    return plans


def factorial_smooth(model: Factorial, filtered: Float[Array, "T b s"]) -> Float[Array, "T b s"]:
    """Smooth every part by itself: filter and transitions are products, so is the way back.

    Args:
      model: from :func:`factorial`.
      filtered: the laws of :func:`factorial_filter`.

    Returns:
      Log probabilities of the parts' states given all observations, shape (T, b, n^size).

    Reference: Rimella and Whiteley, "Exploiting locality in high-dimensional factorial hidden
    Markov models" (2022), algorithm 2 (the Graph Smoother).
    """
    return _smooth(model, filtered)


@jax.jit
def _smooth(model: Any, filtered: Array) -> Array:
    """See :func:`factorial_smooth`."""
    _, kernels = _together(model)

    def back(kernel: FiniteKernel, law: Array, later: Array) -> Array:
        return kernel.invert(Finite(law)).push(Finite(later)).log_probs

    def step(later: Array, laws: Array) -> tuple[Array, Array]:
        laws = jax.vmap(back)(kernels, laws, later)
        return laws, laws

    _, earlier = jax.lax.scan(step, filtered[-1], filtered[:-1], reverse=True)
    return jnp.concatenate([earlier, filtered[-1:]])
