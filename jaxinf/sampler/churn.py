"""Churn: noise added before each step and removed by it, EDM's stochastic sampler."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record
from jaxinf.process.inverse import time_of
from jaxinf.sampler.stepper import AnyStepper, Denoise, State, Wrapper, advance, has_table


@record
class Churn(Wrapper):
    """The wrapped stepper from a raised noise level r_hat = (1 + gamma) r, r = sigma / alpha."""

    stepper: Leaf
    amount: Leaf
    between: tuple[Leaf, Leaf]
    noise_scale: Leaf

    def table(self, times: Array) -> Float[Array, " steps"]:
        """Return the time from which each step goes, where the noise level is the raised one."""
        times = jnp.asarray(times)
        gamma = jnp.minimum(self.amount / (times.shape[0] - 1), math.sqrt(2) - 1)
        least, most = self.between

        def raised(t: Array) -> Array:
            log_snr = self.process.log_snr(t)
            level = jnp.exp(-log_snr / 2)
            up = time_of(self.process, log_snr - 2 * jnp.log1p(gamma))
            inside = (least <= level) & (level <= most) & (gamma > 0)
            return jnp.where(inside, jnp.maximum(up, t), t)

        return jax.vmap(raised)(times[:-1])

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar, row: Array
    ) -> tuple[State, Any]:
        """Go from t up to the row's time by the forward transition, and from there to s.

        The choice depends on the times alone, so under ``vmap`` over samples it stays a branch.
        """
        process = self.process

        def up(x: Array) -> Array:
            a, b = process.transition(t, row)
            fresh = process.covariance.sqrt(noise.increment(t, row))
            return (a * x + self.noise_scale * b * fresh).astype(x.dtype)

        x = jax.lax.cond(row > t, up, lambda x: x, state.x)
        return advance(self.stepper, denoise, noise, State(x), row, s, None)


def churn[S: AnyStepper](
    stepper: S,
    amount: Scalar,
    between: tuple[Scalar, Scalar] = (0.0, math.inf),
    noise_scale: Scalar = 1.0,
) -> S | Churn:
    """EDM's stochastic sampler around any one-step method.

    Before the step from t the noise level r = sigma / alpha is raised to r_hat = (1 + gamma) r by
    the forward transition, x_hat = a x + noise_scale b C^(1/2) z with (a, b) =
    ``process.transition(t, t_hat)``, and the wrapped stepper goes from t_hat to s. Here gamma =
    min(amount / N, sqrt(2) - 1) for the plan's N steps where ``between`` holds r, else 0. t_hat is
    at most t_max, where the paper's may leave the range: at the last time nothing is added.

    Args:
      stepper: a one-step method, ``sampler.heun(process)`` as in the paper, on a Gaussian process.
      amount: the paper's S_churn, not negative; 0 (as a number) returns the stepper itself.
      between: (S_tmin, S_tmax), the noise levels sigma / alpha, both included, at which noise is
        added, in the units of the data.
      noise_scale: S_noise, positive; at 1 the marginals are kept at the wrapped stepper's order.
        The paper takes 1.003 to 1.007 to make up for what a trained denoiser removes too much.

    Returns:
      The stepper. It calls the denoiser as often as the wrapped one.

    Raises:
      TypeError: for a stepper that is no one-step method: one with a table of the plan, which
        would be that of other times, or with more in its state than x.
      ValueError: for a negative amount, a noise scale that is not positive, an empty ``between``.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      algorithm 2.
    """
    tabulated = has_table(stepper)
    state = jax.eval_shape(stepper.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if tabulated or not isinstance(state, State):
        reason = "has a table of the plan" if tabulated else f"carries a {type(state).__name__}"
        raise TypeError(
            f"churn wraps one-step methods, and {type(stepper).__name__} {reason}: it belongs to "
            "the plan's times, not to the raised ones; wrap sampler.heun(process) or "
            "sampler.ddim(process), and put other wrappers outside churn"
        )
    if is_concrete(between) and not float(between[0]) <= float(between[1]):
        raise ValueError(
            f"between holds no noise level, got ({between[0]}, {between[1]}); give (least, most) "
            "in units of sigma / alpha, or amount=0 to add no noise"
        )
    if is_concrete(noise_scale) and not float(noise_scale) > 0:
        raise ValueError(f"noise_scale must be positive, got {noise_scale}; 1 keeps the marginals")
    if is_concrete(amount):
        if not float(amount) >= 0:
            raise ValueError(f"amount must not be negative, got {amount}; 0 adds no noise")
        if float(amount) == 0:
            return stepper
    return Churn(stepper, amount, between, noise_scale)
