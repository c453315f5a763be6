"""Restart sampling and tuned network times in the small, on denoisers whose errors are known.

Papers: Restart Sampling for Improving Generative Processes (Xu et al., 2023); Towards More Accurate
Diffusion Model Acceleration with A Timestep Aligner (Xia et al., 2023).
Command: ``jaxinf run experiments/restart_and_tuner.py``
Hardware: 2 CPU cores, 2 minutes.
Expected: (seeds 0, 1) where the denoiser is off at high noise restarts are nearest: mixture 0.125,
0.094 against 0.186, 0.170 of the ODE and 0.156, 0.157 of the SDE; digits 0.057, 0.059 against
0.061, 0.071 and 0.059, 0.063. Where it is off everywhere they are not: each restart adds the error
of its own interval. The tuner's claim is not met: by steady noise -2 to +50 %; by moments +2 and
-38 % on the mixture with the exact denoiser, +4 to +84 % elsewhere. (On a Gaussian, where two
moments are the law, the tuned error is 0: tests/sampler/test_timestep_tuner.py.)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, data, diagnostics, process, sampler, score
from jaxinf.run import Study, progress
from jaxinf.sampler.churn import churn
from jaxinf.sampler.dual_clock import tuned
from jaxinf.sampler.restart import restart
from jaxinf.sampler.timestep_tuner import tune
from jaxinf.sampler.tuning_objectives import match_moments, steady_noise

CHURNS = (0.05, 0.1, 0.2, 0.41)  # S_churn over the number of steps; the last is the paper's cap
INTERVALS = ((0.05, 0.3), (0.1, 1.0), (0.2, 2.0), (0.5, 3.0))  # noise levels
ERRORS = ("everywhere", "at high noise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    samples: int = 8000
    """Points drawn of the mixture."""
    images: int = 500
    """Digits drawn."""
    calls: int = 80
    """Calls of the denoiser, for each of the samplers that are compared."""
    error: float = 0.3
    """Root mean square of the denoiser's error, over the noise's share sigma / |(alpha, sigma)|."""


class Problem(NamedTuple):
    """Data, their perfect denoiser on a process, and what samples are held against."""

    denoiser: Any
    """process -> denoiser."""
    shape: tuple[int, ...]
    mean: jax.Array
    variance: jax.Array
    held_out: jax.Array
    floor: jax.Array
    """The distance of other data to those held out."""


class Compared(NamedTuple):
    """Sliced Wasserstein distances at equal numbers of calls."""

    calls: jax.Array
    ode: jax.Array
    sde: jax.Array
    """One for each amount of churn."""
    restart: jax.Array
    """One for each interval."""


class Tuning(NamedTuple):
    """Sliced Wasserstein distances of ten DDIM steps, and the network's times."""

    plain: jax.Array
    steady_noise: jax.Array
    moments: jax.Array
    taus: jax.Array


@core.record
class Atoms:
    """E[x_0 | x_t] for a mixture of N(atom, width^2): the perfect denoiser of smoothed examples."""

    process: core.Leaf
    atoms: core.Leaf
    width: core.Leaf

    def __call__(self, x, t, cond=None):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        power = jnp.square(alpha * self.width) + jnp.square(sigma)
        flat = x.ravel()
        squares = jnp.sum(jnp.square(self.atoms), axis=1)
        logits = (alpha * (self.atoms @ flat) - alpha**2 * squares / 2) / power
        clean = jax.nn.softmax(logits) @ self.atoms
        gain = alpha * self.width**2 / power
        return (clean + gain * (flat - alpha * clean)).reshape(x.shape)


