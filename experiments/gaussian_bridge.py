"""Schroedinger bridges between N(-0.1, I) and N(0.1, I), learnt, beside the closed form.

Papers: Y. Shi, V. De Bortoli, A. Campbell and A. Doucet, "Diffusion Schroedinger Bridge Matching"
(2023), table 3, and N. Gushchin et al., "Adversarial Schroedinger Bridge Matching" (2024). Brownian
reference of variance 1; the ends' covariance is (sqrt(5) - 1) / 2 in each coordinate. 20 Euler
steps, 10,000 paths, batches of 128 as published; the share of training is 1.2 %: 2,340 steps a
direction (adversarial 3,510) for 200,000, of networks with a linear part that start at the
reference. The published budget is ``--rounds 20 --pools 128 --epochs 1 --width 256 --rate 1e-4``.
Command: ``jaxinf run experiments/gaussian_bridge.py``; 6 minutes of one CPU core.
Expected, one seed (KL of marginals in 1e-3 nats, the 10,000 paths add d / 10; backward, forward): 5
dimensions DSBM-IPF 0.72, 1.03, DSBM-IMF 0.69, 0.72, D-IMF with 3 times by regression 0.71, 0.77,
adversarial 0.99, 1.50; 20 dimensions 3.5, 4.6; 3.0, 4.1; 2.6, 3.5; 5.8, 6.7; 50 dimensions 10.1,
11.5; 8.3, 9.4; 7.5, 8.5; 32, 21. Published IPF, IMF: 1.23, 1.34; 4.42, 5.05; 8.75, 9.76.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxinf import core, guide, nets
from jaxinf.run import Study, progress

PUBLISHED = {
    "DSBM-IPF": {5: (1.23, 0.23), 20: (4.42, 0.76), 50: (8.75, 0.87)},
    "DSBM-IMF": {5: (1.34, 0.51), 20: (5.05, 0.95), 50: (9.76, 1.67)},
}
"""Mean KL of the marginals, in thousandths of a nat, and its deviation over five seeds: table 3."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    dims: tuple[int, ...] = (5, 20, 50)
    only: tuple[str, ...] = ()
    """Names of methods; all by default."""
    shift: float = 0.1
    """The ends are N(-shift, I) and N(shift, I)."""
    rounds: int = 3
    """Of both directions; 20 as published."""
    pools: int = 1
    """Draws of pairs in each fit; 128 as published."""
    pool: int = 9984
    epochs: int = 10
    """Passes over a draw; 1 as published."""
    game_epochs: int = 15
    """The same of the adversarial projection."""
    penalty: float = 1.0
    """R1 of its discriminator; 0.01 as published."""
    batch: int = 128
    width: int = 128
    """Of the two hidden layers; 256 as published."""
    rate: float = 2e-3
    """Adam's, falling to zero as a cosine in the last round."""
    generator_rate: float = 2.5e-4
    """The same of the adversarial projection's generator."""
    critic_rate: float = 1.5e-3
    """Of its discriminator, constant: where it falls too, the generator loses ground."""
    points: int = 3
    """Times between the ends of D-IMF."""
    steps: int = 20
    """Of Euler and Maruyama in DSBM."""
    evaluated: int = 10_000
    """Paths of each evaluation."""


class Perceptron(nn.Module):
    """Two hidden layers of x and t."""

    width: int
    last: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Any, t: Any, cond: Any) -> Any:
        h = jnp.concatenate([x, t[None]])
        for _ in range(2):
            h = nn.silu(nn.Dense(self.width)(h))
        return nn.Dense(x.size, kernel_init=self.last)(h)


class Ahead(nn.Module):
    """A perceptron beside a linear map of x and t x; at first the Brownian reference's answer."""

    width: int
    latent: int = 0

    @nn.compact
    def __call__(self, x: Any, t: Any, cond: Any) -> Any:
        zero = nn.initializers.zeros
        line = nn.Dense(x.size, use_bias=False, kernel_init=zero)(jnp.concatenate([x, t * x]))
        ahead = Perceptron(self.width, zero)(x, t, cond) + line
        left = jnp.sqrt(jnp.maximum(0.5 - t / 5, 0))  # 1 - t, of the time that networks are told
        return ahead.at[: self.latent].add(left * x[x.size - self.latent :])


def steps(config: Config, epochs: int, rate: float) -> tuple[Any, Any]:
    """Return the budget of a fit, and the learning rate over all fits of a direction."""
    budget = guide.budget(config.pools, config.pool, epochs, config.batch)
    last = optax.cosine_decay_schedule(rate, budget.steps)
    before = (config.rounds - 1) * budget.steps
    return budget, optax.join_schedules([optax.constant_schedule(rate), last], [before])


