"""What a network may predict: x0, noise, v, score, velocity, or EDM's preconditioned output.

Each prediction F is linear in the clean example and the noise, F = a x_0 + b e, with coefficients
of time; with x = alpha x_0 + sigma e it determines both. ``decode`` gives them back in the form
that stays exact at both ends of time, and the table of conversions between any two is decode, then
encode.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, concretely, divide, is_concrete, record
from jaxinf.process.gaussian import Gaussian


@runtime_checkable
class Prediction(Protocol):
    """A linear function of the clean example and the noise, one example at a time."""

    @property
    def data_scale(self) -> Leaf:
        """Standard deviation of the data that the network's input is normalised by."""
        ...

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return F = a x_0 + b e."""
        ...

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return (x_0, e) from x_t and F."""
        ...

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return (dF / dx_0)^2 at fixed x_t: what an error of 1 in x_0 counts in F."""
        ...


@record
class X0:
    """The clean example itself."""

    data_scale = 1.0

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return x_0."""
        return clean

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return (F, (x - alpha F) / sigma); the noise is 0 where sigma is."""
        return value, divide(x - process.alpha(t) * value, process.sigma(t))

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return 1."""
        return jnp.ones_like(process.alpha(t))


@record
class Eps:
    """The noise e."""

    data_scale = 1.0

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return e."""
        return noise

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return ((x - sigma F) / alpha, F); the clean example is 0 where alpha is."""
        return divide(x - process.sigma(t) * value, process.alpha(t)), value

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return alpha^2 / sigma^2."""
        return jnp.square(process.alpha(t) / process.sigma(t))


@record
class V:
    """v = alpha e - sigma x_0: the velocity along the circle of variance-preserving schedules."""

    data_scale = 1.0

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return alpha e - sigma x_0."""
        return process.alpha(t) * noise - process.sigma(t) * clean

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return (alpha x - sigma v, sigma x + alpha v) / (alpha^2 + sigma^2)."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        power = jnp.square(alpha) + jnp.square(sigma)
        return (alpha * x - sigma * value) / power, (sigma * x + alpha * value) / power

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return (alpha^2 + sigma^2)^2 / sigma^2."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        return jnp.square((jnp.square(alpha) + jnp.square(sigma)) / sigma)


@record
class Score:
    """The conditional score, -C^-1 e / sigma."""

    data_scale = 1.0

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return -C^-1 e / sigma; 0 where sigma is, since x_t has no density there."""
        return -divide(process.covariance.precision(noise), process.sigma(t))

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return ((x + sigma^2 C F) / alpha, -sigma C F)."""
        noise = -process.sigma(t) * process.covariance.matvec(value)
        return divide(x - process.sigma(t) * noise, process.alpha(t)), noise

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return alpha^2 / sigma^4, for white noise."""
        return jnp.square(process.alpha(t) / jnp.square(process.sigma(t)))


@record
class Velocity:
    """The velocity of the probability flow, alpha' x_0 + sigma' e: flow matching's target."""

    data_scale = 1.0

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return alpha' x_0 + sigma' e."""
        _, _, alpha_rate, sigma_rate = process.rates(t)
        return alpha_rate * clean + sigma_rate * noise

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return (sigma' x - sigma u, alpha u - alpha' x) / (alpha sigma' - alpha' sigma)."""
        alpha, sigma, alpha_rate, sigma_rate = process.rates(t)
        turn = alpha * sigma_rate - alpha_rate * sigma
        clean, noise = sigma_rate * x - sigma * value, alpha * value - alpha_rate * x
        return divide(clean, turn), divide(noise, turn)

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return ((alpha sigma' - alpha' sigma) / sigma)^2."""
        alpha, sigma, alpha_rate, sigma_rate = process.rates(t)
        return jnp.square((alpha * sigma_rate - alpha_rate * sigma) / sigma)


@record
class Preconditioned:
    """EDM's output: x_0 = c_skip x + c_out F, with F of unit variance for data of a given scale.

    c_skip = alpha d^2 / p^2 and c_out = sigma d / p with p^2 = alpha^2 d^2 + sigma^2. For a
    variance-preserving schedule and d = 1 it is -v; d to 0 is x0 (scaled), d to infinity -e.
    """

    data_scale: Leaf

    def encode(self, process: Gaussian, t: Scalar, clean: Array, noise: Array) -> Array:
        """Return (sigma x_0 - alpha d^2 e) / (d p)."""
        alpha, sigma, power = self._scales(process, t)
        d = self.data_scale
        return (sigma * clean - alpha * d**2 * noise) / (d * jnp.sqrt(power))

    def decode(self, process: Gaussian, t: Scalar, x: Array, value: Array) -> tuple[Array, Array]:
        """Return (c_skip x + c_out F, (sigma x - alpha d p F) / p^2)."""
        alpha, sigma, power = self._scales(process, t)
        d, root = self.data_scale, jnp.sqrt(power)
        clean = (alpha * d**2 * x + sigma * d * root * value) / power
        return clean, (sigma * x - alpha * d * root * value) / power

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return 1 / c_out^2 = (alpha^2 d^2 + sigma^2) / (sigma d)^2."""
        _, sigma, power = self._scales(process, t)
        return power / jnp.square(sigma * self.data_scale)

    def _scales(self, process: Gaussian, t: Scalar) -> tuple[Array, Array, Array]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha, sigma, jnp.square(alpha * self.data_scale) + jnp.square(sigma)


