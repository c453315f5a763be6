"""Coin sampling: particles that bet on a direction, without a learning rate."""

from functools import partial
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxinf.core import Scalar, is_concrete
from jaxinf.core.progress import tick
from jaxinf.mc.svgd import svgd
from jaxinf.target import Target


@runtime_checkable
class Direction(Protocol):
    """Where particles should move, up to a constant; a pytree."""

    def __call__(self, target: Target, particles: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Return the direction of every particle."""
        ...


class CoinState(NamedTuple):
    """What the bettor of each coordinate remembers, every field a pytree like the parameters."""

    start: PyTree
    """Where the parameters began."""
    total: PyTree
    """The sum of the outcomes c, minus gradients."""
    absolute: PyTree
    """The sum G of their absolute values."""
    largest: PyTree
    """The largest absolute value L so far."""
    reward: PyTree
    """The money R won, never below 0."""


class Info(NamedTuple):
    """What a run tells of every step, [steps]."""

    speed: Float[Array, " steps"]
    """The root mean square of the direction, in its own unit."""
    moved: Float[Array, " steps"]
    """The root mean square of the step taken, in the particles' unit."""
    finite: Bool[Array, " steps"]
    """Whether direction and particles were finite; from the first step on where they were not,
    particles stay where they were."""


class Run(NamedTuple):
    """What a run found."""

    particles: Float[Array, "n dim"]
    info: Info
    state: CoinState


def coin_betting(alpha: Scalar = 0.0) -> optax.GradientTransformation:
    r"""The coin-betting update as a gradient transformation, which needs no learning rate.

    .. math:: x_t = x_0 + \frac{\sum_{s \le t} c_s}{L_t \max(G_t + L_t, \alpha L_t)}
              \bigl(L_t + R_t\bigr), \qquad
              L_t = \max(L_{t-1}, |c_t|), \quad G_t = G_{t-1} + |c_t|, \quad
              R_t = \max(R_{t-1} + (x_{t-1} - x_0) c_t, 0)

    for each coordinate, with c minus the gradient. The path does not change when all gradients are
    multiplied by one positive constant. A coordinate whose gradients have all been 0 stays.

    Args:
      alpha: at most how boldly is bet while few outcomes have been seen; 0 is the paper's
        algorithm 1, and 100 what it takes for neural networks.

    Returns:
      A ``optax.GradientTransformation``; ``update(gradients, state, params)`` needs the parameters,
      and its updates are added to them. Apply it last: a rescaling after it is not learning-rate
      free.

    Raises:
      ValueError: for an alpha below 0, and on ``update`` without parameters.

    Reference:
      L. Sharrock and C. Nemeth, "Coin Sampling: Gradient-Based Bayesian Inference without Learning
      Rates", ICML 2023, algorithm 1 with the adaptive constants of its section 3; F. Orabona and T.
      Tommasi, "Training Deep Networks without Learning Rates Through Coin Betting", NeurIPS 2017,
      algorithm 2.

    Example:
      ``state = coin_betting().init(params)``
    """
    if is_concrete(alpha) and not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}; 0 is the paper's.")

    def init(params: PyTree) -> CoinState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return CoinState(jax.tree.map(jnp.asarray, params), zero, zero, zero, zero)

    def update(
        updates: PyTree, state: CoinState, params: PyTree = None
    ) -> tuple[PyTree, CoinState]:
        if params is None:
            raise ValueError(
                "coin betting measures its reward from where it began and needs the parameters: "
                "update(gradients, state, params)"
            )
        total = jax.tree.map(lambda sum, g: sum - g, state.total, updates)
        absolute = jax.tree.map(lambda sum, g: sum + jnp.abs(g), state.absolute, updates)
        largest = jax.tree.map(lambda a, g: jnp.maximum(a, jnp.abs(g)), state.largest, updates)
        reward = jax.tree.map(
            lambda r, x, x0, g: jnp.maximum(r - (x - x0) * g, 0),
            *(state.reward, params, state.start, updates),
        )
        bet = jax.tree.map(partial(_bet, alpha), total, absolute, largest, reward)
        step = jax.tree.map(lambda x0, b, x: (x0 + b) - x, state.start, bet, params)
        return step, CoinState(state.start, total, absolute, largest, reward)

    return optax.GradientTransformation(init, cast(Any, update))


