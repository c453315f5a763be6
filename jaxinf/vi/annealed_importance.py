"""Annealed importance sampling as two laws of one path."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record
from jaxinf.mcmc import Kernel
from jaxinf.vi.annealing import Annealed, Annealing


@record
class Moved:
    """The law of a reversible chain's next state, by its density against the chain itself."""

    kernel: Leaf
    density: Leaf
    state: Leaf

    def sample(self, key: Key) -> Array:
        """Take a transition."""
        start = self.kernel.init(self.density, self.state)
        return self.kernel.step(key, self.density, start)[0].z

    def log_prob(self, new: Array) -> Float[Array, ""]:
        """Return the log density that the chain keeps."""
        return self.density.log_prob(new)


@record
class AnnealedImportance(Annealed):
    """See :func:`annealed_importance`."""

    kernel: Leaf

    def around(self, target: Any, k: Any, state: Array) -> tuple[Moved, Moved]:
        """Return the transition that led here, undone, and the one at the next density."""
        behind, ahead = (self.path.at(target, i) for i in (k, k + 1))
        return Moved(self.kernel, behind, state), Moved(self.kernel, ahead, state)


def annealed_importance(path: Annealing, kernel: Any) -> AnnealedImportance:
    r"""Annealed importance sampling.

    .. math:: F_k = T_{k+1}, \quad B_k = \tilde T_{k+1}, \qquad
              \frac{p(x_{0:K})}{q(x_{0:K})} = \prod_{k=0}^{K-1} \frac{\pi_{k+1}(x_k)}{\pi_k(x_k)}

    with :math:`T_k` a chain that keeps :math:`\pi_k` and :math:`\tilde T_k` its reversal. Only the
    ratio :math:`B_k / F_k = \pi_{k+1}(x_k) / \pi_{k+1}(x_{k+1})` is known, so that the two
    densities are right in their difference alone: it is there to weigh, and not to be learnt.

    Args:
      path: :func:`annealing`; its step lengths are not used.
      kernel: a reversible chain of :mod:`jaxinf.mcmc`: ``mcmc.hmc(3, 0.3)``.

    Returns:
      The kernels, for :func:`path_measures`, :func:`evidence` and :func:`resampled`.

    Raises:
      TypeError: for what is no chain.

    Reference:
      R. M. Neal, "Annealed importance sampling", Statistics and Computing (2001), eqs. 3 to 11.

    Example:
      ``vi.annealed_importance(vi.annealing(10, 64), mcmc.hmc(3, 0.3))``
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"{type(kernel).__name__} is no chain: pass mcmc.hmc(3, 0.3), or another.")
    return AnnealedImportance(path, kernel)
