"""Posteriors of posteriordb against their references, beside NumPyro and BlackJAX.

Command: ``make bench BENCH=reference_posteriors ARGS="--data FOLDER"`` with a folder of
posteriordb's ``NAME.json`` (data, names of parameters, reference mean, sd and mean square).
Hardware: a CPU, a quarter of an hour for all.
Expected: every mean and mean square of the twelve within four standard errors of the reference's
(worst 3.3). Effective draws per 1,000 gradients after warm-up: kidiq 288 (BlackJAX 188, NumPyro's
kernel 175, NumPyro as called 13), 99 with warm-up (26, 24, 4), 2.6 times BlackJAX's a second;
eight schools, mean of 24 runs, 85 (BlackJAX 60 in 6), 2 to 3 times a second; arK 91 (76, 70), 1.3
to 1.7 times a second.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from posteriors import MODELS

from jaxinf import mcmc, target
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    data: Path = Path("posteriordb")
    """Folder of the references."""
    only: tuple[str, ...] = ()
    """Names of posteriors; all by default."""
    chains: int = 4
    """Chains."""
    warmup: int = 1000
    """Steps of warm-up of a chain."""
    draws: int = 1000
    """Draws of a chain."""
    repetitions: int = 3
    """Runs, of which the fastest counts."""
    peers: bool = True
    """Whether to run NumPyro, and BlackJAX where it is installed."""


def build(config: Config) -> Study:
    files = [config.data / f"{name}.json" for name in config.only or MODELS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"there is no {missing[0]}. Pass --data FOLDER with posteriordb's files.")

    def run(key: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file in progress(files, "posteriors"):
            found[file.stem] = one(key, json.loads(file.read_text()), config)
            print(notes({file.stem: found[file.stem]}), flush=True)
            jax.clear_caches()  # hundreds of programs would exhaust a process's memory maps
        return found

    return Study(run=run, draw=draw, notes=notes)


def one(key: Any, reference: dict[str, Any], config: Config) -> dict[str, Any]:
    """Run all libraries on one posterior."""
    model, arguments = MODELS[reference["name"]]
    args = [np.asarray(a, np.float32) for a in arguments(reference["data"])]
    posterior = target.program(model, *args)
    values = jax.jit(jax.vmap(jax.vmap(partial(posterior.constrain, deterministic=True))))
    runs = {"jaxinf": ours}
    if config.peers:
        runs |= {"numpyro": numpyro_run(model, args), "numpyro once": numpyro_once}
        runs |= {"blackjax": blackjax_once} if find_spec("blackjax") else {}
    found = {}
    for name, run in runs.items():
        z, *gradients = run(key, posterior, config)  # compiles
        best = np.inf
        for i in range(config.repetitions):
            start = time.perf_counter()
            z, *gradients = run(jax.random.fold_in(key, i), posterior, config)
            best = min(best, time.perf_counter() - start)
        found[name] = score(values(z), reference, best, *gradients)
    return found


def ours(key: Any, posterior: Any, config: Config) -> Any:
    """Draws, gradients of the draws, gradients of warm-up."""
    run = mcmc.sample(
        key, mcmc.nuts(), posterior,
        chains=config.chains, warmup=config.warmup, draws=config.draws,
    )  # fmt: skip
    jax.block_until_ready(run.draws)
    return run.draws, int(run.info.gradients.sum()), int(run.warmup_gradients.sum())


def numpyro_run(model: Any, args: Any) -> Any:
    """NumPyro as its users call it."""
    from numpyro.infer import MCMC, NUTS

    def run(key: Any, posterior: Any, config: Config) -> Any:
        chains = MCMC(
            NUTS(model), num_warmup=config.warmup, num_samples=config.draws,
            num_chains=config.chains, chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        chains.warmup(key, *args, extra_fields=("num_steps",), collect_warmup=True)
        before = int(chains.get_extra_fields()["num_steps"].sum())
        chains.run(key, *args, extra_fields=("num_steps",))
        z = jax.vmap(jax.vmap(posterior.unconstrain))(chains.get_samples(group_by_chain=True))
        return z, int(chains.get_extra_fields()["num_steps"].sum()), before

    return run


@partial(jax.jit, static_argnames="config")
def _numpyro(key: Any, posterior: Any, config: Config) -> Any:
    """NumPyro's kernel with its own warm-up, dense as ours."""
    from numpyro.infer.hmc import hmc

    init, sample = hmc(lambda z: -posterior.log_prob(z), algo="NUTS")

    def chain(key: Any) -> Any:
        key_start, key = jax.random.split(key)
        z = jax.random.uniform(key_start, (posterior.dim,), minval=-2, maxval=2)
        state = init(z, config.warmup, rng_key=key, dense_mass=posterior.dim <= 100)

        def step(state: Any, _: Any) -> Any:
            state = sample(state)
            return state, (state.z, state.num_steps)

        _, (z, steps) = jax.lax.scan(step, state, None, length=config.warmup + config.draws)
        return z[config.warmup :], steps[config.warmup :].sum(), steps[: config.warmup].sum()

    return jax.vmap(chain)(jax.random.split(key, config.chains))


