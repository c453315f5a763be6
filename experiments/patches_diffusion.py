"""A diffusion model of 16x16 colour patches of scikit-learn's two photographs.

Papers: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022):
schedule, preconditioning, law of times, Heun's method on the rho = 7 plan.
Command: ``jaxinf run experiments/patches_diffusion.py``
Hardware: 2 CPU cores, 30 to 60 minutes; a GPU for more than a look.
Expected: one seed: distance ratio 1.30 (test patches to drawn ones, over training patches);
2.57 bits per dimension (standard error 0.12) on a quarter of the test patches.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import data, diagnostics, nets, process, sampler, score
from jaxinf.run import Experiment

LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    steps: int = 4000
    """Training steps."""
    batch: int = 64
    """Patches a step."""
    channels: int = 48
    """Width of the U-Net."""
    learning_rate: float = 1e-3
    """Adam's rate at its highest, after a warm-up and before a cosine decay."""
    data_scale: float = 0.5
    """Standard deviation of the data that the preconditioning assumes."""
    samples: int = 520
    """Patches drawn, as many as the test set has."""
    sampler_steps: int = 18
    """Steps of Heun's method, two calls each but the last."""
    likelihood_steps: int = 16
    """Runge-Kutta steps of the likelihood, four calls each."""


class Drawn(NamedTuple):
    """What is measured of a sampler."""

    distance_ratio: jax.Array
    """Sliced Wasserstein distance to the test patches, over that of training patches to them."""
    patches: jax.Array
    """The first of the patches, as levels."""


class Likelihood(NamedTuple):
    """Bits per dimension of the first test patches."""

    bits_per_dimension: jax.Array
    standard_error: jax.Array


def network(config: Config) -> nets.Network:
    """The U-Net."""
    return nets.unet(channels=config.channels, multipliers=(1, 2, 2))


def build(config: Config) -> Experiment:
    photographs = data.photographs()
    test = data.tiles(photographs.test)
    train = data.patches(photographs.train, 1, 0, np.arange(config.samples))
    edm = process.gaussian(process.edm())
    target = score.preconditioned(config.data_scale)
    net = network(config)
    loss = score.denoising(edm, net.apply, target=target, times=score.log_normal())
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, config.steps // 2), config.steps
    )
    training = nets.training(loss, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))

    def init(key):
        return training.init(net.init(key, jnp.zeros((16, 16, 3))))

    def batch(seed, step, index):
        return data.patches(photographs.train, seed, step, index)

    def step(key, state, batch):
        key_data, key_loss = jax.random.split(key)
        x = data.dequantise(key_data, batch, LEVELS)
        return training.step(key_loss, state, (x, None))

    def denoiser(state):
        return score.denoiser(edm, net.apply, state.average, predicts=target)

    def heun(key, state):
        keys = jax.random.split(key, 3)
        start = edm.prior().sample(keys[0], (config.samples, 16, 16, 3))
        plan = sampler.karras(edm, config.sampler_steps)
        out = sampler.sample(keys[1], sampler.heun(edm), denoiser(state), plan, start)
        levels = data.quantise(out.x, LEVELS)
        distances = [
            diagnostics.sliced_wasserstein(
                keys[2], data.midpoints(other, LEVELS), data.midpoints(test, LEVELS)
            )
            for other in (levels, train)
        ]
        return Drawn(distances[0] / distances[1], levels[:64])

    def likelihood(key, state):
        keys = jax.random.split(key)
        x = data.dequantise(keys[0], test[::4], LEVELS)
        plan = sampler.karras(edm, config.likelihood_steps, end=edm.t_min)
        nats, _ = score.log_density(
            keys[1], denoiser(state), x, plan=plan, trace=score.hutchinson(1)
        )
        bits = score.bits_per_dimension(nats, x[0].size, LEVELS)
        return Likelihood(jnp.mean(bits), jnp.std(bits, ddof=1) / np.sqrt(len(bits)))

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate={"heun": heun, "likelihood": likelihood},
        draw=draw,
        steps=config.steps,
        batch_size=config.batch,
    )


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Drawn patches beside held-out ones."""
    from matplotlib.figure import Figure

    test = data.tiles(data.photographs().test)
    panels = {"held out": test[:: len(test) // 64][:64]}
    if "heun" in arrays:
        panels["drawn"] = arrays["heun"].patches
    figure = Figure(figsize=(4 * len(panels), 4.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (name, patches) in zip(axes, panels.items(), strict=True):
        rows = patches.reshape(8, 8, 16, 16, 3).astype(np.uint8)
        axis.imshow(rows.transpose(0, 2, 1, 3, 4).reshape(128, 128, 3))
        axis.set_title(name)
        axis.axis("off")
    return {"patches": figure}
