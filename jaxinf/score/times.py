"""At which times an objective trains: laws given by their quantile functions."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, Scalar, record
from jaxinf.process import Gaussian


@runtime_checkable
class Times(Protocol):
    """A law of times on [t_min, t_max]."""

    def quantile(self, process: Gaussian, u: Array) -> Array:
        """Return the time at quantile u in [0, 1)."""
        ...


@record
class Uniform:
    """Uniform in time."""

    def quantile(self, process: Gaussian, u: Array) -> Array:
        """Return t_min + u (t_max - t_min)."""
        return process.t_min + u * (process.t_max - process.t_min)


@record
class LogUniform:
    """log t uniform: even over the orders of magnitude of small noise."""

    def quantile(self, process: Gaussian, u: Array) -> Array:
        """Return t_min (t_max / t_min)^u."""
        return process.t_min * (process.t_max / process.t_min) ** u


@record
class LogNormal:
    """log t ~ N(mean, scale^2)."""

    mean: Leaf
    scale: Leaf

    def quantile(self, process: Gaussian, u: Array) -> Array:
        """Return exp(mean + scale Phi^-1(u)), within the process's range."""
        t = jnp.exp(self.mean + self.scale * jax.scipy.special.ndtri(_inside(u)))
        return jnp.clip(t, process.t_min, process.t_max)


@record
class LogitNormal:
    """logit(t / t_max) ~ N(mean, scale^2)."""

    mean: Leaf
    scale: Leaf

    def quantile(self, process: Gaussian, u: Array) -> Array:
        """Return t_max / (1 + exp(-mean - scale Phi^-1(u))), within the process's range."""
        z = self.mean + self.scale * jax.scipy.special.ndtri(_inside(u))
        return jnp.clip(process.t_max * jax.nn.sigmoid(z), process.t_min, process.t_max)


def _inside(u: Array) -> Array:
    return jnp.clip(u, 1e-6, 1 - 1e-6)


def uniform() -> Uniform:
    """Times uniform in [t_min, t_max]."""
    return Uniform()


def log_uniform() -> LogUniform:
    """Times log-uniform in [t_min, t_max]; the variational bound's integrand is flat in them."""
    return LogUniform()


def log_normal(mean: Scalar = -1.2, scale: Scalar = 1.2) -> LogNormal:
    """EDM's times: log t is normal, where t is the noise scale (``process.edm()``).

    Args:
      mean: of log t.
      scale: standard deviation of log t.

    Returns:
      The law.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      table 1.
    """
    return LogNormal(mean, scale)


def logit_normal(mean: Scalar = 0.0, scale: Scalar = 1.0) -> LogitNormal:
    """Times of rectified flows: the logit of t / t_max is normal.

    Args:
      mean: of the logit.
      scale: standard deviation of the logit.

    Returns:
      The law.

    Reference:
      Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, Esser et al., 2024,
      equation 19.
    """
    return LogitNormal(mean, scale)


def stratified(
    key: Key, times: Times, process: Gaussian, count: int, dtype: jnp.dtype
) -> tuple[Float[Array, " count"], Float[Array, " count"]]:
    """Draw times with one common shift: u_i = (u + i / count) mod 1; return (t, dt / du).

    Each time has the law ``times``, and together they cover it evenly.

    Reference:
      Variational Diffusion Models, Kingma et al., 2021, appendix I.1.
    """
    u = (jax.random.uniform(key, (), dtype) + jnp.arange(count, dtype=dtype) / count) % 1
    return jax.vmap(
        lambda u: jax.jvp(lambda u: times.quantile(process, u), (u,), (jnp.ones_like(u),))
    )(u)
