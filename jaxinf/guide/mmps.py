"""Moment matching: Tweedie's covariance, with a solve by conjugate gradients or in full."""

from typing import Any

from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, record
from jaxinf.guide.belief import Apply, Belief, ConjugateGradients, Dense
from jaxinf.guide.conditioned import View


@record
class MomentMatching:
    """N(D, (sigma^2 / alpha) C dD / dx)."""

    solve: Leaf

    def view(self, process: Any, x: Array, t: Scalar, mean: Array, tweedie: Apply) -> View:
        """Return what is believed at (x, t)."""
        return View(Belief(mean, tweedie, self.solve), tweedie)


def mmps(iterations: int | None = None) -> MomentMatching:
    r"""Moment matching posterior sampling: p(x_0 | x_t) by its first two moments.

    .. math:: \nabla \log p(y \mid x_t) \approx J^\top A^\top
              (\Sigma_y + A V A^\top)^{-1} (y - A D), \quad V = \frac{\sigma^2}{\alpha} C J^\top

    with J the denoiser's derivative; exact for a Gaussian prior and a linear observation.

    Args:
      iterations: of conjugate gradients, each a product with J^T; the paper's take 1 to 5. A
        trained network's J is not symmetric, and on it more than one may diverge. None solves in
        full, with as many products as the observation has numbers.

    Returns:
      The method. With conjugate gradients the twist takes its determinant from row sums.

    Raises:
      ValueError: for fewer than one iteration.

    Reference:
      Learning Diffusion Priors from Observations by Expectation Maximization, Rozet et al., 2024,
      section 4.2 and algorithms 2 to 4.
    """
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; None solves in full")
    return MomentMatching(Dense() if iterations is None else ConjugateGradients(iterations))
