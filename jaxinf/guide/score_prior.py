"""A score model as a prior with a density, by the probability flow."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Exact, Gaussian, Key, Leaf, PyTree, Trace, check_key, exact, record
from jaxinf.sampler import Plan
from jaxinf.score.denoiser import Denoiser
from jaxinf.score.likelihood import check_end
from jaxinf.score.probability_flow import transport, transport_and_log_det


@record
class ScorePrior:
    """The law of a score model at t_min; see :func:`score_prior`."""

    denoiser: Leaf
    plan: Leaf
    trace: Leaf
    key: Leaf
    reference: Leaf
    cond: Leaf

    def sample(self, key: Key) -> Float[Array, "*event"]:
        """Draw one example: x_T of the reference, carried to t_min."""
        x_T = self.reference.sample(key)
        return transport(self.denoiser, x_T, jnp.asarray(self.plan.times, x_T.dtype), self.cond)

    def log_prob(self, x: Float[Array, "*event"]) -> Float[Array, ""]:
        """Log density at one example, in nats."""
        times = jnp.asarray(self.plan.times, x.dtype)[::-1]
        probes = self.trace.probes(self.key, x)
        x_T, log_dets = transport_and_log_det(
            self.denoiser, x, times, self.cond, self.trace, probes
        )
        return self.reference.log_prob(x_T) + jnp.mean(log_dets)


def score_prior(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    plan: Plan,
    trace: Trace | None = None,
    key: Key | None = None,
    reference: Any = None,
    cond: PyTree = None,
) -> ScorePrior:
    r"""A score model as a law with an exact density, a prior of any target.

    .. math:: \log p(x) = \log p_T(x_T) + \int_{t_{min}}^{T} \nabla \cdot u(x_t, t)\,dt, \qquad
              \frac{dx}{dt} = u(x, t) = \alpha' x_0 + \sigma' e

    By the classical Runge-Kutta method on the plan's times, there for the density and back for a
    draw. ``target.density(log_likelihood, jnp.zeros(shape), data, prior=score_prior(...))`` is the
    posterior, on which ``mcmc.sample``, ``smc.temper`` and ``vi.approximate`` run. Reverse mode
    keeps the states that the flow passes, and one call of the network.

    Args:
      denoiser: the score model.
      shape: of one example.
      plan: from t_max to t_min, ``sampler.uniform(process, 20, end=process.t_min)`` say. The
        denoiser is called four times a step, and the error falls as the fourth power of the steps.
      trace: how the divergence is found: ``score.exact()``, the default, or
        ``score.hutchinson(probes)``.
      key: of Hutchinson's probes. They are part of the law and the same at every example: a density
        with one key is one smooth function, which a chain needs, and its mean over keys is the
        exact log density. :func:`fresh_probes` draws new ones in each step of a fit.
      reference: the law of one example at t_max; by default the process's, N(0, sigma^2 C).
      cond: the condition, of one example.

    Returns:
      The law, with ``sample(key)`` and ``log_prob(x)`` in nats.

    Raises:
      TypeError: for a raw key, and a reference that is no law.
      ValueError: for a plan that ends at time 0, an estimated trace without a key, and a reference
        of another shape.

    Reference:
      B. T. Feng et al., "Score-Based Diffusion Models as Principled Priors for Inverse Imaging"
      (2023); Y. Song et al., "Score-Based Generative Modeling through Stochastic
      Differential Equations" (2021), equation 39.

    Example:
      ``posterior = target.density(f, jnp.zeros(4), y, prior=guide.score_prior(model, (4,),
      plan=plan))``; ``vi.approximate(key, posterior, vi.affine_coupling_flow(key, 4)).params``.
    """
    check_end(plan)
    trace = exact() if trace is None else trace
    if reference is None:
        process = denoiser.process
        reference = Gaussian(jnp.zeros(shape), process.noise_at(process.t_max))
    _check(trace, key, reference, tuple(shape))
    return ScorePrior(denoiser, plan, trace, key, reference, cond)


def _check(trace: Trace, key: Key | None, reference: Any, shape: tuple[int, ...]) -> None:
    """Raise for a trace without a key, and a reference that is no law of examples of a shape."""
    if key is not None:
        check_key(key)
    elif not isinstance(trace, Exact):
        raise ValueError(
            f"{type(trace).__name__} draws directions and needs a key: score_prior(..., "
            "key=jax.random.key(0))"
        )
    if not (hasattr(reference, "sample") and hasattr(reference, "log_prob")):
        raise TypeError(
            f"the reference must be a law with sample(key) and log_prob(x), got "
            f"{type(reference).__name__}; process.marginal(law, process.t_max) is the exact one "
            "for data of a known law"
        )
    drawn = jax.eval_shape(reference.sample, jax.random.key(0)).shape
    if drawn != shape:
        raise ValueError(f"examples have shape {shape} and the reference draws {drawn}.")


@dataclass(frozen=True)
class FreshProbes:
    """See :func:`fresh_probes`."""

    objective: Any

    def __call__(self, key: Key, measures: Any) -> Any:
        """Return the objective of measures whose score priors have a new key."""
        inner, outer = jax.random.split(key)

        def renewed(part: Any) -> Any:
            return dataclasses.replace(part, key=inner) if isinstance(part, ScorePrior) else part

        measures = jax.tree.map(renewed, measures, is_leaf=lambda a: isinstance(a, ScorePrior))
        return self.objective(outer, measures)


def fresh_probes(objective: Any) -> FreshProbes:
    """An objective of variational inference whose score priors draw new probes in each step.

    With probes that stay, a fit goes to the posterior of one estimate of the density; with new ones
    its gradients are unbiased for the posterior itself.

    Args:
      objective: ``vi.elbo(16)`` say; linear in log p, as that is.

    Returns:
      The objective, for ``vi.approximate(key, target, family, objective=...)``.

    Reference:
      B. T. Feng et al., "Score-Based Diffusion Models as Principled Priors for Inverse Imaging"
      (2023).
    """
    return FreshProbes(objective)
