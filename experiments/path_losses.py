"""Losses of a pair of path measures: which brings the evidence lower bound up soonest.

The kernels are those of controlled Monte Carlo diffusion with 8 steps on Neal's funnel, as in
``log_z_from_both_sides.py``; Adam, its rate and the draws are the same for all losses.

Papers: L. Richter et al., "VarGrad: a low-variance gradient estimator for variational inference"
(2020); N. Malkin et al., "Trajectory balance" (2022); "Rethinking losses for diffusion bridge
samplers" (2025).
Command: ``jaxinf run experiments/path_losses.py``.
Hardware: 2 CPU cores, 3 to 6 minutes.
Expected (iterations of 300 paths to the published bound, -1.063, by hundreds, three seeds; time of
an iteration in units of the first's, interleaved; bound after 1,000): reverse KL 300, 300, 200; 1;
-0.924. Sticking the landing 400 each; 1.34; -0.940. Log-derivatives 600, 700, 600; 0.95; -0.987.
Log-variance and trajectory balance never: at best -1.31 and -1.38, then they fall. Here steps,
temperatures and control are shared by both laws, and these two descend along another direction than
the divergence's. What is saved by not differentiating through paths is little.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import evidence_targets
import jax
import jax.numpy as jnp
import numpy as np
from log_z_from_both_sides import Config as Sampler
from log_z_from_both_sides import begin, optimizer

from jaxinf import vi
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    iterations: int = 1000
    """Of each fit, a multiple of 100; the rate falls to zero with them as a cosine."""
    draws: int = 300
    """Paths an iteration."""
    rate: float = 0.02
    """Adam's at the start."""
    fits: int = 3
    """Of each loss, by seeds."""
    bound: float = -1.063
    """What is to be reached: the paper's."""
    evaluated: int = 4000
    """Fresh paths of a bound."""


class Learnt(NamedTuple):
    """What is fitted: log Z by trajectory balance alone."""

    kernels: Any
    log_z: jax.Array


@dataclass(frozen=True)
class Loss:
    """A loss of what is fitted."""

    objective: Any

    def __call__(self, learnt: Learnt, key: jax.Array, target: Any) -> Any:
        measures = vi.path_measures(target, learnt.kernels)
        if isinstance(self.objective, vi.TrajectoryBalance):
            return self.objective(key, vi.Balanced(measures, learnt.log_z))
        return self.objective(key, measures)


LOSSES = {
    "reverse KL": vi.elbo,
    "reverse KL, sticking": partial(vi.elbo, sticking=True),
    "log-derivatives": vi.log_derivative,
    "log-variance": vi.log_variance,
    "trajectory balance": vi.trajectory_balance,
}
EVERY = 100


def build(config: Config) -> Study:
    """Return the study."""
    if config.iterations < EVERY or config.iterations % EVERY:
        raise ValueError(f"iterations must be a multiple of {EVERY}, got {config.iterations}.")
    sampler = Sampler(iterations=config.iterations, draws=config.draws, rate=config.rate)
    descent = optimizer(sampler)
    target = evidence_targets.funnel(None)
    losses = {name: Loss(made(config.draws)) for name, made in LOSSES.items()}

    def one(key: jax.Array) -> dict[str, Any]:
        """Bounds after every hundred iterations of each loss, and the seconds that these took."""
        key_start, key_fit, key_bound = jax.random.split(key, 3)
        start = Learnt(begin(key_start, "controlled", target, sampler), jnp.zeros(()))
        fits = dict.fromkeys(LOSSES, (start, descent.init(start)))
        rows = {name: {"bounds": [], "errors": [], "seconds": []} for name in LOSSES}
        for i in progress(config.iterations // EVERY, "hundreds of iterations"):
            for name, row in rows.items():
                learnt, state = fits[name]
                begun = time.perf_counter()
                found = vi.fit(
                    jax.random.fold_in(key_fit, i), losses[name], learnt, target, steps=EVERY,
                    optimizer=descent, opt_state=state,
                )  # fmt: skip
                learnt, state, _ = jax.block_until_ready(found)
                row["seconds"].append(time.perf_counter() - begun)
                fits[name] = learnt, state
                measures = vi.path_measures(target, learnt.kernels)
                known = vi.evidence(jax.random.fold_in(key_bound, i), measures, config.evaluated)
                row["bounds"].append(float(known.elbo))
                row["errors"].append(float(known.elbo_error))
        return rows

    def run(key: jax.Array) -> dict[str, Any]:
        seeds = [one(jax.random.fold_in(key, seed)) for seed in range(config.fits)]
        stacked = {
            name: {k: np.array([rows[name][k] for rows in seeds]) for k in seeds[0][name]}
            for name in LOSSES
        }
        return {"losses": stacked}

    return Study(
        run=run,
        draw=lambda arrays: {"losses": draw(arrays["losses"], config.bound)},
        notes=lambda arrays: notes(arrays["losses"], config.bound),
    )


def after(bounds: Any, bound: float) -> int | None:
    """The iterations until a bound was reached."""
    there = np.flatnonzero(bounds >= bound)
    return EVERY * (int(there[0]) + 1) if there.size else None


def draw(losses: dict[str, Any], bound: float) -> Any:
    """Bounds against iterations, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(LOSSES):
        row = losses[name]
        iterations = EVERY * np.arange(1, row["bounds"].shape[1] + 1)
        for seed, bounds in enumerate(row["bounds"]):
            axis.plot(iterations, bounds, color=f"C{i}", lw=1, label=None if seed else name)
    axis.axhline(bound, color="k", lw=0.8)
    axis.set(xlabel="iterations", ylabel="evidence lower bound, nats")
    axis.set_ylim(max(-2.0, axis.get_ylim()[0]), None)
    figure.legend(loc="outside right upper")
    return figure


def notes(losses: dict[str, Any], bound: float) -> str:
    """A line a loss."""
    lines = [f"| loss | iterations to {bound} | milliseconds | seconds | bound at the end |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name in LOSSES:
        row = losses[name]
        each = float(np.median(row["seconds"])) / EVERY
        reached = [after(bounds, bound) for bounds in row["bounds"]]
        ends = ", ".join(f"{bounds[-1]:.3f}" for bounds in row["bounds"])
        took = ", ".join("not" if n is None else f"{n * each:.1f}" for n in reached)
        counts = ", ".join("not" if n is None else str(n) for n in reached)
        lines.append(f"| {name} | {counts} | {1e3 * each:.1f} | {took} | {ends} |")
    return "\n".join(lines)