def continuous(first: str, d: int, config: Config) -> tuple[Any, Any]:
    """DSBM."""
    budget, rate = steps(config, config.epochs, config.rate)
    net = nets.from_linen(Ahead(config.width))
    projection = guide.drift_projection(net, optax.adam(rate), steps=config.steps, budget=budget)
    return projection, guide.Noised(ends(d, config)[0], 1.0) if first == "reference" else None


def regression(d: int, config: Config) -> tuple[Any, Any]:
    """D-IMF with Gaussian transitions."""
    budget, rate = steps(config, config.epochs, config.rate)
    net = nets.from_linen(Ahead(config.width))
    adam, points = optax.adam(rate), config.points
    return guide.regression_projection(net, adam, points=points, budget=budget), None


def adversarial(d: int, config: Config) -> tuple[Any, Any]:
    """D-IMF by a GAN: ASBM."""
    budget, rate = steps(config, config.game_epochs, config.generator_rate)
    generator = nets.from_linen(Ahead(config.width, latent=d))
    critic = nets.from_linen(Perceptron(config.width))
    ours, theirs = (optax.adam(r, b1=0.5, b2=0.9) for r in (rate, config.critic_rate))
    return guide.adversarial_projection(
        generator, critic, ours, optimizer_discriminator=theirs,
        points=config.points, latent=d, penalty=config.penalty, budget=budget,
    ), None  # fmt: skip


METHODS = {
    "DSBM-IPF": partial(continuous, "reference"),
    "DSBM-IMF": partial(continuous, "independent"),
    "D-IMF, regression": regression,
    "D-IMF, adversarial": adversarial,
}


def ends(d: int, config: Config) -> list[Any]:
    """Return the laws at 0 and 1."""
    unit = core.Diagonal(jnp.ones(d))
    return [core.gaussian(jnp.full(d, m), unit) for m in (-config.shift, config.shift)]


def evaluate(key: Any, walked: Any, exact: Any, count: int, back: bool) -> dict[str, Any]:
    """Moments of a process at its own times, by draws from its start."""
    keys = jax.random.split(key, (2, count))
    x = jax.vmap(walked.law.sample)(keys[0])
    paths = jax.vmap(walked.path)(keys[1], x)
    paths = paths[:, ::-1] if back else paths
    laws = jax.vmap(exact.marginal)(jnp.linspace(0.0, 1.0, paths.shape[1]))
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
        "exact_mean": laws.mean.mean(1),
        "exact_variance": truth.mean(1),
    }


@jax.jit(static_argnames=("count", "back"))
def by_round(key: Any, walked: Any, params: Any, exact: Any, count: int, back: bool) -> Any:
    """Evaluate the process of each round."""

    def one(held: Any) -> Any:
        return evaluate(key, guide.Walked(walked.law, walked.projection, held), exact, count, back)

    return jax.lax.map(one, params)


def build(config: Config) -> Study:
    """Return the study."""
    unknown = set(config.only) - set(METHODS)
    if unknown:
        raise ValueError(f"there is no method {sorted(unknown)}; there are {list(METHODS)}.")

    def run(key: Any) -> dict[str, Any]:
        runs = [(d, name) for d in config.dims for name in config.only or METHODS]
        found = {f"{d}, {name}": one(key, d, name, config) for d, name in progress(runs, "bridges")}
        return found | {"exact": exact_fitting(key, config)}

    return Study(run=run, draw=draw, notes=notes)


def one(key: Any, d: int, name: str, config: Config) -> dict[str, Any]:
    """Learn a bridge and evaluate both directions after each round."""
    start, end = ends(d, config)
    exact = guide.gaussian_schrodinger(start, end)
    projection, coupling = METHODS[name](d, config)
    begin = time.perf_counter()
    bridges = guide.markovian_fitting(
        key, start, end, projection, rounds=config.rounds, coupling=coupling
    )
    rounds = jax.block_until_ready(bridges.rounds)
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin}
    for way in ("backward", "forward"):
        args = getattr(bridges, way), getattr(rounds, way), exact, config.evaluated
        found[way] = jax.tree.map(np.asarray, by_round(key, *args, way == "backward"))
        found[way]["skipped"] = np.asarray(getattr(rounds, f"{way}_info").skipped)
    kl, cross = 1e3 * interleaved(found, "kl"), interleaved(found, "cross")
    print(d, name, f"{found['seconds']:.0f} s", kl.round(2), cross.round(4), flush=True)
    return found


def exact_fitting(key: Any, config: Config) -> np.ndarray:
    """Cross covariances of D-IMF without an error of learning, by projection."""
    start, end = ends(1, config)
    projection = guide.gaussian_projection(config.points)
    rounds = guide.markovian_fitting(key, start, end, projection, rounds=config.rounds).rounds
    both = (np.prod(way.matrix, 1) for way in (rounds.backward, rounds.forward))
    return np.stack(list(both), axis=1).ravel()


