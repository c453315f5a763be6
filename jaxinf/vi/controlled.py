"""Annealed Langevin paths with a control that is learnt."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Diagonal, Gaussian, Leaf, record, static
from jaxinf.vi.annealing import Annealed, Annealing, no_control


@record
class Controlled(Annealed):
    """See :func:`controlled`, :func:`langevin_annealing` and :func:`monte_carlo_diffusion`."""

    params: Leaf
    apply: Callable[..., Any] = static()
    ahead: bool = static()
    """Whether the control drives the way forward too, or corrects the way back alone."""

    def around(self, target: Any, k: Any, state: Array) -> tuple[Gaussian, Gaussian]:
        """Return Gaussian steps back and forth."""
        here, onward = self.path.score(target, jnp.stack([k, k + 1]), state)
        u = self.apply(self.params, state, k / self.steps)
        behind, ahead = self.path.step(jnp.maximum(k - 1, 0)), self.path.step(k)
        drift = here + u if self.ahead else onward
        return (
            Gaussian(state + behind * (here - u), Diagonal(jnp.sqrt(2 * behind))),
            Gaussian(state + ahead * drift, Diagonal(jnp.sqrt(2 * ahead))),
        )


def controlled(path: Annealing, apply: Callable[..., Any], params: Any) -> Controlled:
    r"""Controlled Monte Carlo diffusion.

    .. math:: F_k &= N\bigl(x + h_k (\nabla \log \pi_k(x) + u(x, t_k)), 2 h_k I\bigr) \\
              B_k &= N\bigl(x' + h_k (\nabla \log \pi_{k+1}(x') - u(x', t_{k+1})), 2 h_k I\bigr)

    The log weight of a path is a controlled Crooks work; at the control that carries
    :math:`\pi_t` along exactly it is constant as steps grow.

    Args:
      path: :func:`annealing`.
      apply: u, ``apply(params, x, t)`` of one state and a time in [0, 1], zero at first.
      params: its parameters.

    Returns:
      The kernels, for :func:`path_measures`.

    Reference:
      F. Vargas, S. Padhy, D. Blessing and N. Nusken, "Transport meets variational inference:
      controlled Monte Carlo diffusions" (2024), eqs. 21 to 23. Time is scaled so that sigma is 1.
    """
    return Controlled(path, params, apply, True)


def langevin_annealing(path: Annealing) -> Controlled:
    r"""Unadjusted Langevin annealing.

    .. math:: F_k = N\bigl(x + h_k \nabla \log \pi_{k+1}(x), 2 h_k I\bigr), \qquad
              B_k = N\bigl(x' + h_k \nabla \log \pi_{k+1}(x'), 2 h_k I\bigr)

    Its weights are those of annealed importance sampling with Langevin steps that are not
    corrected, held against their reversal.

    Reference:
      A. Thin, N. Kotelevskii, A. Doucet, A. Durmus, E. Moulines and M. Panov, "Monte Carlo
      variational auto-encoders" (2021), section 3.2.
    """
    return Controlled(path, (), no_control, False)


def monte_carlo_diffusion(path: Annealing, apply: Callable[..., Any], params: Any) -> Controlled:
    r"""Langevin annealing whose reversal is learnt.

    .. math:: F_k &= N\bigl(x + h_k \nabla \log \pi_{k+1}(x), 2 h_k I\bigr) \\
              B_k &= N\bigl(x' + h_k (\nabla \log \pi_{k+1}(x') - u(x', t_{k+1})), 2 h_k I\bigr)

    Args:
      path: :func:`annealing`.
      apply: u, ``apply(params, x, t)``.
      params: its parameters.

    Returns:
      The kernels, for :func:`path_measures`.

    Reference:
      A. Doucet, W. Grathwohl, A. G. de G. Matthews and H. Strathmann, "Score-based diffusion meets
      annealed importance sampling" (2022), eqs. 14 to 17.
    """
    return Controlled(path, params, apply, False)
