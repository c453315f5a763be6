"""Weighted particles along a guided reverse chain: what corrects a guidance, with its evidence."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf import smc
from jaxinf.core import Key, Leaf, PyTree, Scalar, check_key, is_concrete, log_prob, record, static
from jaxinf.guide.evaluation import Evaluation, Moments, evaluate, log_final
from jaxinf.sampler import Plan, State
from jaxinf.score import Denoiser


class Particle(NamedTuple):
    """A noisy example and what the denoiser is there."""

    x: Array
    evaluation: Evaluation


@record
class Known:
    """A denoiser at a point where it has been evaluated."""

    clean: Moments

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Return the mean."""
        return self.clean.mean

    def covariance(self, x: Array, t: Scalar) -> Array:
        """Return the covariance."""
        return self.clean.covariance


@record
class ReverseChain:
    """The Feynman-Kac model of a guided reverse chain; see :func:`particles`."""

    stepper: Leaf
    denoiser: Leaf
    start: Leaf
    cond: Leaf
    shape: tuple[int, ...] = static()

    def init(self, key: Key) -> smc.Weighted:
        """Draw x_T from the product of the experts' reference laws, with the twist there."""
        x, reference = draw_start(key, self.denoiser, self.start, self.cond, self.shape)
        here = evaluate(self.denoiser, x, self.start, self.cond, self._full)
        return smc.Weighted(Particle(x, here), reference + here.log_twist)

    def step(
        self, key: Key, particle: Particle, inputs: tuple[Array, Array, Array]
    ) -> tuple[Particle, Array]:
        """Go from t to s by the guided transition; weigh by the target's over it."""
        t, s, last = inputs
        x, here = particle
        law = self._law(here.guided, x, t, s)
        new = law.sample(key).astype(x.dtype)
        log_weight = self._log_transition(here, x, new, t, s) - law.log_prob(new)

        def end(x: Array) -> Evaluation:
            shapes = jax.eval_shape(between, x)
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            twist = log_final(self.denoiser, x).astype(shapes.log_twist.dtype)
            return nothing._replace(log_twist=twist)

        def between(x: Array) -> Evaluation:
            return evaluate(self.denoiser, x, s, self.cond, self._full)

        there = jax.lax.cond(last, end, between, new)
        there = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), there, here)
        return Particle(new, there), log_weight + there.log_twist - here.log_twist

    @property
    def _full(self) -> bool:
        return getattr(self.stepper, "uses_covariance", False)

    def _law(self, clean: Moments, x: Array, t: Scalar, s: Scalar) -> Any:
        return self.stepper.proposal(Known(clean), State(x), t, s)

    def _log_transition(
        self, here: Evaluation, x: Array, new: Array, t: Scalar, s: Scalar
    ) -> Float[Array, ""]:
        """Log of prod_i p_i(x_s | x_t)^(a_i) k(x_t | x_s)^(1 - sum_i a_i)."""
        process = self.denoiser.process
        experts = [self._law(e, x, t, s).log_prob(new) for e in here.experts]
        pairs = zip(here.exponents, experts, strict=True)
        total = sum((a * value for a, value in pairs), jnp.zeros((), x.dtype))
        rest = 1 - sum(here.exponents)
        if is_concrete(rest) and float(rest) == 0:
            return total
        a, b = process.transition(s, t)
        return total + rest * log_prob(process.covariance.scaled(b), x - a * new)


def draw_start(
    key: Key, denoiser: Any, t: Scalar, cond: PyTree, shape: tuple[int, ...]
) -> tuple[Array, Float[Array, ""]]:
    """Draw from the product of the experts' reference laws; return it with the log integral."""
    z = jax.random.normal(key, shape)
    total = sum(evaluate(denoiser, jnp.zeros_like(z), t, cond, False).exponents)
    reference = denoiser.process.noise_at(t)
    noise = reference.scaled(1 / jnp.sqrt(total))
    x = noise.sqrt(z).astype(z.dtype)
    return x, total * log_prob(reference, x) - log_prob(noise, x)


