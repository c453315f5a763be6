"""Log evidences by tempered sequential Monte Carlo, beside BlackJAX's.

Command: ``make bench BENCH=log_evidence``, which installs BlackJAX; ``ARGS="--data FOLDER"`` with a
folder that holds ``sonar.npz`` and ``ionosphere.npz`` (x, and y in {-1, 1}) adds these two.
Hardware: a CPU.
Expected (mean less reference, sd of 8 runs, seconds; BlackJAX's): mixture 0.000, 0.015, 1.4
(0.005, 0.034, 1.6); many-well, 16 runs, 0.008, 0.073, 1.1 (-0.053, 0.061, 1.2); breast cancer
-0.004, 0.016, 6.6 (0.008, 0.038, 15); ionosphere -0.031, 0.029, 5.9 (-0.021, 0.037, 13); sonar
0.00, 0.04, 4.6 (0.01, 0.11, 9.0). The funnel, 32 runs: -0.018, 0.026, 0.8 (-0.12, 0.13, 0.6): with
one metric for all places moves are slow to widen its log-scale again, in a fitted map's coordinates
they are not.
"""

import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evidence_targets import CASES

from jaxinf import mcmc, smc
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    data: Path | None = None
    """Folder with sonar.npz and ionosphere.npz; without one they are left out."""
    only: tuple[str, ...] = ()
    """Names of targets; all by default."""
    repetitions: int = 8
    """Runs of each."""
    peers: bool = True
    """Whether to run BlackJAX's adaptive tempered sampler, where it is installed."""
    frozen: bool = False
    """Whether the schedule of the first run is repeated with new particles."""


MORE = partial(smc.temper, particles=4000, kernel=mcmc.hmc(3), moves=3)
OURS = {
    "funnel": partial(
        smc.temper,
        particles=2000,
        kernel=mcmc.hmc(3),
        moves=5,
        effective=0.97,
        learn=smc.triangular(),
    ),
    "mixture": partial(smc.temper, particles=8000, kernel=mcmc.hmc(3), moves=3),
    "many_well": partial(
        smc.temper, particles=8000, kernel=mcmc.hmc(3), moves=3, learn=mcmc.diagonal()
    ),
    "breast_cancer": MORE,
    "ionosphere": MORE,
    "sonar": MORE,
}
"""How each target is run: fewer gradients a level than BlackJAX's 2,000 times 50."""


def build(config: Config) -> Study:
    unknown = set(config.only) - set(CASES)
    if unknown:
        raise ValueError(f"there is no target {sorted(unknown)}; there are {sorted(CASES)}.")
    files = ("sonar", "ionosphere")
    names = config.only or [n for n in CASES if config.data or n not in files]

    def run(key: Any) -> dict[str, Any]:
        return {name: one(key, name, config) for name in progress(names, "targets")}

    return Study(run=run, draw=draw, notes=notes)


def one(key: Any, name: str, config: Config) -> dict[str, Any]:
    """Run all libraries on one target."""
    posterior = CASES[name].make(config.data)
    runs = {"jaxinf": partial(ours, OURS[name])}
    if config.frozen:
        runs["jaxinf, frozen"] = frozen(key, posterior, OURS[name])
    if config.peers and find_spec("blackjax"):
        runs["blackjax"] = blackjax_run
    found = {}
    for label, run in runs.items():
        jax.block_until_ready(run(key, posterior))  # compiles
        estimates, errors, seconds = [], [], []
        for i in range(config.repetitions):
            start = time.perf_counter()
            value, error = jax.block_until_ready(run(jax.random.fold_in(key, i), posterior))
            seconds.append(time.perf_counter() - start)
            estimates.append(float(value))
            errors.append(float(error))
        found[label] = {
            "estimates": np.array(estimates),
            "errors": np.array(errors),
            "seconds": np.array(seconds),
        }
        print(name, label, np.mean(estimates) - CASES[name].truth, np.std(estimates, ddof=1),
              np.sqrt(np.mean(np.square(errors))), np.median(seconds), flush=True)  # fmt: skip
    return found


def ours(sampler: Any, key: Any, posterior: Any) -> Any:
    run = sampler(key, posterior)
    return run.log_evidence, run.standard_error


