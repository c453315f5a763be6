"""Gibbs sampling of an image and of what is not known of its observation."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxinf import mcmc
from jaxinf.core import Key, PyTree, check_key
from jaxinf.core.progress import tick
from jaxinf.target import Target


class GibbsRun(NamedTuple):
    """What one chain found, a leading axis of sweeps."""

    x: Float[Array, "sweeps *event"]
    """The examples."""
    z: Float[Array, "sweeps dim"]
    """The parameters on unbounded numbers; the target's ``constrain`` gives their values."""
    info: mcmc.Info
    """Of every move of the parameters, [sweeps, moves]."""


def gibbs(
    key: Key,
    draw: Callable[[Key, PyTree], Array],
    target: Callable[[Array], Target],
    kernel: mcmc.Kernel,
    x: Array,
    z: Float[Array, " dim"],
    *,
    sweeps: int = 100,
    moves: int = 5,
    progress: bool = False,
) -> GibbsRun:
    r"""Sample an example and the parameters of its observation in turn.

    .. math:: x \sim p(x \mid \theta, y), \qquad \theta \sim K_x(\theta, \cdot), \quad
              K_x \text{ keeps } p(\theta \mid x, y)

    A noise level or a blur's width is sampled with the image. The chain keeps p(x, theta | y) where
    ``draw`` is exact: with a guidance's approximation it keeps another law near it, and with a draw
    of weighted particles one that comes as close as there are particles.

    Args:
      key: a typed key.
      draw: ``(key, values) -> x``, an example given the parameters' values: a run of a guided
        denoiser, or one of ``guide.particles`` by its weight. A function, or
        ``jax.tree_util.Partial(function, model, y)`` for one that takes numbers first, which then
        recompile nothing.
      target: ``x -> `` the parameters' :class:`target.Target` given the example, in the same way;
        ``target.program`` of a NumPyro model, say.
      kernel: moves the parameters; ``mcmc.sample(...).kernel`` has been adapted.
      x: an example to start from, of which the shape matters alone.
      z: the parameters' position to start from, unbounded: where the chain that adapted the kernel
        ended, ``mcmc.sample(...).state.z[0]``; in the tails its steps may all be refused.
      sweeps: how often both are drawn.
      moves: of the parameters in a sweep.
      progress: whether a bar counts the sweeps.

    Returns:
      :class:`GibbsRun` of one chain; ``jax.vmap`` for several, or for several observations.

    Raises:
      ValueError: for fewer than one sweep or move.

    Example:
      ``guide.gibbs(key, Partial(image, model, y), Partial(parameters, y), mcmc.hmc(), x, z)`` with
      ``parameters = lambda y, x: target.program(noise_model, x, y)``

    Reference:
      Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of Images, S. Geman
      and D. Geman, 1984; L. Tierney, "Markov chains for exploring posterior distributions", Annals
      of Statistics 1994, section 2.4, for moves within a sweep.
    """
    check_key(key)
    for name, value in (("sweeps", sweeps), ("moves", moves)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    parts = [Partial(f) if isinstance(f, FunctionType) else f for f in (draw, target)]
    x, z = jnp.asarray(x, float), jnp.asarray(z, float)
    return _gibbs(key, *parts, kernel, x, z, sweeps, moves, progress)


@partial(jax.jit, static_argnames=("sweeps", "moves", "progress"))
def _gibbs(
    key: Key,
    draw: Any,
    target: Any,
    kernel: Any,
    x: Array,
    z: Array,
    sweeps: int,
    moves: int,
    progress: bool,
) -> GibbsRun:
    """See :func:`gibbs`."""

    def sweep(held: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], GibbsRun]:
        x, z = held
        key_x, key_z = jax.random.split(jax.random.fold_in(key, i))
        x = draw(key_x, target(x).constrain(z)).astype(x.dtype)
        given = target(x)

        def move(state: mcmc.State, key: Key) -> tuple[mcmc.State, mcmc.Info]:
            return kernel.step(key, given, state)

        state, info = jax.lax.scan(move, kernel.init(given, z), jax.random.split(key_z, moves))
        if progress:
            tick(i, sweeps, "sweeps")
        return (x, state.z), GibbsRun(x, state.z, info)

    return jax.lax.scan(sweep, (x, z), jnp.arange(sweeps))[1]
