"""Posteriors of the 25-mode mixture: heuristics, their weighted form, and azula's methods.

Papers: G. Cardoso et al., "Monte Carlo guided Diffusion for Bayesian linear inverse problems"
(2023), whose mixture this is; L. Wu et al., "Practical and Asymptotically Exact Conditional
Sampling in Diffusion Models" (2023), for the weights.
Command: ``make bench BENCH=mixture_posteriors``, which installs azula; the figures below are of
``ARGS="--dims 8 --problems 30 --pairs 500"`` and ``ARGS="--dims 80 --problems 30 --whole 5"``.
Hardware: a CPU.
Expected (median sliced Wasserstein distance of 1,000 samples after 100 steps, for observations of
1, 2 and 4 numbers; azula's): 8 numbers, 30 problems: exact draws 0.65, 0.28, 0.07; weighted 0.73,
0.33, 0.08; weighted with whole covariances 0.80, 0.30, 0.08; TDS (3.41, 0.74, 0.25); MMPS 4.78,
2.05, 0.75 (4.78, 2.12, 0.70), by one step of conjugate gradients 4.54 and 1.53 (5.18, 2.28); TMPD
4.78, 5.47, 3.42 (4.78, 6.84, 11.2); PiGDM 3.07, 1.92, 1.06 (6.80, 6.08, 2.66); DPS 2.99, 3.03, 1.65
(4.49, 3.11, 1.81). Median errors of the log evidence: weighted 0.069, 0.088, 0.071, whole 0.022,
0.026, 0.015. 80 numbers, 30 problems: exact draws 0.82, 0.47, 0.08; weighted 0.90, 0.61, 0.10, in
the median problem 1.07, 1.20, 1.25 times the exact ones, above 2 in 10, 0 and 0 %; log evidence
0.039, 0.110, 0.086; whole covariances, five problems each, 1.06, 1.13, 1.17 times, log evidence
0.010, 0.030, 0.017, a minute a problem; MMPS 3.78, 2.25, 1.23; PiGDM 3.42, 2.52, 1.62; azula in the
first three problems of each: TDS 3.70, 0.71, 1.59, MMPS 2.45, 2.32, 0.65 where ours has 2.77, 2.34,
0.67. Coverage of regions of 90 % with one of 8 numbers seen, 500 pairs: weighted 86.2 % with error
1.5 %, MMPS 94.2 %, whole covariances 88.4 % with error 1.4 %.
"""

import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mixture_peers import Posterior, Problem, azula, posterior, problem

from jaxinf import core, diagnostics, guide, process, sampler, score, smc
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    dims: tuple[int, ...] = (8, 80)
    observed: tuple[int, ...] = (1, 2, 4)
    """Numbers of an observation."""
    problems: int = 6
    """Of each setting."""
    whole: int = 1
    """Problems of more than 20 numbers that are run with whole covariances, a minute each."""
    steps: int = 100
    particles: int = 1000
    pairs: int = 200
    """Simulated examples and observations, for the coverage; 0 leaves it out."""
    peers: bool = True
    """Whether to run azula's methods, where it is installed."""


class Method(NamedTuple):
    """How x_0 given x_t is approximated, a strength, and whether particles are weighed."""

    belief: Any
    scale: Any = lambda p: 1.0
    stepper: Any = sampler.ancestral
    weighted: bool = False


OURS = {
    "MMPS": Method(guide.mmps()),
    "MMPS, 1 step": Method(guide.mmps(1, solve=guide.ConjugateGradients)),
    "TMPD": Method(guide.tmpd()),
    "PiGDM": Method(guide.pigdm(2.0)),
    "DPS": Method(guide.point(), lambda p: 0.3 * (p.noise / np.linalg.norm(p.matrix, 2)) ** 2),
    "weighted": Method(guide.mmps(), weighted=True),
    "weighted, whole": Method(guide.mmps(), stepper=sampler.moment_matched, weighted=True),
}


def noise_levels(dim: int, steps: int, whole: bool = False) -> np.ndarray:
    """Sigma over alpha along the plan.

    Most steps are where modes part, which grows as the root of the dimension, and where the noise
    is that of a mode; steps with whole covariances are exact there, and the last goes to 0.
    """
    k = np.sqrt(dim / 8)
    if whole:
        knots, density = np.log([600 * k, 60 * k, 8 * k, 5 * k, 0.03]), [1, 2, 2, 0.3, 0.15]
        return np.append(_spread(knots, density, steps - 1), 0.0)
    knots = np.log([1000 * k, 60 * k, 10 * k, 3, 0.3, 0.01])
    return _spread(knots, [0.3, 1, 1, 2, 1.5, 0.3], steps)


