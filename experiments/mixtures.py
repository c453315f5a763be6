"""Mixtures with exact denoisers and end points, which experiments hold samplers against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, process, sampler, score


class Task:
    """What a sampler is run on: ``process``, ``denoiser``, the starts ``x_T``, times by steps."""

    process: Any
    denoiser: Any
    x_T: Any

    def times(self, steps: int) -> Any:
        """The times of a run."""
        raise NotImplementedError

    def levels(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Alpha and sigma at the times."""
        p, times = self.process, jnp.asarray(self.times(steps))
        return np.asarray(jax.vmap(p.alpha)(times)), np.asarray(jax.vmap(p.sigma)(times))

    def clean(self, y: Any, r: Any) -> np.ndarray:
        """The denoiser's x_0 at y = x / alpha and the noise level r = sigma / alpha."""
        return np.asarray(_clean(self.process, self.denoiser, np.asarray(y), float(r)))


@jax.jit
def _clean(p: Any, denoiser: Any, y: Any, r: Any) -> jax.Array:
    t = process.time_of(p, -2 * jnp.log(r))
    return jax.vmap(lambda y: denoiser(p.alpha(t) * y, t))(y)


@dataclass
class Problem(Task):
    """A process, its plans, the exact denoiser, starts and where they end."""

    process: Any
    plan_of: Callable[..., sampler.Plan]
    denoiser: Any
    x_T: Any
    reference: Any

    def plan(self, steps: int) -> sampler.Plan:
        """Steps down to t_min."""
        return self.plan_of(self.process, steps, end=self.process.t_min)

    def times(self, steps: int) -> Any:
        """The plan's times."""
        return self.plan(steps).times


def problem(seed: int, p: Any, plan: Any, starts: int) -> Problem:
    """The mixture of a seed, and its exact end points."""
    rng = np.random.default_rng([8, seed])
    law = core.mixture(
        jnp.asarray(rng.dirichlet(np.full(5, 2.0))),
        jnp.asarray(rng.normal(size=(5, 8))),
        jnp.sqrt(jnp.asarray(rng.uniform(0.05, 0.3, size=5))),
    )
    denoiser = score.oracle(p, law)
    x = p.prior().sample(jax.random.key(seed), (starts, 8))
    return Problem(p, plan, denoiser, x, exact(p, plan, denoiser, x))


def exact(p: Any, plan: Any, denoiser: Any, x: Any) -> jax.Array:
    """End points by 4,000 steps of the corrected third-order method, right to 1e-10."""
    stepper = sampler.exponential(p, 3, predicts=process.preconditioned(0.5), corrector=True)
    return sampler.sample(jax.random.key(0), stepper, denoiser, plan(p, 4000, end=p.t_min), x).x


def errors(x: Any, reference: Any) -> tuple[float, float]:
    """Root mean square over all coordinates, and the median over starts."""
    squared = np.mean(np.square(np.asarray(x) - np.asarray(reference)), axis=1)
    return float(np.sqrt(np.mean(squared))), float(np.sqrt(np.median(squared)))


def posed(count: int, starts: int, stored: str) -> dict[str, list[Problem]]:
    """The mixtures on both processes, and the stored one."""
    exploding, preserving = process.gaussian(process.edm()), process.gaussian(process.linear_beta())
    seeds = range(count)
    found = {
        "exploding": [problem(seed, exploding, sampler.karras, starts) for seed in seeds],
        "preserving": [
            problem(seed, preserving, sampler.uniform_log_snr, starts) for seed in seeds
        ],
    }
    if stored:
        with np.load(stored) as file:
            law = core.mixture(
                jnp.asarray(file["weights"]),
                jnp.asarray(file["means"]),
                jnp.sqrt(jnp.asarray(file["variances"])),
            )
            start, end = jnp.asarray(file["x_T"]), jnp.asarray(file["reference"])
        denoiser = score.oracle(exploding, law)
        found["stored"] = [Problem(exploding, sampler.karras, denoiser, start, end)]
    return found
