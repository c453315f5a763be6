"""Gaussian processes pinned at both ends: q(x_t | x_0, x_T)."""

from jaxtyping import Array

from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.core import Leaf, Scalar, record, root
from jaxinf.process.gaussian import Gaussian
from jaxinf.process.prediction import check_signal


@record
class Pinned:
    """x_t = a(t) x_0 + b(t) x_T + c(t) C^(1/2) z, a process given where it is at 0 and at T."""

    process: Leaf
    end: Leaf

    @property
    def t_min(self) -> Leaf:
        """The process's earliest time."""
        return self.process.t_min

    @property
    def t_max(self) -> Leaf:
        """T."""
        return self.end

    def coefficients(self, t: Scalar) -> tuple[Array, Array, Array]:
        r"""Return (a, b, c) at t in [0, T], with r = SNR_T / SNR_t.

        .. math:: a = \alpha_t (1 - r), \quad b = r \alpha_t / \alpha_T, \quad
                  c = \sigma_t \sqrt{1 - r}
        """
        process = self.process
        alpha, sigma = process.alpha(t), process.sigma(t)
        last, spread = process.alpha(self.end), process.sigma(self.end)
        ratio = last * sigma / (spread * alpha)
        rest = (1 - ratio) * (1 + ratio)
        return alpha * rest, ratio * sigma / spread, sigma * root(rest)

    def perturb(self, x0: Array, x_T: Array, z: Array, t: Scalar) -> Array:
        """Return x_t of both ends and white noise z."""
        law = self.law(x0, x_T, t)
        return (law.mean + law.covariance.sqrt(z)).astype(x0.dtype)

    def law(self, x0: Array, x_T: Array, t: Scalar) -> GaussianLaw:
        """Return the law of x_t given both ends."""
        a, b, c = self.coefficients(t)
        return GaussianLaw(a * x0 + b * x_T, self.process.covariance.scaled(c))

    def until(self, t: Scalar) -> "Pinned":
        """Return the process pinned at 0 and t: with x_t as its end, q(x_s | x_0, x_t, x_T)."""
        return Pinned(self.process, t)


def pinned(process: Gaussian, end: Scalar | None = None) -> Pinned:
    r"""Pin a Gaussian process at both ends: the bridges between pairs (x_0, x_T).

    .. math:: q(x_t \mid x_0, x_T) = N(a x_0 + b x_T, c^2 C)

    with the coefficients of :meth:`Pinned.coefficients`. Of a process with alpha = 1 it is a
    Brownian bridge in the time sigma^2, I2SB's; of any other, DDBM's.

    Args:
      process: ``process.gaussian(schedule)``.
      end: T, the process's ``t_max`` by default.

    Returns:
      The pinned process; x_T takes the place of an example.

    Raises:
      ValueError: where alpha(T) is 0, since x_T then says nothing of x_t.

    Reference:
      Denoising Diffusion Bridge Models, Zhou et al., 2024, equation 8; I2SB: Image-to-Image
      Schrodinger Bridge, Liu et al., 2023, equation 11.
    """
    end = process.t_max if end is None else end
    check_signal(process, "a process pinned at T, where x_T is to tell of the way,", end)
    return Pinned(process, end)
