"""UniPC: predictor and corrector of any order on the clean example."""

from jaxinf.process import Gaussian
from jaxinf.sampler.exponential import Exponential, exponential


def unipc(process: Gaussian, order: int = 3, pair: str = "B2") -> Exponential:
    """UniPC-p: UniP-p corrected by UniC-p, of order p + 1 at one call of the denoiser a step.

    Two values are weighted by the paper's fixed half of their difference, scaled by B_2 = e^h - 1
    or B_1 = h; with more its conditions are those of the interpolating polynomial. The last step
    is not corrected, since that would take one call more.

    Args:
      process: the Gaussian process to reverse.
      order: p, at least 1.
      pair: "B2", or "B1", which the paper prefers for unconditional models.

    Returns:
      The stepper.

    Reference:
      UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, Zhao et
      al., 2023, algorithms 5 to 8 with data prediction.
    """
    return exponential(process, order, corrector=True, pair=pair)
