"""Tweedie moment projected diffusions: Tweedie's covariance by its row sums."""

from jaxinf.guide.belief import RowSums
from jaxinf.guide.mmps import MomentMatching


def tmpd() -> MomentMatching:
    r"""Tweedie moment projected diffusions: the covariance of y given x_t by its row sums.

    .. math:: \nabla \log p(y \mid x_t) \approx J^\top A^\top
              \mathrm{diag}(\Sigma_y + A V A^\top 1)^{-1} (y - A D)

    Two products with the denoiser's derivative a call. The sums are taken in units of the noise,
    and negative ones count as 0.

    Returns:
      The method.

    Reference:
      Tweedie Moment Projected Diffusions For Inverse Problems, Boys et al., 2023, equations 15 and
      16 and section 4.
    """
    return MomentMatching(RowSums())