def frozen(key: Any, posterior: Any, sampler: Any) -> Any:
    """The unbiased second run along the first run's schedule."""
    schedule = sampler(jax.random.fold_in(key, 1000), posterior).schedule
    keep = {k: sampler.keywords[k] for k in ("waste_free", "jitter") if k in sampler.keywords}
    again = partial(smc.anneal, particles=sampler.keywords["particles"], **keep)

    def run(key: Any, posterior: Any) -> Any:
        run = again(key, posterior, schedule)
        return run.log_evidence, run.standard_error

    return run


@jax.jit
def blackjax_run(key: Any, posterior: Any) -> Any:
    """Two thousand particles; five moves of ten leapfrog steps a level, ESS 0.9, systematic."""
    import blackjax
    from blackjax.smc import extend_params, resampling

    key_start, key_steps = jax.random.split(key)
    sampler = blackjax.adaptive_tempered_smc(
        posterior.log_prior, posterior.log_likelihood,
        blackjax.hmc.build_kernel(), blackjax.hmc.init,
        extend_params({
            "step_size": STEPS.get(posterior.dim, 0.1),
            "inverse_mass_matrix": jnp.ones(posterior.dim),
            "num_integration_steps": 10,
        }),
        resampling.systematic, target_ess=0.9, num_mcmc_steps=5,
    )  # fmt: skip
    z = jax.vmap(posterior.sample_prior)(jax.random.split(key_start, 2000))

    def level(carry: Any) -> Any:
        i, state, total = carry
        state, info = sampler.step(jax.random.fold_in(key_steps, i), state)
        return i + 1, state, total + info.log_likelihood_increment

    def going(carry: Any) -> Any:
        i, state, _ = carry
        return (state.tempering_param < 1) & (i < 500)

    start = jnp.int32(0), sampler.init(z), jnp.zeros(())
    return jax.lax.while_loop(going, level, start)[2], jnp.zeros(())


STEPS = {2: 1.0, 10: 0.1, 32: 0.15, 31: 0.15, 35: 0.15, 61: 0.15}
"""BlackJAX's step size, which is fixed, by dimension."""


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Estimates about the truth, with one standard deviation, and time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.5), layout="constrained")
    names, labels = list(arrays), list(next(iter(arrays.values())))
    left, right = figure.subplots(1, 2, sharey=True)
    for i, label in enumerate(labels):
        places = np.arange(len(names)) + 0.22 * (i - (len(labels) - 1) / 2)
        apart = [np.asarray(arrays[n][label]["estimates"]) - CASES[n].truth for n in names]
        for place, values in zip(places, apart, strict=True):
            left.plot(values, np.full(len(values), place), ".", color=f"C{i}", alpha=0.35)
        means, sds = [v.mean() for v in apart], [v.std(ddof=1) for v in apart]
        left.errorbar(means, places, xerr=sds, fmt="o", color=f"C{i}", capsize=3, label=label)
        seconds = [np.median(arrays[n][label]["seconds"]) for n in names]
        right.plot(seconds, places, "o", color=f"C{i}", label=label)
    for place, name in enumerate(names):
        width = CASES[name].tolerance
        left.fill_betweenx([place - 0.4, place + 0.4], -width, width, color="0.88", zorder=0)
    left.axvline(0, color="k", lw=0.8)
    left.set(xlabel="log evidence less the reference (grey: tolerance)", yticks=range(len(names)))
    left.set_yticklabels(names)
    right.set(xlabel="seconds a run, compiled", xscale="log")
    for which in (right.xaxis.set_major_formatter, right.xaxis.set_minor_formatter):
        which("{x:g}")
    right.grid(axis="x", which="both", alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return {"log_evidence": figure}


def notes(arrays: dict[str, Any]) -> str:
    """A line a target and library."""
    head = ["target", "library", "reference", "mean - reference", "sd", "said error", "seconds"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, libraries in arrays.items():
        for label, row in libraries.items():
            values = np.asarray(row["estimates"])
            said = float(np.sqrt(np.mean(np.square(row["errors"]))))
            figures = [CASES[name].truth, values.mean() - CASES[name].truth, values.std(ddof=1),
                       said, float(np.median(row["seconds"]))]  # fmt: skip
            lines.append(" | ".join([name, label, *(f"{v:.4g}" for v in figures)]))
    return "\n".join(f"| {line} |" for line in lines)
