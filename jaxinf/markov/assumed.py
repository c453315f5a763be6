"""Gaussian steps that filters and smoothers take for linear, where their laws are."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.core import Gaussian, Key, record, static
from jaxinf.core.types import Leaf
from jaxinf.markov.gaussian_step import linearise, regress
from jaxinf.markov.linear_gaussian import LinearGaussian
from jaxinf.markov.state_space import OverTime, StateSpace


@record
class Assumed:
    """A step with the exact kernels' laws and inverses, of its linearisation at the prior.

    The kernel itself still draws: ``sample``, ``log_prob`` and ``tilt`` are the step's.
    """

    step: Leaf
    unscented: bool = static(default=False)

    def near(self, prior: Gaussian) -> LinearGaussian:
        """Return the linear kernel that stands for the step under a law of its start."""
        if self.unscented:
            return regress(self.step, prior)
        return linearise(self.step, prior.mean)

    def at(self, x: Float[Array, " d"]) -> tuple[Array, Array]:
        """Return the mean of y given x, and a root of its covariance."""
        return self.step.at(x)

    def sample(self, key: Key, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """Draw y given x."""
        return self.step.sample(key, x)

    def log_prob(self, x: Float[Array, " d"], y: Float[Array, " m"]) -> Float[Array, ""]:
        """Return log k(y | x), in nats."""
        return self.step.log_prob(x, y)

    def tilt(self, x: Float[Array, " d"], message: Any) -> tuple[Gaussian, Float[Array, ""]]:
        """Return the law proportional to k(y | x) h(y), and log (k h)(x)."""
        return self.step.tilt(x, message)

    def push(self, prior: Gaussian) -> Gaussian:
        """Return about the law of y for x drawn from a prior."""
        return self.near(prior).push(prior)

    def invert(self, prior: Gaussian) -> LinearGaussian:
        """Return about the kernel of x given y."""
        return self.near(prior).invert(prior)

    def observe(self, prior: Gaussian, y: Float[Array, " m"]) -> tuple[Gaussian, Float[Array, ""]]:
        """Return about the law of x given y, and the log density of y."""
        return self.near(prior).observe(prior, y)


def extended(model: StateSpace) -> StateSpace:
    """A state space whose filter is the extended Kalman filter.

    Every Gaussian step is taken for its Taylor expansion at the mean of the law that it meets;
    :func:`filter`, :func:`smooth` and :func:`sample_path` do the rest, one time after another.

    Args:
      model: Gaussian steps, the transition and the emission; exact kernels are left alone.

    Returns:
      The model with :class:`Assumed` kernels, from which draws are still the model's own.

    Raises:
      TypeError: for a kernel without ``at(x)``.

    Reference: Sarkka and Svensson, "Bayesian Filtering and Smoothing" (2nd edition, 2023).
    """
    return _assumed(model, unscented=False)


def unscented(model: StateSpace) -> StateSpace:
    """A state space whose filter is the cubature (unscented) Kalman filter; see :func:`extended`.

    Every Gaussian step is taken for the linear kernel nearest to it under the law that it meets,
    by :func:`regress`: exact to the third degree, and without derivatives.
    """
    return _assumed(model, unscented=True)


def _assumed(model: StateSpace, unscented: bool) -> StateSpace:
    """See :func:`extended`."""

    def assume(kernel: Any) -> Any:
        inner = kernel.kernels if isinstance(kernel, OverTime) else kernel
        if hasattr(inner, "push"):
            return kernel
        if not hasattr(inner, "at"):
            raise TypeError(
                f"{type(inner).__name__} says no mean and root at a state: make it a "
                "markov.gaussian_step, or filter by particles with smc.particle_filter."
            )
        made = Assumed(inner, unscented)
        return OverTime(made) if isinstance(kernel, OverTime) else made

    return StateSpace(model.initial, assume(model.transition), assume(model.emission))
