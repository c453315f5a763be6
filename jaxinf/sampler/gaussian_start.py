"""Starting early: the Gaussian nearest to the noisy data takes the prior's place."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf import core
from jaxinf.core import Covariance, Dense, Diagonal, Scalar, is_concrete
from jaxinf.process import Gaussian


def gaussian_start(
    process: Gaussian, t: Scalar, mean: Float[Array, "*event"], covariance: Dense | Diagonal
) -> core.Gaussian:
    """The Gaussian nearest to the law of x_t: a start from which few steps are left to walk.

    N(alpha m, alpha^2 Cov + sigma^2 C), which has the mean and covariance of x_t and so minimises
    KL(q_t || N) over all Gaussians; with isotropic moments and white noise, over the isotropic
    ones. Exact where the data are Gaussian.

    Args:
      process: the Gaussian process.
      t: the time to start at, in (0, process.t_max].
      mean: m, the data's mean, of an example's shape.
      covariance: the data's covariance, ``core.Diagonal`` or ``core.Dense``; ``moments(data)``
        gives both from a law or from examples.

    Returns:
      The law. ``jax.vmap(law.sample)(jax.random.split(key, batch))`` are starts for a plan from t,
      ``sampler.plan(process, np.linspace(t, 0, steps + 1))`` say.

    Raises:
      ValueError: for a time outside the range, or a covariance of another size than the mean's.

    Reference:
      Optimizing Diffusion Models for Joint Trajectory Prediction and Controllable Generation, Wang
      et al., 2024.
    """
    if is_concrete((t, process.t_max)):
        latest = float(process.t_max)
        if not 0 < float(t) <= latest * (1 + 1e-6):
            raise ValueError(
                f"a start must be in (0, t_max={latest:.6g}], got t={float(t):.6g}; at 0 it would "
                "have to be the data themselves"
            )
    mean = jnp.asarray(mean)
    if not _fits(covariance, mean):
        raise ValueError(
            f"the covariance does not fit a mean of shape {mean.shape}; moments(data) gives both"
        )
    return process.marginal(core.Gaussian(mean, covariance), t)


def _fits(covariance: Dense | Diagonal, mean: Array) -> bool:
    if isinstance(covariance, Dense):
        return mean.size % covariance.factor.shape[0] == 0
    return jnp.shape(covariance.scale) in ((), mean.shape)


def moments(
    data: core.Gaussian | core.Mixture | Float[Array, "n *event"], *, isotropic: bool = False
) -> tuple[Float[Array, "*event"], Dense | Diagonal]:
    """The mean and covariance of a law of the core, or of examples.

    Of n examples it is the covariance of their empirical law, (1 / n) sum (x - m)(x - m)^T. It may
    be singular (constant pixels, fewer examples than numbers, atoms): its factor is made by a QR
    decomposition, and adding noise makes it definite.

    Args:
      data: ``core.gaussian(...)``, ``core.mixture(...)``, or examples of shape (n, ...).
      isotropic: whether to give the nearest isotropic covariance instead, trace(Cov) / d.

    Returns:
      The mean, of an example's shape, and the covariance over its d numbers, ``core.Dense`` with
      a (d, d) factor, or ``core.Diagonal`` of one number where isotropic; a Gaussian's own as
      they are.

    Raises:
      ValueError: for no examples.
    """
    if isinstance(data, core.Gaussian) and not isotropic:
        return jnp.asarray(data.mean), data.covariance
    mean, rows = _rows(data)
    if isotropic:
        return mean, Diagonal(jnp.sqrt(jnp.sum(jnp.square(rows)) / mean.size))
    missing = max(mean.size - rows.shape[0], 0)
    upper = jnp.linalg.qr(jnp.pad(rows, ((0, missing), (0, 0))), mode="r")
    return mean, Dense(upper.T)


def _rows(data: Any) -> tuple[Array, Array]:
    """Return the mean and a matrix R of shape (any, d) with R^T R = Cov."""
    if isinstance(data, core.Gaussian):
        mean = jnp.asarray(data.mean)
        return mean, _transposed_root(data.covariance, mean.shape)
    if isinstance(data, core.Mixture):
        weights = jax.nn.softmax(jnp.asarray(data.log_weights))
        means = jnp.asarray(data.components.mean)
        mean = jnp.tensordot(weights, means, 1)
        roots = jax.vmap(lambda part: _transposed_root(part.covariance, mean.shape))(
            data.components
        )
        apart = (means - mean[None]).reshape(len(weights), 1, -1)
        rows = jnp.concatenate([roots, apart], axis=1) * jnp.sqrt(weights)[:, None, None]
        return mean, rows.reshape(-1, mean.size)
    if data.ndim < 2 or data.shape[0] == 0:
        raise ValueError(f"moments needs at least one example, as rows (n, ...), got {data.shape}")
    mean = jnp.mean(data, axis=0)
    return mean, (data - mean[None]).reshape(data.shape[0], -1) / math.sqrt(data.shape[0])


def _transposed_root(covariance: Covariance, shape: tuple[int, ...]) -> Array:
    """Return L^T as a (d, d) matrix."""
    size = math.prod(shape)
    units = jnp.eye(size).reshape(size, *shape)
    return jax.vmap(covariance.sqrt)(units).reshape(size, size)
