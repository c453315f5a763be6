r"""Decoupled annealing: a posterior draw of the clean example at each level, noised to the next.

.. math:: \hat x_0 = \mathrm{flow}(x_t), \quad
          x_0 \sim N(\hat x_0, r_t^2 C)\, L(x_0) / Z, \quad
          x_s \sim N(\alpha_s x_0, \sigma_s^2 C)

From x_t a few steps of the probability flow lead to x0hat, a Markov chain from there draws the
clean example from what a Gaussian about x0hat and the likelihood say together, and noise of the
next level is added to it: x_s depends on x_t through x_0 alone, so that errors of early levels are
not carried on. Were p(x_0 | x_t) that Gaussian and the chain long, x_s would have the law of the
level given the observation, at every step and however few there are. So it is for data N(m, d^2 C)
with ``flow_steps=1``, by which x0hat is E[x_0 | x_t], and ``data_scale`` d.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxinf import mcmc
from jaxinf.core import Gaussian as GaussianLaw
from jaxinf.core import (
    Independent,
    Leaf,
    Noise,
    Scalar,
    is_concrete,
    record,
    static,
)
from jaxinf.process import Gaussian
from jaxinf.process.prediction import check_signal
from jaxinf.sampler import Denoise, State, ddim
from jaxinf.sampler.stepper import has_table
from jaxinf.target import density


class DecoupledInfo(NamedTuple):
    """What a step tells."""

    clean: Leaf
    """x0hat, where the probability flow leads."""
    draw: Leaf
    """The draw of x_0 given x_t and the observation."""
    acceptance: Float[Array, ""]
    """Of the chain's moves, the mean."""


@record
class Likelihood:
    """A log-likelihood as a record with its data as leaves."""

    data: Leaf
    function: Callable[[Any, Array], Any] = static()

    def log_prob(self, x0: Array) -> Any:
        """Return the function's value."""
        return self.function(self.data, x0)


def _log_likelihood(likelihood: Any, x0: Array) -> Any:
    """Return log L(x_0)."""
    return likelihood.log_prob(x0)


@record
class Decoupled:
    """See :func:`decoupled`."""

    process: Leaf
    likelihood: Leaf
    kernel: Leaf
    flow: Leaf
    data_scale: Leaf
    moves: int = static()
    flow_steps: int = static()

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, DecoupledInfo]:
        """Go from t to s by way of a clean example."""
        if not isinstance(noise, Independent):
            raise TypeError(
                f"the chain's moves are not drawn from {type(noise).__name__}; leave "
                "sampler.sample's noise at None, and increments are independent"
            )
        moves, fresh = jax.random.split(noise.key_of(t, s))
        clean = self._flowed(denoise, noise, state.x, t)
        draw, acceptance = self._drawn(moves, clean, t)
        z = jax.random.normal(fresh, draw.shape, draw.dtype)
        x, _ = self.process.perturb(draw, z, s)
        return State(x), DecoupledInfo(clean, draw, acceptance)

    def calls(self, t: float, s: float) -> int:
        """Those of the probability flow from t to 0."""
        times = t * np.linspace(1, 0, self.flow_steps + 1)
        return sum(self.flow.calls(*pair) for pair in itertools.pairwise(times))

    def width(self, t: Scalar) -> Array:
        """Return r_t = 1 / sqrt(1 / d^2 + alpha^2 / sigma^2)."""
        ratio = self.process.alpha(t) / self.process.sigma(t)
        return jax.lax.rsqrt(jnp.square(1 / self.data_scale) + jnp.square(ratio))

    def _flowed(self, denoise: Denoise, noise: Noise, x: Array, t: Scalar) -> Array:
        """Follow the probability flow from t to 0."""
        times = jnp.asarray(t * jnp.linspace(1, 0, self.flow_steps + 1, dtype=jnp.result_type(t)))

        def step(state: Any, pair: tuple[Array, Array]) -> tuple[Any, None]:
            new, _ = self.flow.step(denoise, noise, state, *pair)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), None

        return jax.lax.scan(step, self.flow.init(x), (times[:-1], times[1:]))[0].x

    def _drawn(self, key: Any, clean: Array, t: Scalar) -> tuple[Array, Array]:
        """Move a chain that starts at x0hat; its steps are in units of r_t."""
        local = self.process.covariance.scaled(self.width(t))
        about = GaussianLaw(clean, local)
        target = density(_log_likelihood, clean, self.likelihood, prior=about)
        metric = self.kernel.metric.scaled(self.width(t))
        kernel = dataclasses.replace(self.kernel, metric=metric)

        def move(state: mcmc.State, key: Any) -> tuple[mcmc.State, Array]:
            state, info = kernel.step(key, target, state)
            return state, info.acceptance

        start = kernel.init(target, target.unconstrain(clean))
        end, acceptance = jax.lax.scan(move, start, jax.random.split(key, self.moves))
        return target.constrain(end.z), jnp.mean(acceptance)


