"""The direction of Laplacian adjusted Wasserstein gradient descent, on a line."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Leaf, is_concrete, record
from jaxinf.target import Target


@record
class LAWGD:
    """The direction; see :func:`lawgd`."""

    grid: Leaf
    values: Leaf
    """Eigenfunctions on the grid, [points, modes]."""
    slopes: Leaf
    """Their derivatives half-way between the grid's points, [points - 1, modes]."""
    eigenvalues: Leaf

    def __call__(self, target: Target, particles: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Return minus the gradient of the particles' potential; the target is in the tables."""
        if particles.shape[1] != 1:
            raise ValueError(
                f"this direction is for targets on a line, and particles have "
                f"{particles.shape[1]} coordinates; take svgd() or ksd()"
            )
        x = particles[:, 0]
        middle = (self.grid[1:] + self.grid[:-1]) / 2
        mean = jnp.mean(_between(x, self.grid, self.values), axis=0)
        slope = _between(x, middle, self.slopes)
        return -jnp.matmul(slope, mean / self.eigenvalues, precision="highest")[:, None]


def _between(x: Array, grid: Array, table: Array) -> Array:
    """Return the rows of a table at x by linear interpolation, [n, modes]; constant beyond."""
    return jax.vmap(lambda column: jnp.interp(x, grid, column), in_axes=1, out_axes=1)(table)


def lawgd(target: Target, low: float, high: float, *, points: int = 256, modes: int = 100) -> LAWGD:
    r"""The direction of Laplacian adjusted Wasserstein gradient descent, for a target on a line.

    .. math:: \phi(x) = -\frac1n \sum_j \nabla_1 K(x, x_j), \qquad
              K(x, y) = \sum_{i \ge 1} \lambda_i^{-1} \psi_i(x) \psi_i(y), \qquad
              -\psi_i'' - (\log\pi)' \psi_i' = \lambda_i \psi_i

    with the eigenfunctions of the Langevin operator orthonormal in L2(pi). They are found once, in
    float64 on the host, from the Schrodinger operator on a grid,

    .. math:: (S f)_k = \frac{-f_{k-1} - f_{k+1} + (e^{(V_k - V_{k+1})/2} + e^{(V_k - V_{k-1})/2})
              f_k}{\Delta^2}, \qquad V = -\log\pi, \quad \psi = f / \sqrt\pi,

    whose ground state is the root of pi exactly, with reflecting ends, and its error is of second
    order in the grid's spacing. Between the points values are interpolated; beyond the grid
    they are constant, and a particle there feels its edge's direction. In more than one dimension
    a grid grows exponentially and the paper has no other way, so it is refused.

    Args:
      target: of dimension one, with concrete numbers.
      low: where the grid begins, in the target's unit; with ``high`` it should hold all but 1e-4
        or so of the mass, since eigenfunctions grow as :math:`\pi^{-1/2}` where there is none.
      high: where it ends.
      points: of the grid.
      modes: how many eigenfunctions, of the smallest eigenvalues above 0.

    Returns:
      A :class:`Direction` for :func:`coin`. It holds the target's eigenfunctions as leaves and
      ignores the target that it is called with.

    Raises:
      TypeError: for a target that is being traced: eigenfunctions are found on the host.
      ValueError: for a target of more than one dimension, a range or numbers out of order, and
        densities on the grid that are not finite.

    Reference:
      S. Chewi, T. Le Gouic, C. Lu, T. Maunu and P. Rigollet, "SVGD as a kernelized Wasserstein
      gradient flow of the chi-squared divergence", NeurIPS 2020, section 4, algorithm 1 and its
      appendix on finite differences; L. Sharrock and C. Nemeth, "Coin Sampling: Gradient-Based
      Bayesian Inference without Learning Rates", ICML 2023.
    """
    if target.dim != 1:
        raise ValueError(
            f"eigenfunctions are found on a grid over a line, and the target has dimension "
            f"{target.dim}; take svgd() or ksd()"
        )
    if not low < high:
        raise ValueError(f"the range must be low < high, got {low} and {high}.")
    if not 1 <= modes < points:
        raise ValueError(f"modes must be from 1 to points - 1 = {points - 1}, got {modes}.")
    if not is_concrete(target):
        raise TypeError("the target is being traced; call lawgd before jit, vmap or grad.")
    grid = np.linspace(low, high, points)
    energy = -np.asarray(jax.vmap(target.log_prob)(jnp.asarray(grid)[:, None]), np.float64)
    if not np.all(np.isfinite(energy)):
        where = grid[~np.isfinite(energy)][0]
        raise ValueError(f"the log density is not finite at {where:.4g}; narrow the range.")
    values, eigenvalues = _eigenfunctions(energy, grid[1] - grid[0], modes)
    slopes = np.diff(values, axis=0) / (grid[1] - grid[0])
    return LAWGD(*map(jnp.asarray, (grid, values, slopes, eigenvalues)))


def _eigenfunctions(
    energy: np.ndarray, spacing: float, modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenfunctions, orthonormal under the normalised density, and their eigenvalues."""
    up, down = np.exp(-np.diff(energy) / 2), np.exp(np.diff(energy) / 2)
    diagonal = np.append(up, 0.0) + np.append(0.0, down)
    beside = -np.ones(len(energy) - 1)
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    density = np.exp(energy.min() - energy)
    density /= density.sum()  # of the points, so that vectors of unit length are orthonormal
    values = vectors[:, 1 : modes + 1] / np.sqrt(density)[:, None]
    return values, eigenvalues[1 : modes + 1] / spacing**2