def numpyro_once(key: Any, posterior: Any, config: Config) -> Any:
    z, after, before = jax.block_until_ready(_numpyro(key, posterior, config))
    return z, int(after.sum()), int(before.sum())


@partial(jax.jit, static_argnames="config")
def _blackjax(key: Any, posterior: Any, config: Config) -> Any:
    """BlackJAX' window adaptation and kernel, dense as ours."""
    import blackjax

    def chain(key: Any) -> Any:
        key_start, key_warm, key_draws = jax.random.split(key, 3)
        z = jax.random.uniform(key_start, (posterior.dim,), minval=-2, maxval=2)
        warm = blackjax.window_adaptation(
            blackjax.nuts, posterior.log_prob, is_mass_matrix_diagonal=posterior.dim > 100
        )
        (state, parameters), info = warm.run(key_warm, z, config.warmup)
        kernel = blackjax.nuts(posterior.log_prob, **parameters)

        def step(state: Any, key: Any) -> Any:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (z, steps) = jax.lax.scan(step, state, jax.random.split(key_draws, config.draws))
        return z, steps.sum(), info.info.num_integration_steps.sum()

    return jax.vmap(chain)(jax.random.split(key, config.chains))


def blackjax_once(key: Any, posterior: Any, config: Config) -> Any:
    z, after, before = jax.block_until_ready(_blackjax(key, posterior, config))
    return z, int(after.sum()), int(before.sum())


def score(
    values: dict[str, Any], reference: dict[str, Any], seconds: float, after: int, before: int
) -> dict[str, Any]:
    """Hold draws against the reference, and count what they are worth."""
    import arviz

    names = list(dict.fromkeys(name.partition("[")[0] for name in reference["parameters"]))
    draws = [np.asarray(values[name], np.float64) for name in names]
    x = np.concatenate([d.reshape(*d.shape[:2], -1) for d in draws], axis=-1)
    z = []
    ess = np.inf
    for power, wanted in ((1, "mean"), (2, "mean_square")):
        data = arviz.from_dict({"posterior": {"x": x**power}})
        error = arviz.mcse(data, method="mean")["x"].values
        ess = min(ess, float(arviz.ess(data, method="mean")["x"].values.min()))
        theirs = (x**power).std(axis=(0, 1)) / np.sqrt(reference["reference"]["draws"])
        apart = (x**power).mean(axis=(0, 1)) - np.array(reference["reference"][wanted])
        z.append(np.abs(apart / np.hypot(error, theirs)).max())
    return {
        "worst_z": max(z),
        "rhat": float(arviz.rhat(data)["x"].values.max()),
        "ess": ess,
        "seconds": seconds,
        "ess_per_second": ess / seconds,
        "ess_per_1000_gradients": 1000 * ess / after,
        "ess_per_1000_gradients_total": 1000 * ess / (after + before),
    }


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Effective draws a second and a thousand gradients, by posterior."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    names = list(arrays)
    labels = list(arrays[names[0]])
    units = {
        "ess_per_second": "effective draws a second",
        "ess_per_1000_gradients": "effective draws per 1,000 gradients",
    }
    for axis, (unit, title) in zip(figure.subplots(1, 2, sharey=True), units.items(), strict=True):
        for i, label in enumerate(labels):
            places = np.arange(len(names)) + 0.2 * (i - (len(labels) - 1) / 2)
            axis.barh(places, [float(arrays[n][label][unit]) for n in names], 0.18, label=label)
        axis.set(xlabel=title, yticks=range(len(names)))
        axis.set_yticklabels([name.split("-")[0] for name in names])
    axis.legend()
    return {"efficiency": figure}


def notes(arrays: dict[str, Any]) -> str:
    """A line a posterior and library."""
    head = ["posterior", "library", *next(iter(next(iter(arrays.values())).values()))]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, libraries in arrays.items():
        for library, row in libraries.items():
            lines.append(" | ".join([name, library, *(f"{float(v):.4g}" for v in row.values())]))
    return "\n".join(f"| {line} |" for line in lines)