def interleaved(row: dict[str, Any], what: str) -> np.ndarray:
    """A figure after each projection, the backward one first."""
    return np.stack([row[way][what] for way in ("backward", "forward")], axis=1).ravel()


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Errors and cross covariances by projection, and marginals in time."""
    from matplotlib.figure import Figure

    rows = {tuple(k.split(", ", 1)): v for k, v in arrays.items() if k != "exact"}
    dims, names = (list(dict.fromkeys(part)) for part in zip(*rows, strict=True))
    figure = Figure(figsize=(3.4 * len(dims) + 0.4, 5.6), layout="constrained")
    axes = figure.subplots(2, len(dims), squeeze=False, sharex=True, sharey="row")
    for column, d in enumerate(dims):
        upper, lower = axes[:, column]
        for i, name in enumerate(names):
            row, colour = rows[d, name], f"C{i}"
            count = np.arange(1, 1 + len(interleaved(row, "kl")))
            upper.semilogy(count, 1e3 * interleaved(row, "kl"), ".-", color=colour, label=name)
            lower.plot(count, interleaved(row, "cross"), ".-", color=colour)
        mean, deviation = PUBLISHED["DSBM-IMF"].get(int(d), (np.nan, np.nan))
        upper.axhspan(mean - deviation, mean + deviation, color="0.85", label="published, DSBM-IMF")
        lower.axhline((5**0.5 - 1) / 2, color="k", lw=0.8, label="closed form")
        lower.plot(count, arrays["exact"], "k+", ms=9, label="D-IMF, exact")
        upper.set_title(f"{d} dimensions")
        lower.set(xlabel="projections", ylim=(0.4, 0.72), xticks=count[1::2])
    axes[0, 0].set_ylabel("KL of marginals, $10^{-3}$ nats")
    axes[1, 0].set_ylabel("covariance of the ends")
    upper, lower = (axis.get_legend_handles_labels() for axis in axes[:, 0])
    figure.legend(upper[0] + lower[0], upper[1] + lower[1], loc="outside lower center", ncols=4)
    return {"errors": figure, "marginals": marginals(rows, dims[-1], names)}


def marginals(rows: dict[Any, Any], d: str, names: list[str]) -> Any:
    """Means and variances over t of the last round's processes, beside the closed form."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axis, what in zip(figure.subplots(1, 2), ("mean", "variance"), strict=True):
        for i, name in enumerate(names):
            for way, mark in (("backward", "v"), ("forward", "^")):
                row = rows[d, name][way]
                times = np.linspace(0, 1, row[what].shape[1])
                label = name if way == "forward" else None
                axis.plot(times, row[what][-1], mark, color=f"C{i}", ms=4, alpha=0.7, label=label)
        fine = max((rows[d, name]["forward"] for name in names), key=lambda r: r[what].shape[1])
        times = np.linspace(0, 1, fine[what].shape[1])
        axis.plot(times, fine[f"exact_{what}"][-1], "k-", lw=1, label="closed form")
        axis.set(xlabel="t", ylabel=f"{what}, {d} dimensions")
    title = "upright: forward processes; upside down: backward ones"
    shown = axis.get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=5, fontsize=8, title=title)
    return figure


def notes(arrays: dict[str, Any]) -> str:
    """A line a dimension and method, after the last round."""
    head = ["dimensions", "method", "KL backward", "KL forward", "published", "covariance",
            "error of the mean", "error of the variance", "skipped", "seconds"]  # fmt: skip
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for label, row in ((k, v) for k, v in arrays.items() if k != "exact"):
        d, name = label.split(", ", 1)
        said = PUBLISHED.get(name, {}).get(int(d))
        ways = [row["backward"], row["forward"]]
        off = [max(np.abs(w[f"{x}"] - w[f"exact_{x}"])[-1].max() for w in ways)
               for x in ("mean", "variance")]  # fmt: skip
        said = "" if said is None else f"{said[0]} ({said[1]})"
        cells = [*(f"{1e3 * w['kl'][-1]:.2f}" for w in ways), said,
                 f"{np.mean([w['cross'][-1] for w in ways]):.4f}", *(f"{o:.3f}" for o in off),
                 str(sum(w["skipped"].sum() for w in ways)), f"{row['seconds']:.0f}"]  # fmt: skip
        lines.append(" | ".join([d, name, *cells]))
    last = "\nKL in thousandths of a nat, summed over independent coordinates, the mean over times."
    return "\n".join([*(f"| {line} |" for line in lines), last])