def _spread(knots: np.ndarray, density: list[float], steps: int) -> np.ndarray:
    fine = np.linspace(knots[0], knots[-1], 4001)
    count = np.cumsum(np.interp(-fine, -knots, density))
    return np.exp(np.interp(np.linspace(count[0], count[-1], steps + 1), count, fine))


def build(config: Config) -> Study:
    if min(config.problems, config.steps, config.particles) < 2:
        raise ValueError("problems, steps and particles must be at least 2")

    def run(key: Any) -> dict[str, Any]:
        settings = [(d, m) for d in config.dims for m in config.observed]
        found = {
            f"d = {d}, dy = {m}": setting(key, d, m, config)
            for d, m in progress(settings, "settings")
        }
        if config.pairs:
            found["levels"] = levels_of_truth(key, config)
        return found

    return Study(run=run, draw=draw, notes=notes)


def setting(key: Any, dim: int, observed: int, config: Config) -> dict[str, Any]:
    """Run all methods on the problems of a setting."""
    ratios = noise_levels(dim, config.steps)
    chain = Chain(config.steps, dim, config.particles)
    root = np.sqrt(1 + ratios**2)
    peers = azula(1 / root, ratios / root) if config.peers and find_spec("azula") else {}
    problems = [problem(dim, observed, i) for i in range(config.problems)]
    exact = [posterior(p) for p in problems]
    shown = int(np.argmin([abs(1 / np.sum(e.weights**2) - 3) for e in exact]))  # three modes or so
    found: dict[str, Any] = {"distance": {}, "evidence": {}, "seconds": {}, "cloud": {}}
    for i, p in enumerate(progress(problems, f"d = {dim}, dy = {observed}")):
        of_one: dict[str, Any] = {}
        for name, method in OURS.items():
            if observed == 1 and "1 step" in name:
                continue  # one step of conjugate gradients solves for one number
            if dim > 20 and method.stepper is sampler.moment_matched and i >= config.whole:
                continue
            of_one[name] = partial(chain.run, jax.random.fold_in(key, i), p, method)
        for name, peer in peers.items():
            if observed > 1 or "1 step" not in name:
                of_one[name] = lambda peer=peer, p=p, i=i: (peer(p, i, config.particles), None)
        judge(found, of_one, exact[i], i, i == shown, config.particles)
    return jax.tree.map(np.array, found, is_leaf=lambda rows: isinstance(rows, list))


def judge(
    found: dict[str, Any],
    methods: dict[str, Any],
    exact: Posterior,
    seed: int,
    shown: bool,
    count: int,
) -> None:
    """Run methods on one problem and enter distances to exact draws, errors and seconds."""
    rng = np.random.default_rng(seed)
    truth = exact.sample(rng, count)

    def enter(name: str, x: Any) -> None:
        found["distance"].setdefault(name, []).append(distance(x, truth))
        if shown:
            found["cloud"][name] = np.asarray(x)[:, :2]

    more = [distance(exact.sample(rng, count), truth) for _ in range(4)]
    found["distance"].setdefault("exact", []).append(float(np.mean(more)))
    if shown:
        found["cloud"]["exact"] = truth[:, :2]
    for name, method in methods.items():
        start = time.perf_counter()
        x, log_evidence = jax.block_until_ready(method())
        found["seconds"].setdefault(name, []).append(time.perf_counter() - start)
        enter(name, x)
        if log_evidence is not None:
            error = float(log_evidence) - exact.log_evidence
            found["evidence"].setdefault(name, []).append(error)


@jax.jit
def _distance(x: Any, y: Any) -> Any:
    return diagnostics.sliced_wasserstein(jax.random.key(0), x, y)


def distance(x: Any, y: Any) -> float:
    """The sliced Wasserstein distance, in float32."""
    return float(_distance(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))


