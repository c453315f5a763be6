"""The papers behind the score models in the small: each claim on a law where the truth is known.

Papers: those whose row in papers.toml names this file.
Command: ``jaxinf run experiments/score_papers.py``
Hardware: 2 CPU cores, under 2 minutes.
Expected: Heun's order 2.0 and DDIM's 1.2 over the last doubling (1 is its limit); mean brightness
0.932 as it was and 1.000 rescaled; a loss that falls by 0.09 after calibration; likelihoods within
1e-5; a bound whose gap falls as 1 / steps.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, process, sampler, score
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    samples: int = 20_000
    """Draws where a figure is a mean."""


def build(config: Config) -> Study:
    parts = {
        "order": order,
        "brightness": brightness,
        "calibration": lambda key: calibration(key, config.samples),
        "likelihood": likelihood,
        "bound": lambda key: bound(key, config.samples),
        "guidance": lambda key: guidance(key, config.samples),
    }

    def run(key):
        with jax.enable_x64(True):
            return {name: parts[name](key) for name in progress(parts, "papers")}

    return Study(run=run, draw=draw)


def eight_dimensional():
    """A mixture in eight dimensions, the first draws of a seeded generator."""
    rng = np.random.default_rng(0)
    weights, means = rng.dirichlet(np.full(5, 3.0)), rng.normal(size=(5, 8)) * 1.5
    law = core.mixture(
        jnp.asarray(weights), jnp.asarray(means), jnp.sqrt(rng.uniform(0.05, 0.3, size=5))
    )
    return law, jnp.asarray(rng.normal(size=(64, 8)) * 80)


def order(key):
    """Root mean squared error of end points on the probability flow against denoiser calls."""
    law, x = eight_dimensional()
    p = process.gaussian(process.edm())
    denoiser = score.oracle(p, law)

    def velocity(log_t, x):
        t = jnp.exp(log_t)
        return jax.vmap(lambda x: t * process.convert(p, t, x, denoiser(x, t)))(x)

    grid = jnp.linspace(jnp.log(p.t_max), jnp.log(p.t_min), 4001)
    truth = jax.jit(lambda x: core.runge_kutta(velocity, x, grid))(x)
    calls = np.array([20, 40, 80, 160, 320, 640])
    result = {"calls": calls}
    for name, stepper, each in (("ddim", sampler.ddim(p), 1), ("heun", sampler.heun(p), 2)):
        errors = []
        for count in calls // each:
            plan = sampler.karras(p, int(count), end=p.t_min)
            out = sampler.sample(key, stepper, denoiser, plan, x).x
            errors.append(float(jnp.sqrt(jnp.mean((out - truth) ** 2))))
        result[f"{name}_error"] = np.array(errors)
        result[f"{name}_order"] = np.log2(errors[-2] / errors[-1])
    return result


def brightness(key):
    """Mean of samples of data N(1, 1): Stable Diffusion's schedule as it was, and rescaled."""
    betas = process.betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    law = core.gaussian(jnp.ones(1), core.Diagonal(1.0))
    result = {}
    for name, schedule in (("as_it_was", betas), ("rescaled", process.zero_terminal_snr(betas))):
        p = process.gaussian(schedule)
        plan = sampler.uniform(p, 1000)
        out = sampler.sample(key, sampler.ddim(p), score.oracle(p, law), plan, jnp.zeros((1, 1)))
        result[name] = out.x[0, 0]
        result[f"snr_{name}"] = jnp.square(p.alpha(1.0) / p.sigma(1.0))
    return result


@core.record
class Shifted:
    """A denoiser whose score is off by a constant."""

    denoiser: core.Leaf
    shift: core.Leaf

    @property
    def process(self):
        return self.denoiser.process

    def __call__(self, x, t, cond=None):
        p = self.process
        return self.denoiser(x, t, cond) + p.sigma(t) ** 2 / p.alpha(t) * self.shift


