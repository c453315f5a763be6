"""Gaussian processes of noising: q(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 C)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import (
    Covariance,
    Key,
    Leaf,
    Scalar,
    check_key,
    concretely,
    is_concrete,
    log_prob,
    record,
    root,
    white,
)
from jaxinf.process.schedules import Schedule


@record
class Gaussian:
    """The process; all is derived from a schedule and the noise's covariance C.

    It solves dx = f(t) x dt + g(t) C^(1/2) dW with f = alpha' / alpha and
    g^2 = 2 sigma (sigma' - f sigma).
    """

    schedule: Leaf
    covariance: Leaf

    @property
    def t_min(self) -> Leaf:
        """Earliest time at which the marginal has a density and every rate is finite."""
        return self.schedule.t_min

    @property
    def t_max(self) -> Leaf:
        """Latest time."""
        return self.schedule.t_max

    def alpha(self, t: Scalar) -> Array:
        """Scale of the data at t."""
        return self.schedule.alpha(t)

    def sigma(self, t: Scalar) -> Array:
        """Scale of the noise at t."""
        return self.schedule.sigma(t)

    def rates(self, t: Scalar) -> tuple[Array, Array, Array, Array]:
        """Return (alpha, sigma, alpha', sigma') at t."""
        t = jnp.asarray(t)
        (alpha, sigma), (alpha_rate, sigma_rate) = jax.jvp(
            lambda t: (self.alpha(t), self.sigma(t)), (t,), (jnp.ones_like(t),)
        )
        return alpha, sigma, alpha_rate, sigma_rate

    def log_snr(self, t: Scalar) -> Array:
        """Return log(alpha^2 / sigma^2), finite at both ends (zeros are taken as the tiniest)."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        tiny = jnp.finfo(alpha.dtype).tiny
        return 2 * (jnp.log(jnp.maximum(alpha, tiny)) - jnp.log(jnp.maximum(sigma, tiny)))

    def snr_rate(self, t: Scalar) -> Array:
        """Return the derivative of alpha^2 / sigma^2, which is never positive."""
        alpha, sigma, alpha_rate, sigma_rate = self.rates(t)
        return -2 * alpha * (alpha * sigma_rate - alpha_rate * sigma) / sigma**3

    def drift(self, t: Scalar) -> Array:
        """Return f(t) = alpha' / alpha; infinite where alpha is 0."""
        alpha, _, alpha_rate, _ = self.rates(t)
        return alpha_rate / alpha

    def dispersion_squared(self, t: Scalar) -> Array:
        """Return g(t)^2 = 2 sigma (sigma' alpha - alpha' sigma) / alpha."""
        alpha, sigma, alpha_rate, sigma_rate = self.rates(t)
        return 2 * sigma * (sigma_rate * alpha - alpha_rate * sigma) / alpha

    def transition(self, t: Scalar, s: Scalar) -> tuple[Array, Array]:
        """Return (a, b) of x_s = a x_t + b C^(1/2) z for s noisier than t, where alpha(t) > 0."""
        a = self.alpha(s) / self.alpha(t)
        variance = jnp.square(self.sigma(s)) - jnp.square(a * self.sigma(t))
        return a, root(variance)

    def noise_at(self, t: Scalar) -> Any:
        """Return the covariance sigma(t)^2 C."""
        return self.covariance.scaled(self.sigma(t))

    def perturb(self, x0: Array, z: Array, t: Scalar) -> tuple[Array, Array]:
        """Return (x_t, e) from one example x0 and white noise z: e = C^(1/2) z."""
        noise = self.covariance.sqrt(z)
        x = self.alpha(t) * x0 + self.sigma(t) * noise
        return x.astype(x0.dtype), noise.astype(x0.dtype)

    def marginal(self, law: Any, t: Scalar) -> Any:
        """Return the law of x_t for x_0 of a law of the core (Gaussian or Mixture)."""
        return law.noised(self.alpha(t), self.noise_at(t))

    def posterior_mean(self, law: Any, x: Array, t: Scalar) -> Array:
        """Return E[x_0 | x_t = x] for x_0 of a law of the core: the perfect denoiser."""
        return law.posterior_mean(x, self.alpha(t), self.noise_at(t))

    def prior(self) -> "Prior":
        """Return the reference law N(0, sigma(t_max)^2 C) from which samplers start."""
        return Prior(self)


@record
class Prior:
    """The reference law of a process, on examples of any shape."""

    process: Leaf

    def sample(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Draw examples of shape (batch, ...); example i is the same whatever the batch."""
        check_key(key)
        if len(shape) < 1 or 0 in shape:
            raise ValueError(
                f"shape must be (batch, ...) without zeros, got {shape}; one example of shape (d,) "
                "is shape (1, d)"
            )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
        process = self.process

        def draw(key: Key) -> Array:
            z = jax.random.normal(key, shape[1:])
            return (process.sigma(process.t_max) * process.covariance.sqrt(z)).astype(z.dtype)

        return jax.vmap(draw)(keys)

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Log density at one example, in nats."""
        return log_prob(self.process.noise_at(self.process.t_max), x)


def gaussian(schedule: Schedule, covariance: Covariance | None = None) -> Gaussian:
    """The Gaussian process of a schedule.

    q(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 C).

    Args:
      schedule: alpha and sigma, ``process.cosine()`` say.
      covariance: C of the noise, white by default; ``core.dense(matrix)`` over the points of a
        function gives function-space noise.

    Returns:
      The process, a pytree of the schedule's numbers.

    Raises:
      TypeError: for something that is no schedule.
      ValueError: where the numbers are concrete: for a range that is not 0 < t_min < t_max, and
        for an alpha or sigma that is not finite or negative, or a signal-to-noise ratio that rises,
        with the times at which it does.
    """
    if not (hasattr(schedule, "alpha") and hasattr(schedule, "sigma")):
        raise TypeError(
            f"a process is made from a schedule, got {type(schedule).__name__}; try "
            "process.gaussian(process.cosine())"
        )
    if is_concrete(schedule):
        _check_schedule(schedule)
    return Gaussian(schedule, white() if covariance is None else covariance)


@jax.jit
def _on_grid(schedule: Schedule, times: Array) -> tuple[Array, Array]:
    return jax.vmap(lambda t: (schedule.alpha(t), schedule.sigma(t)))(times)


def _check_schedule(schedule: Schedule) -> None:
    """Raise unless alpha and sigma are finite and not negative and the ratio never rises."""
    t_min, t_max = float(schedule.t_min), float(schedule.t_max)
    if not 0 < t_min < t_max < np.inf:
        raise ValueError(
            f"a schedule's range must be 0 < t_min < t_max, got t_min={t_min} and t_max={t_max}"
        )
    times = np.linspace(t_min, t_max, 257)
    with concretely():
        alpha, sigma = (np.asarray(a, np.float64) for a in _on_grid(schedule, jnp.asarray(times)))
    for name, values in (("alpha", alpha), ("sigma", sigma)):
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            raise ValueError(
                f"{name}(t) must be finite and not negative, and at t={times[bad][0]:.4g} it is "
                f"{values[bad][0]}; narrow the schedule's t_min and t_max"
            )
    # alpha / sigma falls where the cross product is positive; equality up to float32 rounding
    turn = alpha[:-1] * sigma[1:] - alpha[1:] * sigma[:-1]
    rises = turn < -4e-7 * (alpha[:-1] * sigma[1:] + alpha[1:] * sigma[:-1])
    if rises.any():
        i = int(np.argmax(rises))
        raise ValueError(
            "the signal-to-noise ratio alpha^2 / sigma^2 must fall with time, and it rises between "
            f"t={times[i]:.4g} and t={times[i + 1]:.4g}; time runs from data at 0 to noise at "
            "t_max, so a schedule with noise at 0 wants alpha(t_max - t) and sigma(t_max - t)"
        )