class Chain:
    """A process, a plan and a number of particles, shared by all methods."""

    def __init__(self, steps: int, dim: int, count: int) -> None:
        times = 2 / np.pi * np.arctan(noise_levels(dim, steps))
        self.process = process.gaussian(process.cosine(times[-1], times[0]))
        self.plan = sampler.plan(self.process, times)
        times = 2 / np.pi * np.arctan(noise_levels(dim, steps, whole=True))
        self.whole = sampler.plan(self.process, times)
        self.dim, self.count = dim, count

    def prior(self, p: Problem) -> Any:
        """The mixture."""
        means = jnp.asarray(p.means, jnp.float32)
        return core.mixture(jnp.asarray(p.weights, jnp.float32), means, jnp.ones(len(means)))

    def conditioned(self, p: Problem, method: Method) -> Any:
        """The guided denoiser of a problem; its numbers are leaves."""
        operator = guide.projection(jnp.asarray(p.matrix, jnp.float32))
        likelihood = guide.linear(operator, p.y, p.noise)
        d = score.oracle(self.process, self.prior(p))
        return guide.conditioned(d, likelihood, method.belief, scale=jnp.float32(method.scale(p)))

    def population(self, key: Any, denoiser: Any, method: Method) -> smc.Run:
        """Weighted particles."""
        stepper = method.stepper(self.process)
        plan = self.whole if method.stepper is sampler.moment_matched else self.plan
        return guide.particles(key, stepper, denoiser, plan, (self.dim,), particles=self.count)

    def run(self, key: Any, p: Problem, method: Method) -> tuple[Any, Any]:
        """Return samples, and the log evidence where there are weights."""
        denoiser = self.conditioned(p, method)
        if method.weighted:
            run = self.population(key, denoiser, method)
            drawn = run.population.resample(jax.random.fold_in(key, 0))
            return drawn.particles, run.log_evidence
        start = self.process.prior().sample(jax.random.fold_in(key, 1), (self.count, self.dim))
        stepper = method.stepper(self.process)
        return sampler.sample(key, stepper, denoiser, self.plan, start).x, None


def levels_of_truth(key: Any, config: Config) -> dict[str, Any]:
    """The weighted share of samples of a higher posterior density than the truth.

    Uniform for exact posteriors: a region of highest density of 90 % has the truth in 90 % of the
    cases, over new priors, operators and observations.
    """
    dim, observed = min(config.dims), min(config.observed)
    chain = Chain(config.steps, dim, config.particles)
    found: dict[str, list[float]] = {name: [] for name in ("weighted", "weighted, whole", "MMPS")}
    for i in progress(range(config.pairs), "pairs"):
        p = problem(dim, observed, 10_000 + i)
        key_one = jax.random.fold_in(key, 10_000 + i)
        for name, values in found.items():
            denoiser = chain.conditioned(p, OURS[name])
            if OURS[name].weighted:
                population = chain.population(key_one, denoiser, OURS[name]).population
                x, weights = population.particles, jnp.exp(population.normalise())
            else:
                x, _ = chain.run(key_one, p, OURS[name])
                weights = jnp.full(len(x), 1 / len(x))
            truth = jnp.asarray(p.x, jnp.float32)
            values.append(float(_above(chain.prior(p), denoiser.likelihood, x, weights, truth)))
    return {name: np.array(values) for name, values in found.items()}


@jax.jit
def _above(prior: Any, likelihood: Any, x: Any, weights: Any, truth: Any) -> Any:
    def log_density(x: Any) -> Any:
        return prior.log_prob(x) + likelihood.log_prob(x)

    return jnp.sum(weights * (jax.vmap(log_density)(x) > log_density(truth)))


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Clouds, distances, errors of the log evidence, coverage."""
    import mixture_pictures

    return mixture_pictures.draw(arrays)


def notes(arrays: dict[str, Any]) -> str:
    """Medians: the distance, its ratio to exact draws', the share above 2, the log evidence."""
    names = [name for name in arrays if name != "levels"]
    methods = list(dict.fromkeys(m for name in names for m in arrays[name]["distance"]))
    lines = ["Median sliced Wasserstein distance (ratio to exact draws'; share above 2):", ""]
    lines += [f"| method | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for method in methods:
        cells = []
        for name in names:
            values = np.asarray(arrays[name]["distance"].get(method, []))
            floor = np.asarray(arrays[name]["distance"]["exact"])[: values.size]
            ratio = np.median(values / floor) if values.size else 0.0
            share = np.mean(values > 2) if values.size else 0.0
            cell = f"{np.median(values):.2f} ({ratio:.2f}; {100 * share:.0f} %)"
            cells.append(cell if values.size else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "Median error of the log evidence, and seconds of a run:", ""]
    lines += [f"| method | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for method in methods[1:]:
        cells = []
        for name in names:
            errors = np.abs(arrays[name]["evidence"].get(method, []))
            seconds = np.asarray(arrays[name]["seconds"].get(method, []))
            cell = f"{np.median(errors):.3f}, " if errors.size else ""
            cells.append(f"{cell}{np.median(seconds):.2f} s" if seconds.size else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    for name, values in arrays.get("levels", {}).items():
        inside = 100 * np.mean(np.asarray(values) <= 0.9)
        error = np.sqrt(inside * (100 - inside) / len(values))
        lines += ["", f"{name}: {inside:.1f} % of {len(values)} truths in regions of 90 % "
                  f"(standard error {error:.1f} %)."]  # fmt: skip
    return "\n".join(lines)
