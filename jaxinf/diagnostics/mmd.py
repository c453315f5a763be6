"""The maximum mean discrepancy between two samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Scalar, check_key
from jaxinf.diagnostics.samples import check_samples, off_diagonal, p_value, squared_distances


class TwoSample(NamedTuple):
    """A test's statistic and p-value."""

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]


def median_distance(x: Float[Array, "n ..."], y: Float[Array, "m ..."]) -> Float[Array, ""]:
    """Return the median distance between two different examples of both samples together.

    Args:
      x: a sample, one example a row; examples of any shape are flattened.
      y: another sample of examples of the same shape.

    Returns:
      The distance in units of the data: the usual bandwidth of :func:`mmd`.
    """
    both = jnp.concatenate(check_samples(x, y))
    pairs = jnp.triu_indices(len(both), 1)
    return jnp.sqrt(jnp.median(squared_distances(both, both)[pairs]))


def mmd(
    x: Float[Array, "n ..."], y: Float[Array, "m ..."], bandwidth: Scalar | None = None
) -> Float[Array, ""]:
    r"""The squared maximum mean discrepancy, unbiased.

    .. math:: \mathrm{MMD}_u^2 = \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j)
              + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm} \sum_{ij} k(x_i, y_j),
              \qquad k(x, y) = e^{-|x - y|^2 / (2 h^2)}

    It is 0 in the mean for two samples of one law, and then below 0 about as often as above.

    Args:
      x: a sample, one example a row; examples of any shape are flattened.
      y: another sample of examples of the same shape.
      bandwidth: h, in units of the data; by default :func:`median_distance`, which makes the mean
        of equal laws' figure still 0.

    Returns:
      The discrepancy's square. (n + m)^2 kernels are computed.

    Raises:
      ValueError: when examples differ in shape, for fewer than two of a sample, for numbers that
        are not finite, and for a bandwidth that is not positive.

    Reference:
      A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf, A. Smola, "A Kernel Two-Sample Test",
      JMLR 2012.
    """
    kernel, n = _kernel(x, y, bandwidth)
    first = (jnp.arange(len(kernel)) < n).astype(kernel.dtype)
    return _statistic(kernel, first[None], n)[0]


def mmd_test(
    key: Key,
    x: Float[Array, "n ..."],
    y: Float[Array, "m ..."],
    bandwidth: Scalar | None = None,
    *,
    permutations: int = 500,
) -> TwoSample:
    """Test whether two samples are of one law, by :func:`mmd` and random permutations of the two.

    Args:
      key: for the permutations.
      x: a sample, as :func:`mmd` takes it.
      y: another one.
      bandwidth: as :func:`mmd` takes it.
      permutations: how many; the p-value is at least 1 / (permutations + 1).

    Returns:
      :class:`TwoSample`, whose p-value is valid whatever the law and size.

    Raises:
      ValueError: as :func:`mmd`, and for no permutation.

    Reference:
      As :func:`mmd`; the p-value counts the order that was found, too.
    """
    check_key(key)
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}; 500 is usual.")
    kernel, n = _kernel(x, y, bandwidth)
    first = jnp.arange(len(kernel)) < n
    keys = jax.random.split(key, permutations)
    mixed = jax.vmap(jax.random.permutation, (0, None))(keys, first)
    found = _statistic(kernel, jnp.concatenate([first[None], mixed]).astype(kernel.dtype), n)
    return TwoSample(found[0], p_value(found[0], found[1:]))


def _kernel(x: Array, y: Array, bandwidth: Scalar | None) -> tuple[Array, int]:
    """Return the kernel of all pairs of different examples, 0 else, and how many are of x."""
    if bandwidth is None:
        bandwidth = median_distance(x, y)
    elif not isinstance(bandwidth, jax.core.Tracer) and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}; None takes the median.")
    both = jnp.concatenate(check_samples(x, y))
    values = jnp.exp(-squared_distances(both, both) / (2 * bandwidth**2))
    return jnp.where(off_diagonal(len(both)), values, 0), len(x)


def _statistic(kernel: Array, first: Float[Array, "k total"], n: int) -> Float[Array, " k"]:
    """Return the statistic for several choices of which examples are the first sample."""
    m = len(kernel) - n
    towards = jnp.matmul(first, kernel, precision="highest")
    within = jnp.sum(towards * first, axis=1)
    across = jnp.sum(towards * (1 - first), axis=1)
    rest = jnp.sum(kernel) - within - 2 * across
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)
