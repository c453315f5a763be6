"""The kernel Stein discrepancy of a sample from a law that is known up to its normaliser."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Scalar, check_key
from jaxinf.diagnostics.mmd import TwoSample
from jaxinf.diagnostics.samples import check_finite, off_diagonal, p_value, squared_distances


class SteinDiscrepancy(NamedTuple):
    """The square of a discrepancy in two estimates."""

    u_statistic: Float[Array, ""]
    """Unbiased: 0 in the mean for a sample of the law, and then below 0 as well as above."""
    v_statistic: Float[Array, ""]
    """Of the sample as a law of its own: never below 0, and too great by O(1/n)."""


def kernel_stein_discrepancy(
    x: Float[Array, "n d"],
    scores: Float[Array, "n ..."],
    *,
    scale: Scalar = 1.0,
    exponent: Scalar = -0.5,
) -> SteinDiscrepancy:
    r"""The squared kernel Stein discrepancy with the inverse multiquadric kernel.

    .. math:: \mathrm{KSD}^2 = E\,[s(x)^\top s(y) k + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k
              + \operatorname{tr} \nabla_x \nabla_y k], \qquad k(x, y) = (c^2 + |x - y|^2)^\beta

    with s the law's score. It needs no draw from the law; with :math:`\beta \in (-1, 0)` it goes
    to 0 only where the sample goes to the law, if that has light enough tails.

    Args:
      x: the sample.
      scores: of the law at the sample, ``jax.vmap(jax.grad(target.log_prob))(x)``.
      scale: c, in units of the data.
      exponent: beta, in (-1, 0).

    Returns:
      :class:`SteinDiscrepancy`.

    Raises:
      ValueError: for shapes that differ, fewer than two examples, numbers that are not finite, a
        scale that is not positive, or an exponent outside (-1, 0).

    Reference:
      Q. Liu, J. Lee, M. Jordan, "A Kernelized Stein Discrepancy for Goodness-of-fit Tests", ICML
      2016; J. Gorham, L. Mackey, "Measuring Sample Quality with
      Kernels", ICML 2017 (the kernel).
    """
    kernel = _stein_kernel(x, scores, scale, exponent)
    n = len(x)
    others = jnp.sum(jnp.where(off_diagonal(n), kernel, 0))
    return SteinDiscrepancy(others / (n * (n - 1)), jnp.mean(kernel))


def kernel_stein_test(
    key: Key,
    x: Float[Array, "n d"],
    scores: Float[Array, "n ..."],
    *,
    scale: Scalar = 1.0,
    exponent: Scalar = -0.5,
    replicates: int = 500,
) -> TwoSample:
    r"""Test whether independent examples are of a law, by the V-statistic and random signs.

    .. math:: \frac{1}{n^2} \sum_{ij} \epsilon_i \epsilon_j u(x_i, x_j), \qquad
              \epsilon_i = \pm 1

    has the null law as n grows. Draws of a chain must be thinned first.

    Args:
      key: for the signs.
      x: as :func:`kernel_stein_discrepancy` takes it.
      scores: as there.
      scale: as there.
      exponent: as there.
      replicates: how many signs are drawn for each example.

    Returns:
      :class:`TwoSample`.

    Raises:
      ValueError: as there, and for no replicate.

    Reference:
      K. Chwialkowski, H. Strathmann, A. Gretton, "A Kernel Test of Goodness of Fit", ICML 2016,
      for independent examples.
    """
    check_key(key)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}; 500 is usual.")
    kernel = _stein_kernel(x, scores, scale, exponent)
    signs = jax.random.rademacher(key, (replicates, len(x)), kernel.dtype)
    towards = jnp.matmul(signs, kernel, precision="highest")
    null = jnp.sum(towards * signs, axis=1) / len(x) ** 2
    statistic = jnp.mean(kernel)
    return TwoSample(statistic, p_value(statistic, null))


def _stein_kernel(x: Array, scores: Array, scale: Scalar, exponent: Scalar) -> Array:
    """Return the Stein kernel of all pairs."""
    if x.ndim != 2 or scores.shape != x.shape or len(x) < 2 or x.shape[1] < 1:
        raise ValueError(
            f"x and scores must both have shape (n, d) with n at least 2, got {x.shape} and "
            f"{scores.shape}. Flatten examples, and take jax.vmap(jax.grad(log_prob))(x)."
        )
    if not isinstance(scale, jax.core.Tracer) and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}; 1 is usual in whitened units.")
    if not isinstance(exponent, jax.core.Tracer) and not -1 < exponent < 0:
        raise ValueError(f"exponent must lie in (-1, 0), got {exponent}; -0.5 is usual.")
    check_finite("x", x)
    check_finite("scores", scores)
    squares = squared_distances(x, x)
    base = scale**2 + squares
    inner = jnp.matmul(scores, scores.T, precision="highest")
    apart = jnp.sum((x[:, None] - x[None]) * (scores[None] - scores[:, None]), axis=-1)
    slope = 2 * exponent * base ** (exponent - 1)
    curve = 4 * exponent * (exponent - 1) * base ** (exponent - 2)
    return inner * base**exponent + slope * (apart - x.shape[1]) - curve * squares
