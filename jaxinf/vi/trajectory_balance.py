"""Log-weights against a learnt logarithm of the evidence."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import Weighed, held_draws


@record
class Balanced:
    """Measures with an estimate of the log-evidence that is learnt beside them."""

    measures: Leaf
    log_evidence: Leaf

    def draw(self, key: Key) -> Weighed:
        """Draw by the measures."""
        return self.measures.draw(key)

    def evaluate(self, values: Any) -> tuple[Array, Array]:
        """Return the measures' log p and log q."""
        return self.measures.evaluate(values)


@dataclass(frozen=True)
class TrajectoryBalance:
    """See :func:`trajectory_balance`."""

    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return half the mean square."""
        if not isinstance(measures, Balanced):
            raise TypeError(
                f"trajectory balance learns the log-evidence too: pass vi.balanced(measures), not "
                f"{type(measures).__name__}; vi.log_variance() needs none."
            )
        draw, log_p, log_q = held_draws(key, measures, self.draws)
        log_w = log_p - log_q
        loss = 0.5 * jnp.mean(jnp.square(log_w - measures.log_evidence))
        return loss, info(jnp.mean(log_w), draw)


def balanced(measures: Any, log_evidence: float = 0.0) -> Balanced:
    """Measures with a number that learns log Z, for :func:`trajectory_balance`."""
    return Balanced(measures, jnp.asarray(log_evidence))


def trajectory_balance(draws: int = 16) -> TrajectoryBalance:
    r"""The mean square of log-weights about a learnt log-evidence.

    .. math:: \tfrac12 E_q\bigl[(\log p(x) - \log q(x) - \log Z_\theta)^2\bigr]

    under draws that are held. At the best :math:`Z_\theta` it is half the log-variance.

    Args:
      draws: over which it is averaged.

    Returns:
      The objective, of :func:`balanced` measures.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      N. Malkin, M. Jain, E. Bengio, C. Sun and Y. Bengio, "Trajectory balance: improved credit
      assignment in GFlowNets" (2022), eq. 14.
    """
    check_least(draws=draws)
    return TrajectoryBalance(draws)
