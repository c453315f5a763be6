"""Guided particles between observations of a diffusion, against the bootstrap filter.

Paper: van der Meulen and Schauer, "Automatic backward filtering forward guiding for Markov
processes and graphical models" (2020).
Command: ``jaxinf run experiments/guided_sde_bridge.py``
Hardware: a CPU.
Expected (100 particles, 256 runs, variance of the log-likelihood's estimate): double well 0.03
against the bootstrap filter's 480, and a mean likelihood within two errors of the exact one;
FitzHugh-Nagumo, which the bootstrap filter finds easy, 0.14 against 0.24: there the linearised
surrogate is far off and the twentieth that was aimed at is not met.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, markov, smc
from jaxinf.run import Study


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    particles: int = 100
    """Of each filter."""
    runs: int = 256
    """Independent filters."""
    every: int = 50
    """Steps from one observation to the next."""
    dt: float = 0.02
    """Euler's step."""


SEEN = {
    "double well": [[-0.9], [1.1], [0.8], [-1.2], [-0.9]],
    "FitzHugh-Nagumo": [[-1.0], [1.6], [1.2], [-1.7], [-1.3]],
}
"""Observations, the first one at time 0."""
BLUR = 0.1


def double_well(params: Any, t: Any, x: Any) -> Any:
    return 2 * x * (1 - x**2)


def fitzhugh_nagumo(params: Any, t: Any, x: Any) -> Any:
    v, w = x
    return jnp.stack([3 * (v - v**3 / 3 - w + 0.3), 0.8 * (v + 0.7 - 0.8 * w)])


def noise(params: Any, t: Any, x: Any) -> Any:
    return jnp.diag(params)


def build(config: Config) -> Study:
    def run(key: Any) -> dict[str, Any]:
        return {name: one(key, name, config) for name in SEEN}

    return Study(run=run, draw=draw, notes=notes)


def problem(name: str, config: Config) -> tuple[Any, Any, Any]:
    """The state space of Euler's steps, its observations and their mask."""
    if name == "double well":
        process = markov.diffusion(double_well, noise, jnp.array([0.7]))
        law = core.gaussian(jnp.array([-1.0]), core.Diagonal(jnp.array([0.3])))
    else:
        process = markov.diffusion(fitzhugh_nagumo, noise, jnp.array([0.4, 0.3]))
        law = core.gaussian(jnp.array([-1.0, -0.5]), core.Diagonal(jnp.array([0.3, 0.3])))
    size = law.mean.size
    view = markov.linear_gaussian(jnp.eye(1, size), core.Diagonal(jnp.array([BLUR])))
    model = markov.state_space(law, markov.euler(process, 0.0, config.dt), view)
    seen = jnp.array(SEEN[name])
    y = jnp.repeat(seen, config.every, axis=0)[: (len(seen) - 1) * config.every + 1]
    return model, y, jnp.arange(len(y)) % config.every == 0


def surrogate(model: Any, y: Any, observed: Any) -> Any:
    """Expanded along the smoothed path under the last surrogate, from the line between the data."""
    times, places = jnp.arange(len(y)), jnp.flatnonzero(observed)
    line = jnp.interp(times, places, y[places, 0])
    path = jnp.zeros((len(y), model.initial.mean.size)).at[:, 0].set(line)
    for _ in range(5):
        proxy = markov.linearise_along(model, path)
        filtered = markov.filter(proxy, y, observed=observed)
        path = path + 0.5 * (markov.smooth(proxy, filtered).mean - path)
    return markov.linearise_along(model, path)


def one(key: Any, name: str, config: Config) -> dict[str, Any]:
    """Log-likelihoods of many filters of each kind, and paths."""
    model, y, observed = problem(name, config)
    back = markov.backward_filter(
        model, y, observed=observed, surrogate=surrogate(model, y, observed)
    )
    keys = jax.random.split(key, config.runs)
    found: dict[str, Any] = {"y": y[:, 0], "observed": observed}
    for label, proposal in (("bootstrap", smc.bootstrap()), ("guided", smc.guided(back))):
        found[label] = jax.vmap(
            lambda key, proposal=proposal: (
                smc.particle_filter(
                    key, model, y, observed=observed, proposal=proposal, particles=config.particles
                ).log_evidence
            )
        )(keys)
        print(name, label, found[label].mean(), found[label].var(), flush=True)
    paths, log_weights = jax.vmap(lambda key: markov.forward_guide(key, model, back))(keys)
    chosen = jax.random.categorical(key, log_weights, shape=(20,))
    found["paths"] = paths[chosen, :, 0]
    found["truth"] = truth(config) if name == "double well" else np.nan
    return {k: np.asarray(v) for k, v in found.items()}


def truth(config: Config) -> float:
    """Chapman and Kolmogorov's integrals on a grid, for the double well."""
    model, y, observed = problem("double well", config)
    grid = jnp.linspace(-2.6, 2.6, 1301)
    width, normal = grid[1] - grid[0], jax.scipy.stats.norm.pdf
    mean, root = jax.vmap(model.transition.at)(grid[:, None])
    step = normal(grid[None, :], mean, root[:, 0]) * width
    p = normal(grid, model.initial.mean, model.initial.covariance.scale) * width
    total = 0.0
    for t in range(len(y)):
        p = p @ step if t else p
        p = p * normal(y[t, 0], grid, BLUR) if observed[t] else p
        total += float(jnp.log(p.sum()))
        p = p / p.sum()
    return total


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Guided paths through what was seen, and the estimates of both filters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(len(arrays), 2, width_ratios=[3, 2])
    for (left, right), (name, found) in zip(axes, arrays.items(), strict=True):
        left.plot(found["paths"].T, color="C0", alpha=0.3, lw=0.8)
        places = np.flatnonzero(found["observed"])
        left.plot(places, found["y"][places], "ko", label="observed")
        left.set(title=name, xlabel="step", ylabel="first coordinate")
        left.legend(loc="upper right")
        both = {k: found[k][np.isfinite(found[k])] for k in ("bootstrap", "guided")}
        ends = np.quantile(both["bootstrap"], [0.02, 1.0])
        bins = np.linspace(ends[0], max(ends[1], both["guided"].max()), 50)
        for label, values in both.items():
            right.hist(values, bins, alpha=0.6, density=True, label=label)
        if np.isfinite(found["truth"]):
            right.axvline(found["truth"], color="k", lw=1, label="exact")
        right.set(xlabel="log-likelihood's estimate", yscale="log")
        right.legend(loc="upper right" if name != "double well" else "upper left")
    return {"guided_sde_bridge": figure}


def notes(arrays: dict[str, Any]) -> str:
    """Variances, dead filters, and means of the likelihood against the truth."""
    lines = ["| process | filter | log mean likelihood | exact | variance of log | dead |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, found in arrays.items():
        for label in ("bootstrap", "guided"):
            values = found[label]
            alive = np.isfinite(values)
            mean = np.logaddexp.reduce(values[alive]) - np.log(len(values))
            lines.append(
                f"| {name} | {label} | {mean:.4f} | {float(found['truth']):.4f} | "
                f"{values[alive].var(ddof=1):.4g} | {np.sum(~alive)} |"
            )
    return "\n".join(lines)
