"""Iterative Markovian fitting: Schroedinger bridges by projections that alternate."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxinf.core import Key, check_key
from jaxinf.core.progress import tick
from jaxinf.guide.couplings import Chosen, Independent, Reversed, Walked
from jaxinf.guide.projection import Info, Projection


class Rounds(NamedTuple):
    """What each round left, with the rounds as leading axis."""

    backward: PyTree
    """Parameters of the process from the end, the first of a round."""
    forward: PyTree
    backward_info: Info
    forward_info: Info


class Bridges(NamedTuple):
    """What :func:`markovian_fitting` found."""

    forward: Walked
    """From the start to the end: ``sample(key)``, ``walk(key, x)`` and ``path(key, x)``."""
    backward: Walked
    """From the end to the start, in its own time."""
    rounds: Rounds
    state: PyTree
    """To go on from, as ``state``; of both directions, the backward one first."""


def markovian_fitting(
    key: Key,
    start: Any,
    end: Any,
    projection: Projection,
    *,
    rounds: int = 5,
    coupling: Any = None,
    state: PyTree = None,
    progress: bool = False,
) -> Bridges:
    r"""The Schroedinger bridge between two laws, by iterative Markovian fitting (IMF).

    A round projects twice. Brownian bridges between the pairs of a coupling are a process with the
    right ends that is not Markov; its Markovian projection has the same marginals and is
    simulated, to give the next coupling. The bridge is the only fixed point of

    .. math::
       \Pi^{n+1} = \mathrm{proj}_{\mathcal M}(\mathrm{proj}_{\mathcal R}(\Pi^n)), \qquad
       \mathrm{proj}_{\mathcal R}(\Pi) = \int Q^\epsilon(\cdot \mid x_0, x_1)\, d\Pi(x_0, x_1)

    The first process runs from the end backwards, the second, fitted to its pairs, forwards: each
    has one end exactly, and errors do not add up. The projection is a value:

    * :func:`drift_projection`, in continuous time: Diffusion Schroedinger Bridge Matching;
    * :func:`adversarial_projection`, in a few steps: Adversarial Schroedinger Bridge Matching;
    * :func:`regression_projection`, in a few steps with Gaussian transitions;
    * :func:`gaussian_projection`, exact in a few steps for Gaussian laws.

    Args:
      key: a typed key.
      start: law of x_0 on vectors, with ``sample(key)``.
      end: law of x_1.
      projection: how the Markov process is fitted, and its eps.
      rounds: each fits both directions.
      coupling: of the first round, with ``sample(key) -> (x_0, x_1)``: ``Independent(start, end)``
        by default (DSBM-IMF, D-IMF); ``Noised(start, eps)`` is DSBM-IPF.
      state: of an earlier run, whose parameters are gone on from.
      progress: whether a bar counts the rounds.

    Returns:
      :class:`Bridges`. Its ``rounds`` count training steps that were not finite.

    Raises:
      ValueError: for fewer than one round, and ends that are not vectors of one length.

    Reference:
      Y. Shi, V. De Bortoli, A. Campbell and A. Doucet, "Diffusion Schroedinger Bridge Matching"
      (2023), algorithm 1; S. Peluchetti, "Diffusion Bridge Mixture
      Transports" (2023); N. Gushchin et al., "Adversarial Schroedinger Bridge Matching" (2024).

    Example:
      ``guide.markovian_fitting(key, start, end, guide.gaussian_projection(3)).forward.sample(key)``
    """
    _check(key, start, end, rounds)
    coupling = Independent(start, end) if coupling is None else coupling
    return _fit(key, start, end, coupling, state, projection, rounds, progress)


def _check(key: Key, start: Any, end: Any, rounds: int) -> None:
    """Raise for no round, and ends that are not vectors of one length."""
    check_key(key)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    shapes = [jax.eval_shape(law.sample, key).shape for law in (start, end)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(
            f"start and end must be laws of vectors of one length, got samples of shapes "
            f"{shapes[0]} and {shapes[1]}; ravel them."
        )


@partial(jax.jit, static_argnames=("rounds", "progress"))
def _fit(
    key: Key, start: Any, end: Any, coupling: Any, state: PyTree, projection: Any, rounds: int,
    progress: bool,
) -> Bridges:  # fmt: skip
    """See :func:`markovian_fitting`."""
    key_first, key_second, key_start, key_fits = jax.random.split(key, 4)
    if state is None:
        x = start.sample(key_start)
        state = jax.vmap(projection.init, (0, None))(jnp.stack([key_first, key_second]), x)

    def fit(state: PyTree, row: Any) -> tuple[PyTree, Any]:
        """Take the place of one direction, 0 for backward; one program serves all fits."""
        i, key = row
        back, ahead = (projection.learnt(_half(state, way)) for way in (0, 1))
        sources = (
            coupling,
            Walked(start, projection, ahead),
            Reversed(Walked(end, projection, back)),
        )
        # pairs from the start on; a backward process is fitted to the same pairs, reversed
        way = i % 2
        which = jnp.where(i == 0, 0, 1 + way)
        pairs = Chosen(which, tuple(Chosen(way, (Reversed(one), one)) for one in sources))
        fitted, info = projection.fit(key, _half(state, way), pairs)
        if progress:
            tick(i, 2 * rounds, "Markovian fitting")
        state = jax.tree.map(lambda a, b: a.at[way].set(b), state, fitted)
        return state, (projection.learnt(fitted), info)

    rows = jnp.arange(2 * rounds), jax.random.split(key_fits, 2 * rounds)
    state, table = jax.lax.scan(fit, state, rows)
    back, ahead = (projection.learnt(_half(state, way)) for way in (0, 1))
    backward, forward = (_half(table, slice(way, None, 2)) for way in (0, 1))
    found = Rounds(backward[0], forward[0], backward[1], forward[1])
    return Bridges(Walked(start, projection, ahead), Walked(end, projection, back), found, state)


def _half(tree: PyTree, way: Any) -> PyTree:
    """Return what a tree holds of one direction."""
    return jax.tree.map(lambda a: a[way], tree)