x0 = X0()
eps = Eps()
v = V()
score = Score()
velocity = Velocity()


def preconditioned(data_scale: Scalar = 0.5) -> Preconditioned:
    """EDM's preconditioned prediction, F of x_0 = c_skip x + c_out F, for any schedule.

    Args:
      data_scale: standard deviation d of the data, positive.

    Returns:
      The prediction.

    Raises:
      ValueError: for a data scale that is not positive.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      table 1, with x / alpha and sigma / alpha in place of x and sigma.
    """
    if is_concrete(data_scale) and not float(data_scale) > 0:
        raise ValueError(f"data_scale must be positive, got {data_scale}")
    return Preconditioned(data_scale)


def convert(
    process: Gaussian,
    t: Scalar,
    x: Array,
    value: Array,
    source: Prediction = x0,
    target: Prediction = velocity,
) -> Array:
    """Turn one prediction into another at (x, t), for one example.

    Args:
      process: the process that x belongs to.
      t: shape (), in the process's range.
      x: the noisy example.
      value: the prediction ``source`` at (x, t), of x's shape.
      source: what ``value`` is.
      target: what to return.

    Returns:
      The prediction ``target``, of x's shape. It is finite at both ends of time; where ``source``
      says nothing of what is asked (the clean example from the noise at zero signal, the noise from
      the clean example at zero noise), 0 stands for it.
    """
    return target.encode(process, t, *source.decode(process, t, x, value))


def check_informative(process: Leaf, predicts: Prediction) -> None:
    """Raise where a prediction of the noise is to tell the data and alpha(t_max) is 0."""
    if predicts in (eps, score):
        mend = "take process.v, process.x0 or process.velocity, or end the schedule earlier"
        check_signal(process, "a prediction of the noise, which is to tell the data,", mend=mend)


def check_signal(
    process: Leaf,
    what: str,
    t: Scalar | None = None,
    *,
    mend: str = "end the schedule earlier",
) -> None:
    """Raise where alpha is 0 at the last time, or at t: the noisy example tells nothing there.

    Args:
      process: a process with alpha.
      what: what needs it, as the message begins.
      t: the time; ``t_max`` by default.
      mend: what to do about it, before the example of a schedule.
    """
    t = process.t_max if t is None else t
    if not is_concrete((process, t)):
        return
    with concretely():
        alpha = float(jnp.asarray(process.alpha(t)))
    if alpha <= 1e-6:
        raise ValueError(
            f"{what} needs alpha(t_max) > 0, and it is {alpha:.3g} at t={float(t):.6g}; {mend}, "
            "process.cosine(t_max=0.99)"
        )
