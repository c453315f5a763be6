"""Deblurring held-out digits when neither the blur's width nor the noise level is known.

Image, width and noise are sampled in turn (``guide.gibbs``): the image by the digits' diffusion
model guided by moment matching; the two parameters by Hamiltonian Monte Carlo on a NumPyro model.
The problems are simulated from the prior on held-out digits, so 90 % intervals must hold the true
parameters in 90 % of them.
Command: ``jaxinf run experiments/blind_deblurring.py``
Hardware: 1 CPU core, 7 minutes without training.
Expected, one seed, 80 problems, 80 of 100 sweeps kept (effectively 48 and 66): intervals hold the
width in 94 %, the noise in 90 % (standard error 3 %); the logarithms are off by -0.014 and
-0.013 (0.010) on average, and errors in units of their deviations have mean squares 1.00 and 0.96.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import digits_diffusion
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from inverse_models import digits_model
from jax.tree_util import Partial

from jaxinf import data, diagnostics, guide, mcmc, sampler, target
from jaxinf.run import Study, progress

SIZE, NAMES = 5, ("width", "noise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    steps: int = 1400
    """Training steps of the digits' model."""
    state: str = ""
    """Folder of its training state instead, ``runs/digits_diffusion/.../state`` with --drop 1."""
    problems: int = 80
    """Held-out digits, each with a width and a noise of its own."""
    sweeps: int = 100
    """Images drawn of each problem, and as many times their parameters are moved."""
    burn_in: int = 20
    """Sweeps that are left out."""
    moves: int = 5
    """Of the parameters in a sweep, trajectories of three steps."""
    sampler_steps: int = 20
    """Of an image's draw, short ones near the data."""
    blocks: int = 5
    """Parts of the sweeps, between which a bar moves."""


def noise_model(x: jax.Array, y: jax.Array) -> None:
    """What is known of an image's observation."""
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.3))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.15), 0.5))
    clean = guide.blur(guide.gaussian_kernel(width, SIZE))(x)
    numpyro.sample("y", dist.Normal(clean, noise).to_event(3), obs=y)


def parameters(y: jax.Array, x: jax.Array) -> target.Target:
    """Return the parameters' density given an image."""
    return target.program(noise_model, x, y)


def posterior(model: Any, y: jax.Array, values: Any) -> guide.Conditioned:
    """Return the image's denoiser given the parameters."""
    blur = guide.blur(guide.gaussian_kernel(values["width"], SIZE))
    return guide.conditioned(model, guide.linear(blur, y, values["noise"]), guide.mmps(3))


def guided(model: Any, plan: sampler.Plan, y: jax.Array, key: Any, values: Any) -> jax.Array:
    """Draw an image by the guided sampler."""
    keys, vp = jax.random.split(key), model.process
    start = vp.prior().sample(keys[0], (1, *y.shape))
    given = posterior(model, y, values)
    return sampler.sample(keys[1], sampler.ancestral(vp), given, plan, start).x[0]


@partial(jax.jit, static_argnames=("sweeps", "moves"))
def block(
    key: Any, model: Any, plan: Any, y: jax.Array, z: jax.Array, sweeps: int, moves: int
) -> guide.GibbsRun:
    """Go on with a chain of every problem.

    Its steps are adapted to an image drawn first, and it starts where the adaptation ended: they
    may be too long for where it began, in the tails, and all be refused there.
    """

    def one(key: Any, y: jax.Array, z: jax.Array) -> guide.GibbsRun:
        keys = jax.random.split(key, 3)
        draw = Partial(guided, model, plan, y)
        x = draw(keys[2], parameters(y, y).constrain(z))
        adapted = mcmc.sample(
            keys[0], mcmc.hmc(3), parameters(y, x), chains=2, warmup=100, draws=0,
            start=jnp.stack([z, z]),
        )  # fmt: skip
        z, kernel = adapted.state.z[0], adapted.kernel
        return guide.gibbs(
            keys[1], draw, Partial(parameters, y), kernel, x, z, sweeps=sweeps, moves=moves
        )

    return jax.vmap(one)(jax.random.split(key, len(y)), y, z)


def build(config: Config) -> Study:
    def run(key: Any) -> dict[str, Any]:
        model, keys = digits_model(config.steps, config.state), jax.random.split(key, 4)
        test = data.digits().test.x[-config.problems :]
        x = data.dequantise(keys[0], test, digits_diffusion.LEVELS)
        like = parameters(x[0], x[0])
        truth, z = (
            jax.vmap(like.sample_prior)(jax.random.split(k, len(x)))
            for k in jax.random.split(keys[1])
        )
        values = jax.vmap(like.constrain)(truth)
        blurred = jax.vmap(lambda w, x: guide.blur(guide.gaussian_kernel(w, SIZE))(x))
        noise = values["noise"][:, None, None, None] * jax.random.normal(keys[2], x.shape)
        y = blurred(values["width"], x) + noise
        plan = sampler.karras(model.process, config.sampler_steps, 4.0)
        runs = []
        for i in progress(config.blocks, "sweeps"):
            length = config.sweeps // config.blocks
            now = jax.random.fold_in(keys[3], i)
            found = block(now, model, plan, y, z, length, config.moves)
            runs.append(jax.tree.map(np.asarray, found))
            z = found.z[:, -1]
        chains = jax.tree.map(lambda *a: np.concatenate(a, axis=1), *runs)
        drawn = jax.vmap(jax.vmap(like.constrain))(chains.z)
        return {
            "problems": {"truth": x, "observed": y},
            "values": values,
            "draws": drawn,
            "images": {
                "mean": chains.x[:, config.burn_in :].mean(axis=1),
                "deviation": chains.x[:, config.burn_in :].std(axis=1),
                "last": chains.x[:, -1],
            },
            "summary": summary(values, drawn, chains, config.burn_in),
        }

    if config.burn_in >= config.sweeps or config.sweeps % config.blocks:
        raise ValueError("sweeps must exceed burn_in and be a multiple of blocks.")
    return Study(run=run, draw=draw, notes=notes)


