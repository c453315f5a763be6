"""Geweke's test of a posterior simulator: two ways to the joint law of parameters and data."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, check_key
from jaxinf.diagnostics.chains import mcse


class JointTest(NamedTuple):
    """Means of functions of parameters and data under two simulators; see :func:`geweke`."""

    z: Float[Array, " functions"]
    """Their difference over its standard error."""
    marginal: Float[Array, " functions"]
    """Mean over independent draws of the joint law."""
    successive: Float[Array, " functions"]
    """Mean over chains of the transition and of new data; its error is :func:`mcse`'s."""


def geweke(
    key: Key,
    prior: Callable[[Key], Any],
    simulate: Callable[[Key, Any], Any],
    step: Callable[[Key, Any, Any], Any],
    functions: Callable[[Any, Any], Float[Array, " functions"]],
    *,
    chains: int = 8,
    draws: int = 2000,
) -> JointTest:
    r"""Getting it right: whether a transition leaves the posterior of every data set as it is.

    The marginal-conditional simulator draws :math:`\theta \sim p(\theta)`, :math:`y \sim
    p(y \mid \theta)`; the successive-conditional one alternates the transition under test
    :math:`\theta' \sim K(\theta' \mid \theta, y)` with new data :math:`y' \sim p(y \mid
    \theta')`. Both have the joint law if K leaves :math:`p(\theta \mid y)` as it is, and then

    .. math:: z = \frac{\bar g - \tilde g}{\sqrt{s^2 / M + \mathrm{mcse}^2}} \to N(0, 1).

    Any of the three may be what is wrong. Take functions of second moments, too, and of data and
    parameters together. Wrap the call in ``jax.jit`` where it is made more than once.

    Args:
      key: for both simulators.
      prior: ``(key) -> theta``, a pytree.
      simulate: ``(key, theta) -> data``, a pytree.
      step: ``(key, theta, data) -> theta``, one transition for the posterior given the data.
      functions: ``(theta, data) -> `` a vector, with finite variance under the joint law.
      chains: how many successive simulators, each started at a draw of the joint law.
      draws: of each; the marginal simulator makes as many as all chains together.

    Returns:
      :class:`JointTest`; functions that are not finite have a z of NaN.

    Raises:
      ValueError: for fewer than four draws or no chain, and for functions that return no vector.

    Reference:
      J. Geweke, "Getting It Right: Joint Distribution Tests of Posterior Simulators", JASA 2004,
      with several chains.
    """
    check_key(key)
    if chains < 1 or draws < 4:
        raise ValueError(
            f"at least one chain of four draws is needed, got {chains} of {draws}; 2,000 is usual."
        )

    joint = partial(_joint, prior, simulate)
    _check_functions(joint, functions, key)
    key_marginal, key_start, key_chains = jax.random.split(key, 3)
    keys = jax.random.split(key_marginal, chains * draws)
    independent = jax.vmap(lambda key: functions(*joint(key)))(keys)
    start = jax.vmap(joint)(jax.random.split(key_start, chains))
    move = partial(_move, simulate, step, functions)
    walk = jax.vmap(lambda state, key: jax.lax.scan(move, state, jax.random.split(key, draws))[1])
    walked = walk(start, jax.random.split(key_chains, chains))
    marginal, successive = jnp.mean(independent, axis=0), jnp.mean(walked, axis=(0, 1))
    variance = jnp.var(independent, axis=0, ddof=1) / len(independent)
    error = jnp.sqrt(variance + jnp.square(mcse(walked)))
    return JointTest((marginal - successive) / error, marginal, successive)


def _check_functions(joint: Any, functions: Callable[..., Any], key: Key) -> None:
    """Raise unless functions return a vector."""
    shape = jax.eval_shape(lambda key: functions(*joint(key)), key).shape
    if len(shape) != 1:
        raise ValueError(
            f"functions must return one vector, got shape {shape}. Use jnp.stack or jnp.ravel."
        )


def _joint(prior: Callable[..., Any], simulate: Callable[..., Any], key: Key) -> tuple[Any, Any]:
    """Draw parameters and data."""
    key_prior, key_data = jax.random.split(key)
    theta = prior(key_prior)
    return theta, simulate(key_data, theta)


def _move(
    simulate: Callable[..., Any],
    step: Callable[..., Any],
    functions: Callable[..., Any],
    state: tuple[Any, Any],
    key: Key,
) -> tuple[tuple[Any, Any], Array]:
    """Take one transition, and draw new data."""
    key_step, key_data = jax.random.split(key)
    theta = step(key_step, *state)
    state = theta, simulate(key_data, theta)
    return state, functions(*state)