def decoupled(
    process: Gaussian,
    likelihood: Any,
    kernel: Any,
    *,
    data: PyTree = (),
    moves: int = 100,
    flow: Any = None,
    flow_steps: int = 5,
    data_scale: Scalar = np.inf,
) -> Decoupled:
    """Decoupled annealing posterior sampling (DAPS), a stepper.

    Args:
      process: the Gaussian process to reverse.
      likelihood: log L: a function ``(data, x0) ->`` one number (part of the program), or a pytree
        with ``log_prob(x0)``.
      kernel: of the chain, ``mcmc.mala(0.5)``, ``mcmc.hmc(10, 0.3)`` or ``mcmc.random_walk(0.5)``;
        its step is in units of r_t and is not adapted: look at ``info.acceptance``.
      data: what the function takes, the stepper's leaves; observations of a batch each of its own
        by ``jax.vmap`` over :func:`jaxinf.sampler.sample`.
      moves: of the chain at each level.
      flow: a one-step stepper of the probability flow, by default ``sampler.ddim(process)``.
      flow_steps: how many, equal in time from t to 0.
      data_scale: d of r_t^2 = 1 / (1 / d^2 + alpha_t^2 / sigma_t^2), in the units of the data. At
        infinity r_t = sigma_t / alpha_t, the paper's choice.

    Returns:
      The stepper, with :class:`DecoupledInfo`. It calls the denoiser as often as the flow.

    Raises:
      TypeError: for a likelihood that is neither, a kernel without a metric, or a flow that is no
        one-step method.
      ValueError: for moves or steps below 1, a data scale that is not positive, or one that is
        infinite where alpha(t_max) is 0, since r_t is infinite there.

    Reference:
      B. Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing"
      (CVPR 2025), proposition 1, equation 7 and algorithm 1.

    Example:
      ``guide.decoupled(p, lambda y, x0: -jnp.sum((y - x0) ** 2), mcmc.mala(0.5), data=y)``
    """
    flow = ddim(process) if flow is None else flow
    _check(process, kernel, flow, data_scale, moves, flow_steps)
    likelihood = _as_record(likelihood, data)
    return Decoupled(process, likelihood, kernel, flow, data_scale, moves, flow_steps)


def _as_record(likelihood: Any, data: PyTree) -> Any:
    """Return a likelihood with ``log_prob``."""
    if hasattr(likelihood, "log_prob"):
        return likelihood
    if not callable(likelihood):
        raise TypeError(
            "a likelihood is a function (data, x0) -> number or has log_prob(x0), got "
            f"{type(likelihood).__name__}"
        )
    return Likelihood(jax.tree.map(jnp.asarray, data), likelihood)


def _check(
    process: Gaussian, kernel: Any, flow: Any, data_scale: Scalar, moves: int, flow_steps: int
) -> None:
    """Raise on what can be seen at once."""
    for name, value in (("moves", moves), ("flow_steps", flow_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not hasattr(kernel, "metric"):
        raise TypeError(
            f"the chain's steps are scaled by its metric, and {type(kernel).__name__} has none; "
            "mcmc.mala(0.5) and mcmc.random_walk(0.5) do"
        )
    state = jax.eval_shape(flow.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if has_table(flow) or not isinstance(state, State):
        raise TypeError(
            f"the flow starts anew at each level, and {type(flow).__name__} is no one-step method; "
            "sampler.ddim(process) and sampler.heun(process) are"
        )
    if not is_concrete((process, data_scale)):
        return
    if not float(data_scale) > 0:
        raise ValueError(f"data_scale must be positive, got {data_scale}")
    if not np.isfinite(data_scale):
        mend = "pass the data's standard deviation as data_scale, or end the schedule earlier"
        check_signal(process, "r_t = sigma / alpha", mend=mend)
