"""DDIM with any amount of noise, from the deterministic to the ancestral sampler."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record, root
from jaxinf.process import Gaussian, convert, eps, x0
from jaxinf.sampler.stepper import Denoise, State, StepInfo


@record
class DDIM:
    """The deterministic step x_s = alpha_s x_0 + sigma_s e."""

    process: Leaf

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Go from t to s."""
        clean, direction = _clean_and_noise(self.process, denoise, state.x, t)
        x = self.process.alpha(s) * clean + self.process.sigma(s) * direction
        return State(x), StepInfo(clean)

    def calls(self, t: float, s: float) -> int:
        """One call a step."""
        return 1


@record
class Ancestral:
    """The step x_s = alpha_s x_0 + sqrt(sigma_s^2 - tau^2) e + tau z with tau = eta tau_1."""

    process: Leaf
    eta: Leaf

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
        process = self.process
        clean, direction = _clean_and_noise(process, denoise, state.x, t)
        sigma_s = process.sigma(s)
        tau = jnp.minimum(self.eta * self._posterior_scale(t, s), sigma_s)
        along = root((sigma_s - tau) * (sigma_s + tau))
        return process.alpha(s) * clean + along * direction, tau, clean

    def _posterior_scale(self, t: Scalar, s: Scalar) -> Array:
        """Standard deviation of q(x_s | x_t, x_0) over C^(1/2)."""
        process = self.process
        sigma_t, sigma_s = process.sigma(t), process.sigma(s)
        carried = process.alpha(t) / process.alpha(s) * sigma_s
        variance = (sigma_t - carried) * (sigma_t + carried)
        return sigma_s / sigma_t * root(variance)


def _clean_and_noise(
    process: Gaussian, denoise: Denoise, x: Array, t: Scalar
) -> tuple[Array, Array]:
    clean = denoise(x, t)
    return clean, convert(process, t, x, clean, x0, eps)


def ddim(process: Gaussian, eta: Scalar = 0.0) -> DDIM | Ancestral:
    """The DDIM stepper, first order.

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - tau^2) e + tau z, with x_0 the denoiser's prediction,
    e = (x_t - alpha_t x_0) / sigma_t, z fresh noise of covariance C, and tau = eta times the
    standard deviation of q(x_s | x_t, x_0), at most sigma_s.

    Args:
      process: the Gaussian process to reverse.
      eta: amount of fresh noise, not negative; 0 (as a number) draws none, 1 is the ancestral
        sampler. Any eta keeps the marginals as the steps shrink.

    Returns:
      The stepper; it may step to time 0.

    Raises:
      ValueError: for a negative eta.

    Reference:
      Denoising Diffusion Implicit Models, Song et al., 2021, equations 12 and 16.
    """
    if is_concrete(eta):
        if not float(eta) >= 0:
            raise ValueError(f"eta must not be negative, got {eta}; 1 is the ancestral sampler")
        if float(eta) == 0:
            return DDIM(process)
    return Ancestral(process, eta)


def ancestral(process: Gaussian) -> Ancestral:
    """The ancestral sampler of DDPM: x_s ~ q(x_s | x_t, x_0) at the predicted x_0; DDIM at eta = 1.

    Args:
      process: the Gaussian process to reverse.

    Returns:
      The stepper.

    Reference:
      Denoising Diffusion Probabilistic Models, Ho et al., 2020, algorithm 2 with the smaller of its
      two variances.
    """
    return Ancestral(process, 1.0)
