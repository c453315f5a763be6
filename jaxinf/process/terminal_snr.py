"""Rescaling a schedule so that its last signal-to-noise ratio is zero."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, concretely, is_concrete, record
from jaxinf.process.schedules import Schedule


@record
class ZeroTerminalSNR:
    """A variance-preserving schedule rescaled so that alpha(t_max) = 0."""

    base: Leaf

    @property
    def t_min(self) -> Leaf:
        """The base's."""
        return self.base.t_min

    @property
    def t_max(self) -> Leaf:
        """The base's."""
        return self.base.t_max

    def alpha(self, t: Scalar) -> Array:
        """Return the base's alpha, shifted and scaled, at most 1."""
        t = jnp.asarray(t)
        first = self.base.alpha(jnp.asarray(self.t_min, t.dtype))
        last = self.base.alpha(jnp.asarray(self.t_max, t.dtype))
        return jnp.minimum((self.base.alpha(t) - last) * first / (first - last), 1)

    def sigma(self, t: Scalar) -> Array:
        """Return sqrt(1 - alpha^2)."""
        alpha = self.alpha(t)
        return jnp.sqrt((1 - alpha) * (1 + alpha))


def zero_terminal_snr(schedule: Schedule) -> ZeroTerminalSNR:
    """Rescale a variance-preserving schedule so that its last signal-to-noise ratio is exactly 0.

    alpha'(t) = (alpha(t) - alpha(T)) alpha(t_min) / (alpha(t_min) - alpha(T)): shifted so that the
    last is 0, scaled so that the first is unchanged. Values above 1, which occur below t_min only,
    are cut to 1.

    Args:
      schedule: any variance-preserving schedule.

    Returns:
      A schedule. Predict v, x0 or velocity with it: at zero signal-to-noise the noise says nothing
      of the data.

    Raises:
      ValueError: where the schedule is concrete and alpha^2 + sigma^2 is not 1.

    Reference:
      Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, algorithm 1.
    """
    if is_concrete(schedule):
        with concretely():
            power = schedule.alpha(schedule.t_max) ** 2 + schedule.sigma(schedule.t_max) ** 2
        if abs(float(power) - 1) > 1e-3:
            raise ValueError(
                "only a variance-preserving schedule can be rescaled, and this one has "
                f"alpha^2 + sigma^2 = {float(power):.4g} at t_max; process.variance_preserving("
                "alpha) makes one of its alpha"
            )
    return ZeroTerminalSNR(schedule)
