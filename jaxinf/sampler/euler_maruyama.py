"""Euler-Maruyama on the reverse stochastic differential equation."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.core import Leaf, Noise, Scalar, record
from jaxinf.process import Gaussian, convert, eps, x0
from jaxinf.process.prediction import check_signal
from jaxinf.sampler.stepper import Denoise, State, StepInfo


@record
class EulerMaruyama:
    """x_s = x + (s - t) (f x + g^2 e / sigma) + g sqrt(t - s) z."""

    process: Leaf

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Go from t to s."""
        mean, scale, clean = self._law(denoise, state, t, s)
        fresh = self.process.covariance.sqrt(noise.increment(t, s))
        return State(mean + scale * fresh), StepInfo(clean)

    def proposal(self, denoise: Denoise, state: State, t: Scalar, s: Scalar) -> GaussianLaw:
        """Return the law of x_s given the state."""
        mean, scale, _ = self._law(denoise, state, t, s)
        return GaussianLaw(mean, self.process.covariance.scaled(scale))

    def calls(self, t: float, s: float) -> int:
        """One call a step."""
        return 1

    def _law(self, denoise: Denoise, state: State, t: Scalar, s: Scalar) -> tuple[Array, ...]:
        """Return the mean of x_s, its standard deviation over C^(1/2), and the prediction."""
        process, x = self.process, state.x
        clean = denoise(x, t)
        direction = convert(process, t, x, clean, x0, eps)
        squared = process.dispersion_squared(t)
        drift = process.drift(t) * x + squared / process.sigma(t) * direction
        return x + (s - t) * drift, jnp.sqrt(squared * (t - s)), clean


def euler_maruyama(process: Gaussian) -> EulerMaruyama:
    """The Euler-Maruyama stepper on the reverse equation, weak order one.

    dx = (f x - g^2 score) dt + g dW backwards in time, with score = -C^-1 e / sigma and noise of
    covariance C.

    Args:
      process: the Gaussian process to reverse, with alpha(t_max) > 0.

    Returns:
      The stepper.

    Raises:
      ValueError: where alpha(t_max) is 0, since the equation's coefficients are infinite there.

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      equation 6.
    """
    mend = "take sampler.ancestral, which is exact there, or end the schedule earlier"
    check_signal(process, "the drift alpha'/alpha of Euler-Maruyama", mend=mend)
    return EulerMaruyama(process)
