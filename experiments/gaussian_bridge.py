"""Schroedinger bridges between Gaussians, learnt, beside the closed form.

WIP
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxinf import core, guide, nets
from jaxinf.run import Study, progress

TIMES = 21
"""Times at which marginals are compared, as published."""
PUBLISHED = {
    "DSBM-IPF": {5: (1.23, 0.23), 20: (4.42, 0.76), 50: (8.75, 0.87)},
    "DSBM-IMF": {5: (1.34, 0.51), 20: (5.05, 0.95), 50: (9.76, 1.67)},
    "DSB": {5: (3.26, 1.60), 20: (13.0, 3.49), 50: (32.8, 1.28)},
    "SB-CFM": {5: (1.45, 0.73), 20: (12.3, 1.47), 50: (49.4, 3.91)},
}
"""Mean KL of the marginals, in thousandths of a nat, and the deviation over five seeds (table 3)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    dims: tuple[int, ...] = (5, 20, 50)
    only: tuple[str, ...] = ()
    """Names of methods; all by default."""
    shift: float = 0.1
    """The ends are N(-shift, I) and N(shift, I)."""
    rounds: int = 5
    """Of both directions; 20 as published."""
    pools: int = 2
    """Draws of pairs in each fit; 128 as published."""
    pool: int = 9984
    epochs: int = 10
    """Passes over a draw; 1 as published."""
    batch: int = 128
    width: int = 128
    """Of the two hidden layers; 256 as published."""
    rate: float = 1e-3
    """Adam's at the start, falling to zero as a cosine."""
    points: int = 3
    """Times between the ends of D-IMF."""
    steps: int = 20
    """Of Euler and Maruyama in DSBM."""
    evaluated: int = 10_000
    """Paths of each evaluation."""


class Perceptron(nn.Module):
    """Two hidden layers of x and t."""

    width: int
    slope: float = 0.0

    @nn.compact
    def __call__(self, x: Any, t: Any, cond: Any) -> Any:
        h = jnp.concatenate([x, t[None]])
        for _ in range(2):
            h = nn.silu(nn.Dense(self.width)(h))
        return nn.Dense(x.size)(h)


def methods(d: int, config: Config) -> dict[str, Any]:
    """Return projections and first couplings by name."""
    net = nets.from_linen(Perceptron(config.width))
    budget = guide.budget(config.pools, config.pool, config.epochs, config.batch)
    fall = optax.cosine_decay_schedule(config.rate, config.rounds * budget.steps)
    adam = optax.adam(fall)
    start, _ = ends(d, config)
    drift = guide.drift_projection(net, adam, steps=config.steps, budget=budget)
    game = guide.adversarial_projection(
        net, net, optax.adam(fall, b1=0.5, b2=0.9),
        points=config.points, latent=d, budget=budget,
    )  # fmt: skip
    few = guide.regression_projection(net, adam, points=config.points, budget=budget)
    every = {
        "DSBM-IPF": (drift, guide.Noised(start, 1.0)),
        "DSBM-IMF": (drift, None),
        "D-IMF, regression": (few, None),
        "D-IMF, adversarial": (game, None),
    }
    return {name: every[name] for name in config.only or every}


def ends(d: int, config: Config) -> tuple[Any, Any]:
    """Return the laws at 0 and 1."""
    unit = core.Diagonal(jnp.ones(d))
    return tuple(core.gaussian(jnp.full(d, sign * config.shift), unit) for sign in (-1.0, 1.0))


def evaluate(key: Any, walked: Any, exact: Any, count: int, back: bool) -> dict[str, Any]:
    """Moments of a process at its own times, by draws from its start."""
    keys = jax.random.split(key, (2, count))
    x = jax.vmap(walked.law.sample)(keys[0])
    paths = jax.vmap(walked.path)(keys[1], x)
    paths = paths[:, ::-1] if back else paths
    times = jnp.linspace(0.0, 1.0, paths.shape[1])
    laws = jax.vmap(exact.marginal)(times)
    truth = jax.vmap(lambda c: jnp.diagonal(c.dense(x.shape[1])))(laws.covariance)
    mean, variance = paths.mean(0), paths.var(0)
    kl = (variance + jnp.square(mean - laws.mean)) / truth - 1 + jnp.log(truth / variance)
    first, last = paths[:, 0], paths[:, -1]
    cross = jnp.mean((first - first.mean(0)) * (last - last.mean(0)), axis=0)
    return {
        "kl": jnp.mean(jnp.sum(kl, axis=1) / 2),
        "cross": cross.mean(),
        "mean": mean.mean(1),
        "variance": variance.mean(1),
    }


@jax.jit(static_argnames=("count", "back"))
def by_round(key: Any, walked: Any, params: Any, exact: Any, count: int, back: bool) -> Any:
    """Evaluate the process of each round."""

    def one(params: Any) -> Any:
        return evaluate(key, type(walked)(walked.law, walked.projection, params), exact, count, back)

    return jax.lax.map(one, params)


def build(config: Config) -> Study:
    """Return the study."""

    def run(key: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for d in config.dims:
            start, end = ends(d, config)
            exact = guide.gaussian_schrodinger(start, end)
            for name, (projection, coupling) in methods(d, config).items():
                begin = time.perf_counter()
                bridges = guide.markovian_fitting(
                    key, start, end, projection, rounds=config.rounds, coupling=coupling
                )
                rounds = jax.block_until_ready(bridges.rounds)
                seconds = time.perf_counter() - begin
                ways = {}
                for way in ("backward", "forward"):
                    args = getattr(bridges, way), getattr(rounds, way), exact
                    ways[way] = jax.tree.map(
                        np.asarray, by_round(key, *args, config.evaluated, way == "backward")
                    )
                found[f"{name}, {d}"] = ways | {"seconds": seconds}
                print(name, d, f"{seconds:.1f}", 1e3 * ways["forward"]["kl"], 1e3 * ways["backward"]["kl"], ways["forward"]["cross"], ways["backward"]["cross"], ways["backward"]["variance"][-1], ways["forward"]["variance"][-1], flush=True)
        return found

    return Study(run=run, draw=lambda a: {}, notes=lambda a: "")
