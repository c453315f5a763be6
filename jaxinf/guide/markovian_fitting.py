"""Iterative Markovian fitting: Schroedinger bridges by projections that alternate."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxinf.core import Key, check_key, prepend
from jaxinf.core.progress import tick
from jaxinf.guide.couplings import Independent, Reversed, Walked
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
    """To go on from, as ``state``."""


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
    simulated, to give the next coupling. The bridge is the only fixed point:

    .. math::
       \Pi^{n+1} = \mathrm{proj}_{\mathcal M}(\mathrm{proj}_{\mathcal R}(\Pi^n)), \qquad
       \mathrm{proj}_{\mathcal R}(\Pi) = \int Q^\epsilon(\cdot \mid x_0, x_1)\, d\Pi(x_0, x_1)

    First a process from the end backwards is fitted, on pairs of the coupling, then one from the
    start forwards, on pairs that begin at ``end`` and come from the backward one: each direction
    has one end exactly, and errors do not add up. The Markovian projection is a value:

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
      (2023), algorithm 1 and equations 6 to 10; S. Peluchetti, "Diffusion Bridge Mixture
      Transports" (2023); N. Gushchin et al., "Adversarial Schroedinger Bridge Matching" (2024),
      algorithm 1.

    Example:
      ``guide.markovian_fitting(key, start, end, guide.gaussian_projection(3)).forward.sample(key)``
    """
    check_key(key)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    shapes = [jax.eval_shape(law.sample, key).shape for law in (start, end)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(
            f"start and end must be laws of vectors of one length, got samples of shapes "
            f"{shapes[0]} and {shapes[1]}; ravel them."
        )
    coupling = Independent(start, end) if coupling is None else coupling
    return _fit(key, start, end, coupling, state, projection, rounds, progress)


@partial(jax.jit, static_argnames=("rounds", "progress"))
def _fit(
    key: Key, start: Any, end: Any, coupling: Any, state: PyTree, projection: Any, rounds: int,
    progress: bool,
) -> Bridges:  # fmt: skip
    """See :func:`markovian_fitting`."""
    key_start, key_end, key_rounds = jax.random.split(key, 3)
    if state is None:
        x = start.sample(key_start)
        state = projection.init(key_end, x), projection.init(key_start, x)

    def one(state: PyTree, coupling: Any, key: Key) -> tuple[PyTree, Rounds]:
        first, second = jax.random.split(key)
        back, back_info = projection.fit(first, state[0], Reversed(coupling))
        walked = Walked(end, projection, projection.learnt(back))
        ahead, ahead_info = projection.fit(second, state[1], Reversed(walked))
        learnt = projection.learnt(back), projection.learnt(ahead)
        return (back, ahead), Rounds(*learnt, back_info, ahead_info)

    def later(state: PyTree, row: Any) -> tuple[PyTree, Rounds]:
        i, key = row
        found = one(state, Walked(start, projection, projection.learnt(state[1])), key)
        if progress:
            tick(i, rounds, "Markovian fitting")
        return found

    keys = jax.random.split(key_rounds, rounds)
    state, first = one(state, coupling, keys[0])
    state, rest = jax.lax.scan(later, state, (jnp.arange(1, rounds), keys[1:]))
    table = prepend(first, rest)
    back, ahead = (projection.learnt(half) for half in state)
    return Bridges(Walked(start, projection, ahead), Walked(end, projection, back), table, state)
