"""Normalising flows of every kind on Neal's funnel: the bound and the time of a step.

Papers: D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), and the
layers' own. The funnel has v ~ N(0, 9) and nine x_i ~ N(0, e^v), its log Z is 0.
Command: ``jaxinf run experiments/normalizing_flows.py``.
Hardware: a CPU.
Expected (bound, ms a step), 2,000 steps of 200 draws, one seed, errors 0.004 at most: diagonal
-1.858, 0.12; planar, 32 layers, -1.393, 0.41; radial, 32 layers, -1.064, 0.55; affine coupling, 8
layers, -0.033, 2.2; spline coupling, 4 layers, -0.390, 4.2; autoregressive, 2 layers, -0.009, 0.56;
residual, 8 layers, -0.190, 25.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import target, vi
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    only: tuple[str, ...] = ()
    """Names of flows; all by default."""
    steps: int = 2000
    draws: int = 200
    """In each step."""
    rate: float = 5e-3
    """Of Adam at the start; it falls to zero as a cosine."""
    evaluated: int = 100_000
    """Draws of the bound that is reported."""


DIM = 10
FLOWS = {
    "diagonal": lambda key: vi.mean_field(DIM),
    "planar": partial(vi.planar_flow, dim=DIM, layers=32),
    "radial": partial(vi.radial_flow, dim=DIM, layers=32),
    "affine_coupling": partial(vi.affine_coupling_flow, dim=DIM, layers=8),
    "spline_coupling": partial(vi.spline_coupling_flow, dim=DIM, layers=4),
    "autoregressive": partial(vi.autoregressive_flow, dim=DIM, layers=2),
    "residual": partial(vi.residual_flow, dim=DIM, layers=8),
}


def funnel(_: Any, z: jax.Array) -> jax.Array:
    v, x = z[0], z[1:]
    inner = jnp.sum(jnp.square(x)) * jnp.exp(-v) / 2 + x.size * v / 2
    return -(v * v) / 18 - inner - jnp.log(3.0) - z.size / 2 * jnp.log(2 * jnp.pi)


@partial(jax.jit, static_argnames="count")
def log_weights(key: jax.Array, posterior: Any, family: Any, count: int) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        x, log_prob = family.sample_and_log_prob(key)
        return posterior.log_prob(x) - log_prob

    return jax.vmap(one)(jax.random.split(key, count))


def build(config: Config) -> Study:
    """Return the study."""
    schedule = optax.cosine_decay_schedule(config.rate, config.steps)
    # far down the neck a draw's gradient is of order e^-v
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    posterior = target.density(funnel, jnp.zeros(DIM))
    approximate = partial(
        vi.approximate,
        target=posterior,
        objective=vi.elbo(config.draws),
        steps=config.steps,
        optimizer=optimizer,
    )

    def run(key: jax.Array) -> dict[str, Any]:
        table = {}
        for name in progress(config.only or tuple(FLOWS), "flows"):
            key_start, key_warm, key_fit, key_bound = jax.random.split(key, 4)
            family = FLOWS[name](key_start)
            jax.block_until_ready(approximate(key_warm, family=family))  # compiles
            start = time.perf_counter()
            found = jax.block_until_ready(approximate(key_fit, family=family))
            milliseconds = 1e3 * (time.perf_counter() - start) / config.steps
            values = np.asarray(log_weights(key_bound, posterior, found.params, config.evaluated))
            error = values.std() / np.sqrt(values.size)
            table[name] = np.array([values.mean(dtype=float), error, milliseconds])
        return {"funnel": table}

    return Study(run=run, draw=lambda _: {}, notes=notes)


def notes(found: dict[str, Any]) -> str:
    rows = ["| flow | bound | error | ms a step |", "|---|---|---|---|"]
    for name, (bound, error, milliseconds) in found["funnel"].items():
        rows.append(f"| {name} | {bound:.4f} | {error:.4f} | {milliseconds:.2f} |")
    return "\n".join(rows)
