"""The sliced Wasserstein distance between two samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, check_key


def _coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of n and of m sorted points are coupled, and the mass of each pair.

    Both quantile functions are constant between the jumps i/n and j/m; in units of 1/(nm) these are
    whole numbers, so the grid is exact.
    """
    jumps = np.union1d(np.arange(n, dtype=np.int64) * m, np.arange(m, dtype=np.int64) * n)
    mass = np.diff(jumps, append=n * m) / (n * m)
    return jumps // m, jumps // n, mass


def sliced_wasserstein(
    key: Key, x: Float[Array, "n ..."], y: Float[Array, "m ..."], projections: int = 512
) -> Float[Array, ""]:
    r"""The sliced Wasserstein distance of order two between two samples.

    .. math:: \mathrm{SW}_2^2 = \operatorname{mean}_k W_2^2(\langle\theta_k, x\rangle,
              \langle\theta_k, y\rangle), \qquad
              W_2^2(a, b) = \int_0^1 (F_a^{-1}(u) - F_b^{-1}(u))^2 \, du

    over random unit directions. The integral is exact for any two sizes. Between two samples of one
    law it is not 0; compare with the distance between two halves of the data.

    Args:
      key: for the directions; the same key gives the same directions.
      x: a sample, one example a row; examples of any shape are flattened.
      y: another sample of examples of the same shape, of the same size or not.
      projections: number of directions.

    Returns:
      The distance in units of the data.

    Raises:
      ValueError: when examples differ in shape, or there are none.

    Reference:
      N. Bonneel, J. Rabin, G. Peyre, H. Pfister, "Sliced and Radon Wasserstein Barycenters of
      Measures", Journal of Mathematical Imaging and Vision 51, 2015, section 3, in the form of an
      average over directions.
    """
    check_key(key)
    if x.shape[1:] != y.shape[1:] or x.ndim < 1 or 0 in (*x.shape, *y.shape):
        raise ValueError(
            f"x and y must be samples of examples of one shape, got {x.shape} and {y.shape}. "
            "The leading axis counts examples; the others must agree."
        )
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}.")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    directions = jax.random.normal(key, (projections, x.shape[1]), jnp.result_type(x, y))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    i, j, mass = _coupling(len(x), len(y))
    project = partial(jnp.matmul, directions, precision="highest")
    a = jnp.sort(project(x.T), axis=1)[:, i]
    b = jnp.sort(project(y.T), axis=1)[:, j]
    return jnp.sqrt(jnp.mean(jnp.square(a - b) @ jnp.asarray(mass, a.dtype)))
