"""Moment matching: Tweedie's covariance, with a solve by few products or in full."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, record
from jaxinf.guide.belief import GMRES, Apply, Belief, Dense, Solve
from jaxinf.guide.conditioned import View


@record
class MomentMatching:
    """N(D, (sigma^2 / alpha) C dD / dx)."""

    solve: Leaf

    def view(self, process: Any, x: Array, t: Scalar, mean: Array, tweedie: Apply) -> View:
        """Return what is believed at (x, t)."""
        return View(Belief(mean, tweedie, self.solve), tweedie)


def mmps(iterations: int | None = None, *, solve: Callable[[int], Solve] = GMRES) -> MomentMatching:
    r"""Moment matching posterior sampling: p(x_0 | x_t) by its first two moments.

    .. math:: \nabla \log p(y \mid x_t) \approx J^\top A^\top
              (\Sigma_y + A V A^\top)^{-1} (y - A D), \quad V = \frac{\sigma^2}{\alpha} C J^\top

    with J the denoiser's derivative; exact for a Gaussian prior and a linear observation.

    Args:
      iterations: of the solve, each a product with J^T; 1 to 5 serve. None solves in full, with
        as many products as the observation has numbers.
      solve: ``guide.GMRES``, or ``guide.ConjugateGradients``, the paper's, for a J that is
        symmetric: a trained network's is not, and on it they may diverge after one.

    Returns:
      The method. With iterations the twist takes its determinant from row sums.

    Raises:
      ValueError: for fewer than one iteration.

    Reference:
      Learning Diffusion Priors from Observations by Expectation Maximization, Rozet et al., 2024,
      section 4.2 and algorithms 2 to 4.
    """
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; None solves in full")
    return MomentMatching(Dense() if iterations is None else solve(iterations))
