"""The reverse transition by its first two moments, with Tweedie's covariance."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Leaf, Noise, Scalar, record
from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.process import Gaussian
from jaxinf.process.prediction import check_signal
from jaxinf.sampler.stepper import Denoise, State, StepInfo


@record
class MomentMatched:
    """x_s ~ N(a D + b x_t, a^2 V + tau^2 C); see :func:`moment_matched`."""

    process: Leaf

    @property
    def uses_covariance(self) -> bool:
        """Its transition is asked for with the clean example's covariance as well."""
        return True

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Go from t to s."""
        law, clean = self._law(denoise, state, t, s)
        x = law.mean + law.covariance.sqrt(noise.increment(t, s))
        return State(x), StepInfo(clean)

    def proposal(self, denoise: Denoise, state: State, t: Scalar, s: Scalar) -> GaussianLaw:
        """Return the law of x_s given the state.

        A ``denoise`` with ``covariance(x, t)``, Cov[x_0 | x_t], is asked for it.
        """
        return self._law(denoise, state, t, s)[0]

    def calls(self, t: float, s: float) -> int:
        """One call a step, with its derivative."""
        return 1

    def _law(
        self, denoise: Denoise, state: State, t: Scalar, s: Scalar
    ) -> tuple[GaussianLaw, Array]:
        process, x = self.process, state.x
        if hasattr(denoise, "covariance"):
            clean, covariance = denoise(x, t), denoise.covariance(x, t)
        else:
            clean, covariance = tweedie(process, lambda x: denoise(x, t), x, t)
        sigma_t, sigma_s = process.sigma(t), process.sigma(s)
        carried = process.alpha(t) / process.alpha(s) * sigma_s
        left = (sigma_t - carried) * (sigma_t + carried) / jnp.square(sigma_t)
        to_clean = process.alpha(s) * left
        mean = to_clean * clean + carried * sigma_s / jnp.square(sigma_t) * x
        eye = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        noise = jax.vmap(process.covariance.matvec)(eye).reshape(x.size, x.size)
        total = jnp.square(to_clean) * covariance + jnp.square(sigma_s) * left * noise
        return GaussianLaw(mean.astype(x.dtype), Dense(jnp.linalg.cholesky(total))), clean


def tweedie(process: Any, denoise: Any, x: Array, t: Scalar) -> tuple[Array, Float[Array, "n n"]]:
    """Return E[x_0 | x_t] and Cov[x_0 | x_t] = (sigma^2 / alpha) (dD / dx) C, made symmetric.

    Args:
      process: the Gaussian process.
      denoise: D at t, of x alone.
      x: one noisy example of n numbers, which take a derivative each.
      t: its time.
    """

    def call(x: Array) -> tuple[Array, Array]:
        mean = denoise(x)
        return mean, mean

    slope, mean = jax.jacfwd(call, has_aux=True)(x)
    rows = jax.vmap(process.covariance.matvec)(slope.reshape(x.size, *x.shape))
    factor = jnp.square(process.sigma(t)) / process.alpha(t)
    covariance = (factor * rows).reshape(x.size, x.size).astype(x.dtype)
    return mean, (covariance + covariance.T) / 2


def moment_matched(process: Gaussian) -> MomentMatched:
    r"""The reverse transition by its mean and its whole covariance.

    .. math:: x_s \sim N\bigl(a D + b x_t,\; a^2 V + \tau^2 C\bigr), \quad
              V = \frac{\sigma_t^2}{\alpha_t} \frac{\partial D}{\partial x} C

    with q(x_s | x_t, x_0) = N(a x_0 + b x_t, tau^2 C): the first two moments of q(x_s | x_t) for a
    perfect denoiser, where the ancestral sampler leaves out V. Exact for Gaussian data at any
    number of steps, and it may step to time 0. For examples of up to some hundred numbers: each
    step takes a derivative a number and a Cholesky factor.

    Args:
      process: the Gaussian process to reverse, with alpha(t_max) > 0.

    Returns:
      The stepper. Where a network's derivative is no covariance, so that the sum has no Cholesky
      factor, the sample is not finite and the driver says so.

    Raises:
      ValueError: where alpha(t_max) is 0.

    Reference:
      Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models, Bao
      et al., 2022, theorem 1, with the covariance in full; Diffusion Models With Learned Adaptive
      Noise Or Optimal Covariance Matching, Ou et al., 2024.
    """
    check_signal(process, "the clean example's covariance")
    return MomentMatched(process)