def _bet(alpha: Scalar, total: Array, absolute: Array, largest: Array, reward: Array) -> Array:
    """Return the signed bet, 0 where no outcome has been seen."""
    unit = jnp.where(largest > 0, largest, 1)
    # ratios, not products of small numbers: no underflow where the direction is tiny
    bold = jnp.maximum(absolute / unit + 1, alpha)
    return total / unit / bold * (1 + reward / unit)


def coin(
    target: Target,
    particles: Float[Array, "n dim"],
    *,
    direction: Direction | None = None,
    steps: int = 1000,
    alpha: Scalar = 0.0,
    progress: bool = False,
) -> Run:
    r"""Coin sampling: move particles to a target along a direction, without a learning rate.

    Every coordinate of every particle is a bettor (:func:`coin_betting`) whose coin is the
    direction there:

    .. math:: c_t^i = \phi_{\hat\mu_{t-1}}(x_{t-1}^i), \qquad
              \hat\mu = \tfrac1n \textstyle\sum_i \delta_{x^i}

    Compiled once for kinds and shapes: other data, kernels and starts recompile nothing. It draws
    nothing. Composes under ``jit``, ``vmap`` and ``grad``.

    Args:
      target: what to go to; its ``log_prob`` needs a gradient.
      particles: where they begin.
      direction: ``svgd()``, by default, ``ksd()``, ``lawgd(target, low, high)``, or any
        :class:`Direction`.
      steps: how many.
      alpha: see :func:`coin_betting`.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Run`: the particles at the end, what was done in each step, and the bettors' state.

    Raises:
      ValueError: for particles of another shape than (n, target.dim), of fewer than two, for no
        step and for an alpha below 0.

    Reference:
      L. Sharrock and C. Nemeth, "Coin Sampling: Gradient-Based Bayesian Inference without Learning
      Rates", ICML 2023, algorithms 2 (SVGD) and, in its appendix, those of LAWGD and KSDD.

    Example:
      ``mc.coin(target, jax.random.normal(key, (50, target.dim)), steps=3000).particles``
    """
    shape = jnp.shape(particles)
    if len(shape) != 2 or shape[0] < 2 or shape[1] != target.dim:
        raise ValueError(
            f"particles must have shape (n, {target.dim}) with n at least 2, a row for each, got "
            f"{shape}."
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    coin_betting(alpha)  # its checks, while alpha is a number
    direction = svgd() if direction is None else direction
    return _coin(target, jnp.asarray(particles), direction, alpha, steps, progress)


@partial(jax.jit, static_argnames=("steps", "progress"))
def _coin(
    target: Any, particles: Array, direction: Any, alpha: Scalar, steps: int, progress: bool
) -> Run:
    """See :func:`coin`."""
    betting: Any = coin_betting(alpha)

    def step(carry: tuple[Array, CoinState, Array], i: Array) -> tuple[Any, Info]:
        x, state, good = carry
        velocity = direction(target, x)
        update, new = betting.update(-velocity, state, x)
        good = good & jnp.all(jnp.isfinite(velocity)) & jnp.all(jnp.isfinite(update))
        later = jax.tree.map(partial(jnp.where, good), (x + update, new), (x, state))
        if progress:
            tick(i, steps, "coins")
        moved = jnp.where(good, jnp.sqrt(jnp.mean(jnp.square(update))), 0)
        return (*later, good), Info(jnp.sqrt(jnp.mean(jnp.square(velocity))), moved, good)

    good = jnp.all(jnp.isfinite(particles))
    start = (particles, betting.init(particles), good)
    (x, state, _), info = jax.lax.scan(step, start, jnp.arange(steps))
    return Run(x, info, state)