def particles(
    key: Key,
    stepper: Any,
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, ...],
    cond: PyTree = None,
    *,
    particles: int = 1000,
    resample: smc.Scheme = smc.systematic,
    threshold: Scalar = 0.5,
    progress: bool = False,
) -> smc.Run:
    r"""Sample a guided denoiser with the weights that make it exact.

    .. math:: \log G = \sum_i a_i \log p_i(x_s | x_t)
              + \Bigl(1 - \sum_i a_i\Bigr) \log k(x_t | x_s)
              + \log \frac{\psi_s(x_s)}{\psi_t(x_t)} - \log p_{guided}(x_s | x_t)

    with p_i the stepper's transitions under the experts, k the process's forward transition, a_i
    the exponents of :func:`guide.product`, psi the twists of :func:`guide.conditioned`, at the end
    the exact likelihood. For one expert the law is that of the prior's discretised chain given the
    observation, and the evidence without bias; a product's is exact up to the discretisation.

    Args:
      key: a typed key.
      stepper: with a transition density: ``sampler.moment_matched`` (closest to the prior's law;
        too wide where exponents sum above 1), ``ancestral``, ``euler_maruyama``, ...
      denoiser: ``guide.conditioned``, ``guide.product`` or any composition of them.
      plan: the times; they end above 0 but for ``moment_matched``, which draws x_0 itself.
      shape: an example's.
      cond: one condition, for all particles.
      particles: how many.
      resample: the scheme.
      threshold: the effective share below which it is called.
      progress: whether a bar counts the steps.

    Returns:
      :class:`smc.Run`; its ``log_evidence`` is the log of the target's integral. Weights that are
      not finite count as 0 and in ``population.invalid``; once all are, ``info.alive`` is false.

    Raises:
      TypeError: for a stepper without a transition density.
      ValueError: for a plan that ends at 0, rises, or leaves the process, exponents that sum to 0.

    Reference:
      Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, Wu et al., 2023,
      algorithm 1 and theorem 1, for one expert.
    """
    check_key(key)
    _check(stepper, denoiser, plan, cond, shape)
    run = smc.run(
        key, *_model(stepper, denoiser, plan, cond, shape), particles=particles,
        resample=resample, threshold=threshold, progress=progress,
    )  # fmt: skip
    population = dataclasses.replace(run.population, particles=run.population.particles.x)
    return run._replace(population=population)


def _model(
    stepper: Any, denoiser: Denoiser, plan: Plan, cond: PyTree, shape: tuple[int, ...]
) -> tuple[ReverseChain, tuple[Array, Array, Array]]:
    """Return the chain and the inputs of its steps."""
    times = jnp.asarray(plan.times, float)
    inputs = times[:-1], times[1:], jnp.arange(plan.steps) == plan.steps - 1
    return ReverseChain(stepper, denoiser, times[0], cond, tuple(shape)), inputs


def _check(stepper: Any, denoiser: Any, plan: Plan, cond: PyTree, shape: tuple[int, ...]) -> None:
    """Raise on what can be seen before anything is compiled."""
    if not hasattr(stepper, "proposal"):
        raise TypeError(
            f"weights need a stepper's transition density, and {type(stepper).__name__} has no "
            "proposal(denoise, state, t, s); take sampler.ancestral(process), "
            "sampler.moment_matched(process) or sampler.euler_maruyama(process)"
        )
    check_start(denoiser, plan, cond, shape)
    reaches_zero = is_concrete(plan) and float(plan.times[-1]) <= 0
    if reaches_zero and not getattr(stepper, "uses_covariance", False):
        raise ValueError(
            f"{type(stepper).__name__}'s last step to time 0 has no density: end the plan at "
            "process.t_min, as in sampler.uniform(process, 100, end=process.t_min), or take "
            "sampler.moment_matched(process)"
        )


def check_start(denoiser: Denoiser, plan: Plan, cond: PyTree, shape: tuple[int, ...]) -> None:
    """Raise unless a plan falls within the process and there is a density to start from."""
    if plan.rises:
        raise ValueError("weights are along plans that fall; leave sampler.restart out")
    process = denoiser.process
    if is_concrete((plan, process.t_max)):
        first, latest = float(plan.times[0]), float(process.t_max)
        if not first <= latest * (1 + 1e-6):
            raise ValueError(
                f"the plan starts at t={first:.6g}, outside the process, whose times are 0 to "
                f"{latest:.6g}; make both from the same process"
            )
    if math.prod(shape) == 0:
        raise ValueError(f"shape is an example's, without zeros, got {shape}")
    x = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    if is_concrete(denoiser):
        exponents = _exponents(denoiser, x, float(process.t_min), cond)
        if exponents is not None and not exponents > 0:
            raise ValueError(
                f"the exponents sum to {exponents:.6g}, and there is no density to start from "
                "unless that is positive; guidance has the exponents (w, 1 - w)"
            )


def _exponents(denoiser: Any, x: Any, t: float, cond: PyTree) -> float | None:
    """Return the sum of a denoiser's exponents, where it can be read off without computing."""
    found = []

    def read(x: Array) -> Array:
        found.extend(evaluate(denoiser, x, t, cond, False).exponents)
        return x

    jax.eval_shape(read, x)
    return float(sum(found)) if is_concrete(found) else None