@core.record
class Imperfect:
    """A denoiser that is off by waves over space and noise level, everywhere or at high noise."""

    process: core.Leaf
    denoiser: core.Leaf
    waves: core.Leaf
    error: core.Leaf
    high: core.Leaf

    def __call__(self, x, t, cond=None):
        p = self.process
        directions, speeds, phases = self.waves
        alpha, sigma = p.alpha(t), p.sigma(t)
        whole = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
        level = sigma / alpha
        wave = jnp.sin(directions @ (x.ravel() / whole) + speeds * jnp.log(level) + phases)
        share = jnp.where(self.high, level**3 / (1 + level**3), 1.0)
        error = self.error * sigma / whole * share * jnp.sqrt(2.0)
        return self.denoiser(x, t, cond) + error * wave.reshape(x.shape)


def imperfect(p, denoiser, size, error, high=False):
    """Waves by a seed, of about the data's length."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(size, size)) * 2 / size**0.5, rng.normal(size=size) * 3
    waves = (*waves, rng.uniform(0, 2 * np.pi, size))
    return Imperfect(p, denoiser, tuple(jnp.asarray(w, jnp.float32) for w in waves), error, high)


def distance(x, problem):
    return diagnostics.sliced_wasserstein(jax.random.key(9), x, problem.held_out, 128)


def mixture(samples):
    """Eight modes on a ring, their weights by a seed."""
    angles = np.arange(8) * np.pi / 4
    weights = np.random.default_rng(0).dirichlet(np.full(8, 5.0))
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    law = core.mixture(*(jnp.asarray(a, jnp.float32) for a in (weights, means, np.full(8, 0.15))))
    draws = jax.vmap(law.sample)(jax.random.split(jax.random.key(7), 4 * samples))
    held_out, other = draws[samples:], draws[:samples]
    problem = Problem(
        lambda p: score.oracle(p, law), (2,), draws.mean(0), draws.var(0), held_out, jnp.zeros(())
    )
    return problem._replace(floor=distance(other, problem))


def digits():
    """Scikit-learn's digits in [-1, 1]: the training set smoothed by 0.1, the test set held out."""
    both = [jnp.asarray(part.x, jnp.float32).reshape(-1, 64) / 8 - 1 for part in data.digits()]
    train, test = both
    problem = Problem(
        lambda p: Atoms(p, train, 0.1),
        (64,),
        train.mean(0),
        train.var(0) + 0.01,
        test,
        jnp.zeros(()),
    )
    return problem._replace(floor=distance(train, problem))