def summary(values: Any, drawn: Any, chains: Any, burn_in: int) -> dict[str, Any]:
    """Return how often intervals hold the truth, and errors in units of the deviation.

    Their ends are at ranks that make them exact for as many independent draws.
    """
    found: dict[str, Any] = {"acceptance": float(chains.info.acceptance[:, burn_in:].mean())}
    for name in NAMES:
        kept = np.log(np.asarray(drawn[name])[:, burn_in:])
        true = np.log(np.asarray(values[name]))
        low, high = np.quantile(kept, [0.05, 0.95], axis=1, method="weibull")
        found[name] = {
            "effective": float(jnp.mean(diagnostics.ess(jnp.asarray(kept.T[None])))),
            "covered": float(np.mean((low < true) & (true < high))),
            "score": (kept.mean(axis=1) - true) / kept.std(axis=1, ddof=1),
            "deviation": kept.std(axis=1, ddof=1),
            "error": kept.mean(axis=1) - true,
        }
    return found


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """True parameters beside their intervals, chains and laws of some, and pictures."""
    from matplotlib.figure import Figure

    values, drawn, images = arrays["values"], arrays["draws"], arrays["images"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), NAMES, strict=True):
        kept = np.asarray(drawn[name])
        kept = kept[:, kept.shape[1] // 5 :]
        low, middle, high = np.quantile(kept, [0.05, 0.5, 0.95], axis=1, method="weibull")
        true = np.asarray(values[name])
        axis.errorbar(true, middle, [middle - low, high - middle], fmt="o", ms=3, lw=0.8)
        axis.axline((true.mean(), true.mean()), slope=1, color="k", lw=0.8)
        axis.set(xscale="log", yscale="log", xlabel=f"true {name}", ylabel="90 % interval")
        ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
        ticks = [tick for tick in ticks if low.min() < tick < high.max()]
        axis.set_xticks(ticks, ticks)
        axis.set_yticks(ticks, ticks)
        axis.minorticks_off()
    figures = {"recovered": figure}
    figure = Figure(figsize=(9, 4), layout="constrained")
    for row, name in zip(figure.subplots(2, 2, width_ratios=(2, 1)), NAMES, strict=True):
        for i in range(3):
            chain = np.asarray(drawn[name][i])
            row[0].plot(chain, color=f"C{i}", lw=0.9)
            row[1].hist(chain[len(chain) // 5 :], bins=12, color=f"C{i}", alpha=0.5)
            for line in (row[0].axhline, row[1].axvline):
                line(float(values[name][i]), color=f"C{i}", ls="--")
        row[0].set(xlabel="sweep", ylabel=name)
        row[1].set(xlabel=name, ylabel="sweeps")
    figures["chains"] = figure
    shown = {
        "truth": arrays["problems"]["truth"],
        "observed": arrays["problems"]["observed"],
        "a sample": images["last"],
        "mean": images["mean"],
        "deviation": images["deviation"],
    }
    count = min(10, len(shown["truth"]))
    figure = Figure(figsize=(count, 1.1 * len(shown)), layout="constrained")
    for axes, (name, pictures) in zip(
        figure.subplots(len(shown), count), shown.items(), strict=True
    ):
        spread = {"cmap": "viridis", "vmin": 0, "vmax": 1}
        options = spread if name == "deviation" else {"cmap": "gray_r", "vmin": -1, "vmax": 1}
        for axis, picture in zip(axes, pictures[:count], strict=True):
            axis.imshow(np.asarray(picture)[..., 0], **options)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name)
    return figures | {"images": figure}


def notes(arrays: dict[str, Any]) -> str:
    """How often intervals hold the truth."""
    found, count = arrays["summary"], len(arrays["problems"]["truth"])
    titles = "in its 90 % interval | mean error of the log | mean square score | effective draws"
    lines = [f"| parameter | {titles} |", "|-|-|-|-|-|"]
    for name in NAMES:
        one = found[name]
        errors, scores = np.asarray(one["error"]), np.asarray(one["score"])
        lines.append(
            f"| {name} | {float(one['covered']):.2f} ({np.sqrt(0.09 / count):.2f}) "
            f"| {errors.mean():+.3f} ({errors.std(ddof=1) / np.sqrt(count):.3f}) "
            f"| {np.mean(np.square(scores)):.2f} | {float(one['effective']):.0f} |"
        )
    return "\n".join([*lines, "", f"{count} problems; acceptance {found['acceptance']:.2f}."])