def calibration(key, samples):
    """Score-matching loss of a score that is off by 0.3, before and after calibration."""
    p = process.gaussian(process.linear_beta())
    law = core.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.5]]), jnp.array([0.4, 0.6]))
    keys = jax.random.split(key, samples + 2)
    x = jax.vmap(law.sample)(keys[2:])
    times = jnp.array([0.1, 0.3, 0.5, 0.7])
    model = Shifted(score.oracle(p, law), 0.3)
    better = score.calibrate(keys[0], model, x, times)

    def loss(denoiser, t):
        def one(key, x):
            noisy, _ = p.perturb(x, jax.random.normal(key, x.shape), t)
            error = denoiser(noisy, t) - score.oracle(p, law)(noisy, t)
            return jnp.sum(jnp.square(p.alpha(t) / p.sigma(t) ** 2 * error))

        return jnp.mean(jax.vmap(one)(jax.random.split(keys[1], samples), x))

    before, after = (jnp.stack([loss(m, t) for t in times]) for m in (model, better))
    return {"times": times, "before": before, "after": after, "fall": jnp.mean(before - after)}


def likelihood(key):
    """Largest error of log densities by the probability flow, exact trace, 200 points."""
    law, _ = eight_dimensional()
    p = process.gaussian(process.cosine())
    x = jax.vmap(law.sample)(jax.random.split(key, 200))
    plan, prior = sampler.uniform(p, 100, end=p.t_min), p.marginal(law, p.t_max)
    truth = jax.vmap(p.marginal(law, p.t_min).log_prob)(x)
    denoiser = score.oracle(p, law)
    exact, _ = score.log_density(key, denoiser, x, plan=plan, prior=prior)
    probed, info = score.log_density(
        key, denoiser, x, plan=plan, prior=prior, trace=score.hutchinson(8)
    )
    z = jnp.sum(probed - truth) / jnp.sqrt(jnp.sum(info.standard_error**2))
    return {"largest_error": jnp.max(jnp.abs(exact - truth)), "hutchinson_z": z}


def bound(key, samples):
    """The variational bound over the negative log likelihood, nats: continuous, and T steps."""
    p = process.gaussian(process.cosine(t_max=0.999))
    law = core.gaussian(jnp.zeros(1), core.Diagonal(1.0))
    x = jax.vmap(law.sample)(jax.random.split(key, samples))
    truth = -jax.vmap(law.log_prob)(x)
    denoiser = score.oracle(p, law)
    result = {}
    for steps in (None, 100, 1000):
        plan = steps and sampler.karras(p, steps, end=p.t_min)
        gap = score.variational_bound(key, denoiser, x, plan=plan, draws=64).total - truth
        name = f"gap_{steps}" if steps else "gap_continuous"
        result[name], result[f"{name}_error"] = jnp.mean(gap), jnp.std(gap) / np.sqrt(samples)
    return result


@core.record
class TwoClasses:
    """The perfect denoiser of N(+1, 1/4) for class 1, N(-1, 1/4) for class 0, both for class 2."""

    process: core.Leaf

    def __call__(self, x, t, cond=None):
        p, means = self.process, jnp.array([[-1.0], [1.0]])
        one = (
            core.gaussian(means[0], core.Diagonal(0.5)),
            core.gaussian(means[1], core.Diagonal(0.5)),
        )
        both = core.mixture(jnp.ones(2), means, jnp.full(2, 0.5))
        clean = jnp.stack([p.posterior_mean(law, x, t) for law in (*one, both)])
        return clean[cond]


def guidance(key, samples):
    """Mean and deviation of class 1 under guidance: outward and narrower as the scale grows."""
    p = process.gaussian(process.cosine())
    x, cond = p.prior().sample(key, (samples, 1)).astype(float), jnp.ones(samples, int)
    scales, rows = jnp.array([1.0, 2.0, 4.0]), []
    for scale in scales:
        model = score.guided(TwoClasses(p), scale, null=2)
        out = sampler.sample(key, sampler.heun(p), model, sampler.uniform(p, 64), x, cond).x
        rows.append((jnp.mean(out), jnp.std(out)))
    mean, deviation = np.array(rows).T
    return {"scale": scales, "mean": mean, "deviation": deviation}


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Error against calls, loss before and after calibration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    result = arrays["order"]
    for name in ("ddim", "heun"):
        label = f"{name}, order {result[f'{name}_order']:.2f}"
        left.loglog(result["calls"], result[f"{name}_error"], "o-", label=label)
    left.set(xlabel="denoiser calls", ylabel="error of end points")
    left.set_xticks(result["calls"], result["calls"])
    left.minorticks_off()
    left.legend()
    result = arrays["calibration"]
    right.semilogy(result["times"], result["before"], "o-", label="before")
    right.semilogy(result["times"], result["after"], "o-", label="after calibration")
    right.set(xlabel="t", ylabel="score-matching loss")
    right.legend(loc="center right")
    return {"papers": figure}