def compare(key, problem, count, error, calls):
    """Heun's method as it is, with churn, and with restarts in half of its calls."""
    p = process.gaussian(process.edm())
    heun, steps = sampler.heun(p), calls // 2
    start = p.prior().sample(key, (count, *problem.shape))
    size = int(np.prod(problem.shape))
    plan, short = sampler.karras(p, steps), sampler.karras(p, steps // 2)
    results = {}
    for where in ERRORS:
        denoiser = imperfect(p, problem.denoiser(p), size, error, where == ERRORS[1])

        def measure(stepper, plan, denoiser=denoiser):
            return distance(sampler.sample(key, stepper, denoiser, plan, start).x, problem)

        sde = [measure(churn(heun, a * steps, (0.05, 50.0)), plan) for a in CHURNS]
        again = []
        for lo, hi in INTERVALS:
            foot = short.times[np.argmin(np.abs(short.times - lo))]
            descent = sampler.plan(p, np.geomspace(hi, foot, steps // 8 + 1))
            back = restart(short, (foot, hi), 4, descent)
            again.append(measure(heun, back))
        results[where] = Compared(
            jnp.array([plan.calls(heun), back.calls(heun)]),
            measure(heun, plan),
            jnp.stack(sde),
            jnp.stack(again),
        )
    return results


def align(key, problem, count, error):
    """Ten DDIM steps: as they are, and with times tuned by either objective on other samples."""
    p = process.gaussian(process.linear_beta())
    stepper, plan = sampler.ddim(p), sampler.uniform(p, 10, end=p.t_min)
    keys = jax.random.split(key, 2)
    start, other = (p.prior().sample(k, (count, *problem.shape)) for k in keys)
    perfect, size = problem.denoiser(p), int(np.prod(problem.shape))
    moments = match_moments(problem.mean, problem.variance)
    results = {}
    for name, denoiser in (
        ("exact", imperfect(p, perfect, size, 0.0)),
        ("imperfect", imperfect(p, perfect, size, error)),
    ):
        tuning = {"candidates": 32, "refinements": 16}
        taus = [
            tune(key, stepper, denoiser, plan, other[:256], objective, **tuning)
            for objective in (steady_noise, moments)
        ]
        steppers: list[Any] = [stepper, *(tuned(stepper, t) for t in taus)]
        found = [
            distance(sampler.sample(key, s, denoiser, plan, start).x, problem) for s in steppers
        ]
        results[name] = Tuning(found[0], found[1], found[2], jnp.stack(taus))
    return results


def build(config: Config) -> Study:
    def run(key):
        problems = {
            "mixture": (mixture(config.samples), config.samples),
            "digits": (digits(), config.images),
        }
        results = {}
        for name in progress(problems, "problems"):
            problem, count = problems[name]
            results[name] = {
                "floor": problem.floor,
                "restart": compare(key, problem, count, config.error, config.calls),
                "tuner": align(key, problem, count, config.error),
            }
        return results

    return Study(run=run, draw=draw, notes=notes)


def notes(arrays: dict[str, Any]) -> str:
    """The claims beside the distances."""
    lines = [
        "Restart: claimed better than ODE and SDE samplers at comparable calls (CIFAR-10, VP: ten "
        "times fewer calls than the SDE at better FID). Sliced Wasserstein distances, SDE and "
        "restart the best of four settings:",
        "",
        "| data | denoiser's error | calls | ODE | SDE | restart | other data |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in arrays.items():
        for where, c in result["restart"].items():
            found = " | ".join(f"{float(np.min(a)):.4f}" for a in (c.ode, c.sde, c.restart))
            calls = " and ".join(str(int(n)) for n in c.calls)
            lines.append(f"| {name} | {where} | {calls} | {found} | {result['floor']:.4f} |")
    lines += [
        "",
        "Timestep tuner: claimed FID 9.65 to 6.07 (37 % lower) on LSUN bedroom with 10 DDIM steps:",
        "",
        "| data | denoiser | plain | steady noise | moments |",
        "|---|---|---|---|---|",
    ]
    for name, result in arrays.items():
        for kind, tuning in result["tuner"].items():
            by = [f"{t:.4f} ({100 * (t / tuning.plain - 1):+.0f} %)" for t in tuning[1:3]]
            lines.append(f"| {name} | {kind} | {tuning.plain:.4f} | {by[0]} | {by[1]} |")
    return "\n".join(lines)


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Distances at equal calls, and the tuned times over the plan's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, result) in zip(axes, arrays.items(), strict=False):
        for place, (where, c) in enumerate(result["restart"].items()):
            values = [float(np.min(a)) for a in (c.ode, c.sde, c.restart)]
            axis.bar(np.arange(3) + 0.4 * place, values, 0.4, label=f"error {where}")
        axis.axhline(result["floor"], color="black", linestyle=":", label="other data")
        axis.set_xticks(np.arange(3) + 0.2, ["ODE", "SDE", "restart"])
        axis.set(title=f"{name}, at equal calls", ylabel="sliced Wasserstein distance")
        axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
        axis.legend(fontsize="small")
    for name, result in arrays.items():
        for kind, tuning in result["tuner"].items():
            axes[2].plot(np.arange(1, 11), tuning.taus[1], "o-", label=f"{name}, {kind}")
    axes[2].plot(np.arange(1, 11), np.linspace(1, 0.001, 11)[:-1], "k:", label="plan")
    axes[2].set(xlabel="step", ylabel="time given to the network", title="tuned by moments")
    axes[2].legend(fontsize="small")
    return {"papers": figure}
